"""The joint solve of a chain: solver, engine (rounds in a sliding window), accelerators and starts."""
