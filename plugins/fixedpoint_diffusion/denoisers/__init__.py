"""Denoisers: functions, networks, and models with a known score."""
