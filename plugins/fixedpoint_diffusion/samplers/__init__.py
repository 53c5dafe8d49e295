"""Samplers as chains: schedules, timesteps, noise, and the DDIM chain."""
