"""The solvers, one per file. Each file begins with the recurrence of its method and the reference."""
