"""Problems with published numbers: radiative transfer, ignition, mixtures by EM, Markov chains, sparse regression.

Each module opens with its mathematics, and has the problem and the task that compares solvers on it.
"""
