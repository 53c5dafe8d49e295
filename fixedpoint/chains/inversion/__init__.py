"""Inversion of chains: finding the start that leads to a given last state."""
