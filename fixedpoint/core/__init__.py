"""Problems, the evaluator, termination, status, solution, solver, and the one loop."""
