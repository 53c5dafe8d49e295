"""Our step solvers in torchdeq: registered by name, called as it calls its own, reporting as its own do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fixedpoint.core.loop import StepSolver
from fixedpoint.registry import UnknownComponentError, registry
from fixedpoint_torchdeq.adapter import TorchdeqCallable
from fixedpoint_torchdeq.library import torchdeq

__all__ = ["as_torchdeq_solver", "get_deq", "register"]

_PREFIX = "fixedpoint-"


def register(**named: StepSolver[Any] | str | Mapping[str, Any]) -> tuple[str, ...]:
    """Register our solvers with torchdeq, under ``fixedpoint-<name>``; calling it again does no harm.

    Every step solver of the registry is, those of installed plugins included; solvers of chains, and those whose
    requirements are missing, are not.

    Parameters
    ----------
    named
        More solvers, with options of their own, each a step solver, a name or a mapping of ``name`` and options.
        torchdeq cannot hand options to a backward solver: this is how it gets them, and the only way to.

    Returns
    -------
    tuple of str
        All names that ``get_deq(f_solver=..., b_solver=...)`` now knows from us.

    Raises
    ------
    TypeError, ValueError
        For what is no step solver.

    Examples
    --------
    >>> register(backward=fixedpoint.Anderson(memory=10))
    >>> deq = torchdeq.get_deq(f_solver="fixedpoint-anderson", b_solver="fixedpoint-backward", ift=True)
    """
    solvers = {name: as_torchdeq_solver(solver) for name, solver in named.items()}
    for name, component in registry.components("solver").items():
        if name in solvers or component.missing():
            continue
        try:
            solver = registry.create("solver", name)
        except Exception:  # a stranger's component may raise anything; ``fixedpoint list`` says what
            continue
        if isinstance(solver, StepSolver) and "chain" not in solver.needs:
            solvers[name] = TorchdeqCallable(solver)
    table = torchdeq("solver")
    for name, solver in solvers.items():
        table.register_solver(_PREFIX + name, solver)
    return tuple(sorted(_PREFIX + name for name in solvers))


def as_torchdeq_solver(solver: StepSolver[Any] | str | Mapping[str, Any]) -> TorchdeqCallable:
    """A solver of ours as torchdeq calls one: ``solver(func, x0, max_iter, tol, stop_mode, indexing, ...)``.

    Raises
    ------
    TypeError, ValueError
        For what is no step solver, or requires a chain.
    """
    built = registry.create("solver", solver)
    if not isinstance(built, StepSolver) or "chain" in built.needs:
        raise TypeError(f"torchdeq requires a step solver for plain fixed points, got {built!r}")
    return TorchdeqCallable(built)


def get_deq(args: Any = None, **options: Any) -> Any:
    """The ``get_deq`` of torchdeq with our solvers registered: an equilibrium layer, a ``torch.nn.Module``.

    The configuration is copied: torchdeq's own writes the options into the caller's.

    Raises
    ------
    UnknownComponentError
        For an ``f_solver`` or ``b_solver`` that torchdeq does not know, naming the nearest.
    """
    register()
    if isinstance(args, torchdeq("utils.config").DEQConfig):
        args = args.config
    config = {**(args if isinstance(args, Mapping) else vars(args) if args is not None else {}), **options}
    known = torchdeq("solver")._solvers
    for key in ("f_solver", "b_solver"):
        if key in config and config[key] not in known:
            raise UnknownComponentError("solver", config[key], known)
    return torchdeq("core").get_deq(config)
