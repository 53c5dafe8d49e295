"""Registers the step solvers of this library in torchdeq."""

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
    """Register the step solvers of this library with torchdeq, under ``fixedpoint-<name>``.

    All step solvers of the registry are registered, including those of installed plugins. Solvers of chains, and
    solvers whose requirements are not installed, are left out. The function may be called several times.

    Parameters
    ----------
    named
        Further solvers by name, with options of their own: step solvers, names of components, or mappings of ``name``
        and options. Since torchdeq cannot pass options to a backward solver, this is the only way to set them.

    Returns
    -------
    tuple of str
        All names of this library that ``get_deq(f_solver=..., b_solver=...)`` now accepts.

    Raises
    ------
    TypeError, ValueError
        If an argument is not a step solver for plain fixed points.

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
        except Exception:  # a component of another plugin may raise any error; ``fixedpoint list`` shows it
            continue
        if isinstance(solver, StepSolver) and "chain" not in solver.needs:
            solvers[name] = TorchdeqCallable(solver)
    table = torchdeq("solver")
    for name, solver in solvers.items():
        table.register_solver(_PREFIX + name, solver)
    return tuple(sorted(_PREFIX + name for name in solvers))


def as_torchdeq_solver(solver: StepSolver[Any] | str | Mapping[str, Any]) -> TorchdeqCallable:
    """A step solver as a function ``solver(func, x0, max_iter, tol, stop_mode, indexing, ...)``, as torchdeq calls it.

    Parameters
    ----------
    solver
        A step solver, the name of a component, or a mapping of ``name`` and options.

    Raises
    ------
    TypeError, ValueError
        If ``solver`` is not a step solver, or if it requires a chain.
    """
    built = registry.create("solver", solver)
    if not isinstance(built, StepSolver) or "chain" in built.needs:
        raise TypeError(f"torchdeq requires a step solver for plain fixed points, got {built!r}")
    return TorchdeqCallable(built)


def get_deq(args: Any = None, **options: Any) -> Any:
    """An equilibrium layer of torchdeq, by its ``get_deq``, with the solvers of this library registered.

    The configuration is copied first, since ``get_deq`` of torchdeq writes the options into the one that is passed.

    Parameters
    ----------
    args
        A configuration: a mapping, a namespace or a ``DEQConfig`` of torchdeq. Default: none.
    options
        Options of torchdeq, which take precedence over ``args``.

    Returns
    -------
    torch.nn.Module
        The layer.

    Raises
    ------
    UnknownComponentError
        If torchdeq has no solver with the name ``f_solver`` or ``b_solver``; the message names the nearest.
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
