"""Sequential computations ``x_{i+1} = Phi_i(x_i)`` as joint fixed points of all their states."""
