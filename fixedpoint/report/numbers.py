"""Formats numbers for tables, with few digits."""

from __future__ import annotations

import math

__all__ = ["count_text", "number_text", "seconds_text"]


def number_text(value: float) -> str:
    """Return a number with two digits and an exponent if it is very small or large (``3.2e-05``), else four digits."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if value == 0:
        return "0"
    return f"{value:.1e}" if not 1e-3 <= abs(value) < 1e5 else f"{value:.4g}"


def seconds_text(value: float) -> str:
    """Return seconds with three significant digits; two below 1 ms, and none after the point from 100 s on."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}" if value >= 1e-3 else f"{value:.1e}"


def count_text(value: int) -> str:
    """Return a count, with commas between groups of three digits from 10,000 on."""
    return f"{value:,}" if value >= 10_000 else str(value)
