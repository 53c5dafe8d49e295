"""The joint solve: the solver, its rounds in a window that slides along the chain, accelerators and starts."""
