"""Tasks: what a run compares solvers and gradients on."""
