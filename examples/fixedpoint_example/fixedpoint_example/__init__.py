"""An example plugin for fixedpoint, with a solver, a gradient estimator and a task."""
