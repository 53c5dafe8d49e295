"""A deep equilibrium model on real data: a convolutional classifier of scikit-learn's digits.

Submodules are imported on first use, so that listing plugins stays fast.
"""
