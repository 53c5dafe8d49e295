"""DDIM chains."""
