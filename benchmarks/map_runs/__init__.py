"""Runs of the maps of ``map_suite`` for ``benchmarks/maps.py``: counts, solvers of other libraries, tables, limits."""
