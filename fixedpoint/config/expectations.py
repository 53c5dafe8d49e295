"""Checks records against the expectations of a run file, which are upper bounds on metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fixedpoint.config.folder import CellRow
from fixedpoint.config.record import Record

__all__ = ["broken_expectations"]


def broken_expectations(expect: Mapping[str, float], cells: Iterable[tuple[CellRow, Record]]) -> list[str]:
    """Return a sentence for every bound that a cell exceeds. Failed and skipped cells are ignored.

    NaN exceeds every bound, and so does a metric that the record does not have.

    Parameters
    ----------
    expect
        Upper bounds by metric.
    cells
        Cells with their records.
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
            elif not value <= bound:  # negated, so that NaN is above the bound
                sentences.append(f"{cell.label}: {metric} is {value:.2g}, expected at most {bound:g}")
    return sentences
