"""Finds the noise that leads to given images, by inverting the chain or by optimisation."""
