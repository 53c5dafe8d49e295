"""Tasks, on which a run compares solvers and gradient estimators."""
