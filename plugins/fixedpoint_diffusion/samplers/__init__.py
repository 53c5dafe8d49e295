"""The DDIM chain, with its noise schedules, timesteps and noise."""
