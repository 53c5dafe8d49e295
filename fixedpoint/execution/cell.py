"""Cell: one task with one solver, gradient estimator and seed; plain values, so that it can go anywhere."""

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
    """What is to be computed, and what it is called.

    Attributes
    ----------
    task, solver, gradient, termination
        Names and options, all filled in.
    labels
        What the run calls ``task``, ``solver`` and ``gradient``.
    made_by
        Distributions that take part, each with its version and code: compared with those of records, handed on as
        they are.
    skip
        Why it cannot be carried out; empty when it can.
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
        """All that is asked for. Who carries it out is in ``made_by``."""
        return {
            "task": self.task,
            "solver": self.solver,
            "gradient": self.gradient,
            "termination": self.termination,
            "seed": self.seed,
        }

    @cached_property
    def hash(self) -> str:
        """sha256 of the config as canonical JSON: cells of one hash ask for the same, whatever it is called."""
        return digest(json_text(self.config).encode())


@dataclass(frozen=True)
class Finished:
    """What carrying out a cell gives.

    Attributes
    ----------
    record
        What is written of it: handed on as it is.
    arrays
        What goes beside the record, by name.
    """

    record: Any
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
