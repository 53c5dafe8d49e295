"""Solvers, one a file; each file opens with its recurrence and reference."""
