"""The maps of ``benchmarks/maps.py``, by family: each with its source, three starts and a reference solution."""

from __future__ import annotations

from functools import cache

from map_suite import cell, classic, economics, matrices, mixtures, physics, power_flow, scalars, statistics
from map_suite.suite import STARTS, Map, relative_residual

__all__ = ["STARTS", "Map", "all_maps", "relative_residual"]

_FAMILIES = (classic, mixtures, statistics, economics, physics, power_flow, matrices, cell, scalars)


@cache
def all_maps() -> tuple[Map, ...]:
    """Every map, in the order of the families."""
    return tuple(made for family in _FAMILIES for made in family.maps())
