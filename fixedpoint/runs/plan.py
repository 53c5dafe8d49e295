"""Plan: the grid of tasks, solvers, gradient estimators and seeds as cells, impossible ones marked."""

from __future__ import annotations

from typing import Any

from fixedpoint.config.choice import Choice
from fixedpoint.config.makers import Makers
from fixedpoint.config.runfile import RunConfig
from fixedpoint.execution.cell import Cell
from fixedpoint.registry import registry

__all__ = ["plan"]


def plan(config: RunConfig) -> list[Cell]:
    """The cells of a run, those of one task together, in the order of the file."""
    gradients: tuple[Choice | None, ...] = config.gradients or (None,)
    makers = Makers()
    return [
        _cell(config, task, solver, gradient, seed, makers)
        for task in config.tasks
        for seed in config.seeds
        for gradient in gradients
        for solver in config.solvers
    ]


def _cell(
    config: RunConfig,
    task: Choice,
    solver: Choice,
    gradient: Choice | None,
    seed: int,
    makers: Makers,
) -> Cell:
    labels = {"task": task.label, "solver": solver.label}
    parts = task.parts + solver.parts
    if gradient is not None:
        labels["gradient"] = gradient.label
        parts += gradient.parts
    return Cell(
        task=task.config,
        solver=solver.config,
        gradient=gradient.config if gradient is not None else None,
        termination=config.termination,
        seed=seed,
        labels=labels,
        made_by=makers.of(parts),
        skip=_reason_to_skip(task, solver, gradient),
    )


def _reason_to_skip(task: Choice, solver: Choice, gradient: Choice | None) -> str:
    """What a solver or gradient estimator says it needs and nobody says they provide."""
    task_class: Any = registry.get("task", task.config["name"]).load()
    solver_class: Any = registry.get("solver", solver.config["name"]).load()
    lacking = solver_class.needs - task_class.provides
    if lacking:
        return f"{solver.label} needs {_listed(lacking)}, which {task.label} does not provide"
    if gradient is None:
        return ""
    gradient_class: Any = registry.get("gradient", gradient.config["name"]).load()
    lacking = gradient_class.needs - solver_class.provides - task_class.provides
    if lacking:
        return f"{gradient.label} needs {_listed(lacking)}, which neither {solver.label} nor {task.label} provides"
    return ""


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
