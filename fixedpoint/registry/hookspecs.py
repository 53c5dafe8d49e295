"""The hooks that a plugin may implement: one for each kind of component, one for commands, four for events of a run.

A plugin is a module or object that an entry point of the group ``fixedpoint`` names. The registry imports every plugin
at its first query, so a plugin should import little itself and give its factories as import strings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pluggy

from fixedpoint.registry.command import Command
from fixedpoint.registry.component import Component

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "fixedpoint"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin as the implementation of the hook of its name."""


@hookspec
def fixedpoint_solvers() -> Iterable[Component]:  # type: ignore[empty-body]
    """Return the solvers of this plugin. Their factories are frozen dataclasses derived from ``Solver``."""


@hookspec
def fixedpoint_gradients() -> Iterable[Component]:  # type: ignore[empty-body]
    """Return the gradient estimators of this plugin. Their factories are derived from ``GradientEstimator``."""


@hookspec
def fixedpoint_tasks() -> Iterable[Component]:  # type: ignore[empty-body]
    """Return the tasks of this plugin. Their factories are derived from ``Task``."""


@hookspec
def fixedpoint_executors() -> Iterable[Component]:  # type: ignore[empty-body]
    """Return the executors of this plugin. Their factories are derived from ``Executor``."""


@hookspec
def fixedpoint_commands() -> Iterable[Command]:  # type: ignore[empty-body]
    """Return the commands of this plugin. Their factories are functions with the annotations that typer expects."""


@hookspec
def fixedpoint_run_started(folder: Path, cells: int) -> None:
    """Called when a run begins, with its folder and the number of cells to compute, reused ones not counted."""


@hookspec
def fixedpoint_round(cell: str, round: int, running: int, relative_error: float) -> None:
    """Called after every round of a solve.

    Parameters
    ----------
    cell
        Label of the cell.
    round
        Number of the round.
    running
        Number of rows that are still running.
    relative_error
        The largest relative error among the running rows.
    """


@hookspec
def fixedpoint_cell_finished(record: Mapping[str, Any]) -> None:
    """Called when the record of a cell has been written, with the record as plain values without tensors."""


@hookspec
def fixedpoint_run_finished(folder: Path) -> None:
    """Called at the end of a run that was not interrupted, with its folder."""
