"""Expectations: upper bounds on metrics that a run file sets, judged on records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fixedpoint.config.folder import CellRow
from fixedpoint.config.record import Record

__all__ = ["broken_expectations"]


def broken_expectations(expect: Mapping[str, float], cells: Iterable[tuple[CellRow, Record]]) -> list[str]:
    """A sentence for every cell that came to a result but not within the bounds.

    NaN is above every bound, and so is a metric that the task does not have.
    """
    sentences = []
    for cell, record in cells:
        for metric, bound in expect.items():
            if record.status != "ok":
                continue
            value = record.metrics.get(metric)
            if value is None:
                known = ", ".join(record.metrics) or "none"
                sentences.append(f"{cell.label}: has no metric {metric}, expected at most {bound:g} (it has: {known})")
            elif not value <= bound:
                sentences.append(f"{cell.label}: {metric} is {value:.2g}, expected at most {bound:g}")
    return sentences
