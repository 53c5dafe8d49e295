"""The adjoint of a chain, and the gradient estimator based on it."""
