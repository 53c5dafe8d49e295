"""Plan: the grid of tasks, solvers, gradient estimators and seeds as cells, impossible ones marked."""

from __future__ import annotations

from typing import Any

from fixedpoint.chains.capabilities import CHAIN_ABILITIES
from fixedpoint.config.choice import Choice
from fixedpoint.config.makers import Makers
from fixedpoint.config.runfile import RunConfig
from fixedpoint.execution.cell import Cell
from fixedpoint.registry import Kind, registry

__all__ = ["plan"]

# What a task of chains need not name. (Without "coarse" it never had solvers that need coarser chains.)
_SAID = CHAIN_ABILITIES - {"coarse"}


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
    """What a solver or gradient estimator says it needs, with these options, and nobody says they provide."""
    provided = _of("task", task).provides
    built = _of("solver", solver)
    lacking = _lacking(built.needs, provided)
    if lacking:
        return f"{solver.label} needs {_listed(lacking)}, which {task.label} does not provide"
    if gradient is None:
        return ""
    lacking = _lacking(_of("gradient", gradient).needs - built.provides, provided)
    if lacking:
        return f"{gradient.label} needs {_listed(lacking)}, which neither {solver.label} nor {task.label} provides"
    return ""


def _of(kind: Kind, choice: Choice) -> Any:
    return registry.create(kind, choice.config)


def _lacking(needs: frozenset[str], provided: frozenset[str]) -> frozenset[str]:
    """What is needed and not provided, as far as the task says.

    A task of chains that names nothing of what they know leaves that to the chain itself: whoever asks it for what it
    does not know ends with an ``AbilityError``, and the cell is skipped then.
    """
    return needs - provided - (frozenset() if provided & _SAID else _SAID)


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
