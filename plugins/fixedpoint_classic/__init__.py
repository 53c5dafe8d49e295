"""Classic fixed-point problems from the literature, such as radiative transfer, EM, Markov chains and regression.

Each module states the mathematics in its docstring and contains a problem and the task that compares solvers on it.
"""
