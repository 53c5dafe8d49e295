"""The core of the library: problems, evaluator, termination, status, solution, solver and the loop."""
