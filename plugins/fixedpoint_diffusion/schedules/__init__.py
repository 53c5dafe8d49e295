"""Noise schedules and timesteps, and the diffusers schedulers they are read from."""
