"""Converts a run to plain values, for the option ``--json`` of commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fixedpoint.report.makers import remarks, version_rows
from fixedpoint.report.reading import Entry, RunData

__all__ = ["to_data"]


def to_data(run: RunData, files: Sequence[Path]) -> dict[str, Any]:
    """Return a run as plain values: the result of every cell, all failures and notices, and the files.

    Parameters
    ----------
    run
        The run.
    files
        The files of its report.
    """
    return {
        "name": run.info.name,
        "folder": str(run.folder.path),
        "ok": not run.failures and not run.broken_expectations,
        "cells": [_cell(entry) for entry in run.entries],
        "notices": list(run.notices),
        "remarks": remarks(run),
        "versions": {row.name: list(row.versions) for row in version_rows(run)},
        "failures": run.failures,
        "broken_expectations": run.broken_expectations,
        "files": [str(path) for path in files],
    }


def _cell(entry: Entry) -> dict[str, Any]:
    cell, record = entry.cell, entry.record
    found: dict[str, Any] = {**cell.model_dump(), "status": "missing", "reason": entry.reason}
    if record is not None:
        found |= {
            "status": record.status,
            "reason": record.error.message if record.error else record.reason,
            "rows": record.rows,
            "rounds": record.rounds,
            "evaluations": record.evaluations,
            "seconds": record.seconds,
            "metrics": record.metrics,
            "versions": record.versions,
        }
    return found
