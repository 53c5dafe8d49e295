"""A command's module that cannot be imported."""

raise RuntimeError("rained\n  out")
