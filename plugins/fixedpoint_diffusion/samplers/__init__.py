"""Sampling chains: DDIM with its jumps and extensions, the noise they use, and the problem they make."""
