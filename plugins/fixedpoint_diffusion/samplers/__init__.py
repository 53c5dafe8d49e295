"""Sampling chains: DDIM with its jumps and extensions, noise, the problem they make, and recurrences of schedulers."""
