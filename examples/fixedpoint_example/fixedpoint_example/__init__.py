"""An example of a plugin for fixedpoint: a solver, a gradient estimator and a task."""
