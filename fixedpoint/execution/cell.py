"""Cells: one task with one solver, gradient estimator and seed each, as plain values that can be pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from fixedpoint.execution.plain import digest, json_text

__all__ = ["Cell", "Finished"]


@dataclass(frozen=True)
class Cell:
    """One computation of a run, with its labels.

    Attributes
    ----------
    task, solver, gradient, termination
        ``name`` and options of each, with all defaults filled in. ``gradient`` is None where the cell has none.
    seed
        The seed of the problem.
    labels
        The labels of ``task``, ``solver`` and ``gradient`` in the run and its reports.
    made_by
        The distributions involved, each with its version and code. A run compares them with those of a stored record,
        and stores them unchanged.
    skip
        Why the cell cannot be computed; empty if it can.
    """

    task: dict[str, Any]
    solver: dict[str, Any]
    gradient: dict[str, Any] | None
    termination: dict[str, Any]
    seed: int
    labels: dict[str, str]
    made_by: dict[str, Any] = field(default_factory=dict)
    skip: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """What is computed: task, solver, gradient, termination and seed. The versions involved are in ``made_by``."""
        return {
            "task": self.task,
            "solver": self.solver,
            "gradient": self.gradient,
            "termination": self.termination,
            "seed": self.seed,
        }

    @cached_property
    def hash(self) -> str:
        """The sha256 of the config as canonical JSON. Equal hashes mean the same computation, whatever the labels."""
        return digest(json_text(self.config).encode())


@dataclass(frozen=True)
class Finished:
    """The result of a cell.

    Attributes
    ----------
    record
        The record, which executors pass on unchanged and the run writes.
    arrays
        Arrays that are stored with the record, by name.
    notices
        Sentences for the user that are not stored, e.g. on a plugin whose hook raised an exception.
    """

    record: Any
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
