"""The hooks a plugin may implement: one per kind of component, one for commands, and the life cycle of a run.

A plugin is a module (or object) named by an entry point of the group ``fixedpoint``; keep its import light, the
factories are import strings.
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
    """The solvers this plugin brings: factories are frozen dataclasses derived from ``Solver``."""


@hookspec
def fixedpoint_gradients() -> Iterable[Component]:  # type: ignore[empty-body]
    """The gradient estimators this plugin brings, derived from ``GradientEstimator``."""


@hookspec
def fixedpoint_tasks() -> Iterable[Component]:  # type: ignore[empty-body]
    """The tasks this plugin brings, derived from ``Task``."""


@hookspec
def fixedpoint_executors() -> Iterable[Component]:  # type: ignore[empty-body]
    """The executors this plugin brings, derived from ``Executor``."""


@hookspec
def fixedpoint_commands() -> Iterable[Command]:  # type: ignore[empty-body]
    """The commands of the program this plugin brings: factories are functions annotated as typer expects them."""


@hookspec
def fixedpoint_run_started(folder: Path, cells: int) -> None:
    """A run begins: its folder, and how many cells are to be carried out (finished ones are reused)."""


@hookspec
def fixedpoint_round(cell: str, round: int, running: int, relative_error: float) -> None:
    """A solve has finished a round: rows still running, and the worst relative error among them."""


@hookspec
def fixedpoint_cell_finished(record: Mapping[str, Any]) -> None:
    """A cell has its record (host numbers only)."""


@hookspec
def fixedpoint_run_finished(folder: Path) -> None:
    """Every cell of the run has a record."""
