"""Numbers as a reader expects them: few digits, NaN in so many letters."""

from __future__ import annotations

import math

__all__ = ["count_text", "number_text", "seconds_text"]


def number_text(value: float) -> str:
    """Two digits where the exponent says it all (``3.2e-05``), four where it does not."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if value == 0:
        return "0"
    return f"{value:.1e}" if not 1e-3 <= abs(value) < 1e5 else f"{value:.4g}"


def seconds_text(value: float) -> str:
    """Seconds to three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}" if value >= 1e-3 else f"{value:.1e}"


def count_text(value: int) -> str:
    """A count, in groups of three digits from 10,000 on."""
    return f"{value:,}" if value >= 10_000 else str(value)
