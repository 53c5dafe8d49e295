"""Deep equilibrium models on real data: a convolutional classifier of scikit-learn's digits.

Nothing heavy is imported until it is used, so that listing plugins stays quick.
"""
