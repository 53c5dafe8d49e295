"""Plans: the expected time of each way to solve a chain on this machine, and the choice between them."""
