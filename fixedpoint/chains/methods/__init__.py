"""Other solvers of chains: step by step, parareal, and DEQ-DDIM as published."""
