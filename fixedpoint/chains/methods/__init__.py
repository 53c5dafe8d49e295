"""Other ways to run a chain: step by step, parareal, DEQ-DDIM as published."""
