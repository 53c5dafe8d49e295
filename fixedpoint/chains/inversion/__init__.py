"""The inverse of a chain: the start that leads to a given end."""
