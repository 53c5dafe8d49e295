"""The adjoint of a chain, and the gradient estimator made of it."""
