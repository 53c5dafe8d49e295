"""Expands a run file to the cells of its run, and marks the combinations that are impossible."""

from __future__ import annotations

from typing import Any

from fixedpoint.chains.capabilities import CHAIN_ABILITIES
from fixedpoint.config.choice import Choice
from fixedpoint.config.makers import Makers
from fixedpoint.config.runfile import RunConfig
from fixedpoint.execution.cell import Cell
from fixedpoint.registry import Kind, registry

__all__ = ["plan"]

# Abilities of chains that a task need not declare. It must declare "coarse" to be combined with solvers that need it.
_IMPLIED_ABILITIES = CHAIN_ABILITIES - {"coarse"}


def plan(config: RunConfig) -> list[Cell]:
    """Return the cells of a run in the order of the file, those of one task together."""
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
    """The needs of the solver or gradient estimator that nothing provides, in a sentence; empty if there are none."""
    # Instances are asked, because what they need and provide depends on their options.
    instance = _of("task", task)
    provided = instance.provides
    # A task whose abilities depend on its options declares them where its class does.
    declares = bool((provided | type(instance).provides) & _IMPLIED_ABILITIES)
    built = _of("solver", solver)
    lacking = _lacking(built.needs, provided, declares)
    if lacking:
        return f"{solver.label} needs {_listed(lacking)}, which {task.label} does not provide"
    if gradient is None:
        return ""
    lacking = _lacking(_of("gradient", gradient).needs - built.provides, provided, declares)
    if lacking:
        return f"{gradient.label} needs {_listed(lacking)}, which neither {solver.label} nor {task.label} provides"
    return ""


def _of(kind: Kind, choice: Choice) -> Any:
    return registry.create(kind, choice.config)


def _lacking(needs: frozenset[str], provided: frozenset[str], declares: bool) -> frozenset[str]:
    """The needs that are not provided, as far as the task declares the abilities of its chains.

    If it declares none, they are found out only by the solve. Asking the chain for an ability that it lacks raises
    ``AbilityError``, and the cell is then skipped.
    """
    return needs - provided - (frozenset() if declares else _IMPLIED_ABILITIES)


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
