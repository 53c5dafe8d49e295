"""Entry points for people: :func:`solve` and :func:`find_root` on plain torch or numpy functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fixedpoint.chains.capabilities import CHAIN_ABILITIES
from fixedpoint.chains.choice import solver_for
from fixedpoint.core.compiling import outside_of_graphs
from fixedpoint.core.counts import Counts
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.layout import Layout, Rows
from fixedpoint.core.problem import AbilityError, FunctionProblem, Problem
from fixedpoint.core.progress import Progress
from fixedpoint.core.root import RootProblem, is_flat
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.status import ROOT_DOUBTED, Status
from fixedpoint.core.termination import Termination
from fixedpoint.core.transfer import to_device
from fixedpoint.core.whole import Unproven, held_against_the_whole
from fixedpoint.core.yardstick import Yardstick
from fixedpoint.gradients.estimator import GradientEstimator
from fixedpoint.registry import Component, registry

__all__ = ["find_root", "solve"]


@outside_of_graphs
def solve(
    f: Callable[[Any], Any] | Problem,
    z0: Any = None,
    *,
    solver: str | Mapping[str, Any] | Solver = "auto",
    gradient: str | Mapping[str, Any] | GradientEstimator | None = None,
    rows: Rows | None = None,
    termination: Termination | None = None,
    rtol: Any = None,
    atol: Any = None,
    per: Literal["row", "leaf", "entry"] | None = None,
    max_rounds: int | None = None,
    max_batch: int | None = None,
    on_round: Callable[[Progress], None] | None = None,
    has_aux: bool = False,
) -> Solution:
    """Solve ``z = f(z)``.

    Parameters
    ----------
    f
        A function from a value like ``z0`` to one of the same structure, shapes, dtype and device; or a problem.
        What it is given is valid during the call; it must clone what it keeps, and leave its argument as it is. It may
        fill the same memory again at every call, unless autograd records the iterations.
    z0
        The start: a tensor or array, a float, or tuples, lists or dicts of tensors or of arrays; real or complex, all
        of one dtype. By default the first dimension of states of two dimensions and more is a batch of independent
        problems; a vector is one problem (see ``rows``). A complex problem is solved as a real one of twice the
        unknowns; ``f`` need not be holomorphic.
    solver
        The name of a registered solver, a mapping of ``name`` and options, or a solver. ``"auto"``: Anderson
        acceleration with a long memory, and Newton-Krylov for the rows it does not solve; a chain step by step or
        jointly, whichever is expected to be quicker on the machine at hand.
    gradient
        How autograd passes through the solution: the name of a registered estimator (``"implicit"``, ``"one-step"``,
        ``"unrolled"`` ...), a mapping or an estimator. None: the solution is a constant.
    rows
        ``"independent"``: each row of the first dimension is a problem of its own; ``f`` must not mix rows.
        ``"joint"``: the whole value is one problem.
    termination
        The stopping rule; ``rtol``, ``atol``, ``per`` and ``max_rounds`` override its fields.
    rtol, atol
        Numbers, or values of the structure of ``z0``: for each of its tensors a number (then every tensor is held
        against its own, ``per="leaf"``), or numbers of its shape (then every entry is, ``per="entry"``).
    per
        What is held against the tolerance: the norm of a whole ``"row"``, of each tensor of it (``"leaf"``), or each
        ``"entry"``, for states that span magnitudes.
    max_batch
        Evaluate at most this many rows at once; for problems whose rows can be taken.
    on_round
        Called after every round.
    has_aux
        ``f`` returns a pair ``(value, aux)``; ``aux`` is anything. ``solution.aux`` is that of one more evaluation, at
        the very point that is returned, which is counted as a round of every row, beyond ``max_rounds`` if need be.
        With ``gradient`` autograd records it: what ``aux`` depends on, the solution included, gets its gradient.

    Returns
    -------
    Solution
        ``solution.z`` has the structure of ``z0``. Failing to converge is a status, not an exception: see
        ``solution.message`` and ``solution.raise_for_status()``.

    Raises
    ------
    TypeError, ValueError
        For a start, an option or a value of ``f`` that is not as described, naming what came and what was wanted; for
        a gradient estimator that requires of the solver what it does not provide.
    NotImplementedError
        Within a transform of ``torch.func``.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise NotImplementedError(
            "a solve cannot be transformed by torch.func (grad, jvp, vmap ...); use torch.autograd with gradient=..., "
            "in forward mode torch.autograd.forward_ad, and rows instead of vmap"
        )
    problem = _problem(f, z0, rows, has_aux)
    if on_round is not None and not callable(on_round):
        raise TypeError(f"on_round must be a function, got {type(on_round).__name__}")
    method: Solver = _component("solver", solver, Solver)
    estimator = _estimator(gradient, problem.layout)
    rule, yardstick = _rule(problem.layout, termination, rtol, atol, per=per, max_rounds=max_rounds)
    method = solver_for(problem, method)
    evaluator, start = Evaluator(problem, yardstick, max_batch), problem.initial()
    if start.is_complex():
        raise TypeError(
            "the states of a problem are real; its layout packs complex values into one (layout.pack), and so does "
            "solve(f, z0) for a function and a complex start"
        )
    evaluator.termination = rule
    wanted = torch.is_grad_enabled() or forward_ad._current_level >= 0
    if estimator is not None and wanted:
        evaluator.wanted = estimator.needs
        _refuse_lacking(estimator, method)
        estimator.check_problem(problem)
    recorded = estimator is not None and estimator.runs_forward
    with torch.set_grad_enabled(recorded and torch.is_grad_enabled()), forward_ad._set_fwd_grad_enabled(recorded):
        solution = method.solve(evaluator, start, rule, on_round)
    recorded = estimator is not None and wanted
    attached = estimator.attach(evaluator, solution) if estimator is not None and recorded else solution.state
    if evaluator.recorded is None and isinstance(problem, Unproven) and problem.unproven:
        with torch.no_grad():
            evaluator.value(solution.state)
    value, evaluator.recorded = evaluator.recorded, None  # an estimator may keep the evaluator
    if value is not None:
        solution = held_against_the_whole(evaluator, solution, rule, value)
    solution = replace(solution, state=attached)
    if not (isinstance(problem, FunctionProblem) and problem.has_aux):
        return solution
    with torch.set_grad_enabled(recorded and torch.is_grad_enabled()), forward_ad._set_fwd_grad_enabled(recorded):
        return replace(solution, aux=evaluator.aux(solution.state.clone()))


def _problem(f: Problem | Callable[[Any], Any], z0: Any, rows: Rows | None, has_aux: bool) -> Problem:
    """A problem as it is, with nothing given twice; a function with its start as one."""
    if not isinstance(f, Problem):
        if z0 is None:
            raise TypeError("solve requires a start z0 for a plain function")
        return FunctionProblem(f, z0, rows, has_aux=has_aux)
    if z0 is not None:
        raise TypeError("a problem brings its own start; leave out z0")
    if rows is not None:
        raise TypeError("a problem says itself whether its rows are independent; leave out rows")
    if has_aux:
        raise TypeError("has_aux is for plain functions; a problem says itself whether it returns more")
    return f


def _estimator(
    gradient: str | Mapping[str, Any] | GradientEstimator | None, layout: Layout
) -> GradientEstimator | None:
    """The estimator that was asked for; autograd knows nothing of other values than tensors."""
    estimator: GradientEstimator | None = (
        None if gradient is None else _component("gradient", gradient, GradientEstimator)
    )
    if estimator is not None and layout.namespace != "torch":
        number = "a complex number" if layout.is_complex else "a float"
        came = {"numpy": "numpy arrays", "python": number}[layout.namespace]
        raise TypeError(f"gradient requires a start of torch tensors, got {came}")
    return estimator


def find_root(
    g: Callable[[Any], Any],
    z0: Any,
    *,
    sign: float | None = None,
    rows: Rows | None = None,
    termination: Termination | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_rounds: int | None = None,
    has_aux: bool = False,
    **options: Any,
) -> Solution:
    """Solve ``g(z) = 0`` as the fixed point of ``z + sign * g(z)``.

    Quasi-Newton solvers (the default here is ``"broyden"``) care little for the sign; Picard and Anderson require that
    ``z + sign * g(z)`` contracts, so ``sign=-1`` for a ``g`` that increases with ``z`` (a gradient to descend).

    A row is a root where ``||g(z)||`` is within ``rtol`` of that of the start *and* the step that the last slope of
    ``g`` implies is within ``rtol`` of ``||z||``; or where ``||g(z)|| <= atol``. So neither the units of ``z`` nor
    those of ``g`` matter, and a ``g`` that only comes near zero, or vanishes at infinity, has no root. A solution at
    zero requires ``atol``. The norms are those of a row: an unknown whose equation is in far smaller units than the
    others' is not seen, so bring equations to one size. ``solution.error`` is ``||g(z)||``.

    Parameters
    ----------
    g
        Function of a value like ``z0``.
    z0
        The start.
    sign
        A factor, taken as it is: ``+1``, ``-1`` or a step size. By default +1 times what keeps the first step no longer
        than the start (than 1 an entry from a start at zero) and long enough for a slope.
    rows, termination, rtol, atol, max_rounds, has_aux, options
        As for :func:`solve`, with numbers for ``rtol`` and ``atol``; with ``has_aux``, ``g`` returns ``(value, aux)``.
    """
    if not callable(g):
        raise TypeError(f"g must be a function, got {type(g).__name__}")
    if sign is not None and not math.isfinite(sign):
        raise ValueError(f"sign must be a finite number, got {sign}")
    if sign == 0:
        raise ValueError("sign must not be zero")
    rule, _ = _rule(Layout.of(z0, rows), termination, rtol, atol, max_rounds=max_rounds)
    problem = RootProblem(g, z0, rows, sign, rule, has_aux)
    solution = solve(problem, **{"solver": "broyden", "termination": rule, **options})
    solution = _unless_flat(problem, solution)
    doubtful = ~solution.converged & (solution.relative_error <= rule.rtol)
    return replace(solution, notes={int(row): ROOT_DOUBTED for row in np.flatnonzero(doubtful)})


def _unless_flat(problem: RootProblem, solution: Solution) -> Solution:
    """Without calling a row converged whose ``g`` is zero because it has underflowed."""
    zero = solution.converged & (solution.relative_error == 0)
    if not zero.any():
        return solution
    with torch.no_grad():
        flat = is_flat(problem, solution.state.detach(), to_device(zero, solution.state.device)).cpu().numpy()
    counts = solution.counts
    counts.add(Counts(1, 1, zero.astype(np.int64), len(zero), np.zeros_like(counts.products)))
    status = tuple(Status.STALLED if lost else status for lost, status in zip(flat, solution.status, strict=True))
    return replace(solution, status=status)


def _component(kind: Any, spec: Any, base: type) -> Any:
    built = registry.create(kind, spec)
    if not isinstance(built, base):
        came = f"the class {built.__name__}; call it: {built.__name__}()" if isinstance(built, type) else repr(built)
        raise TypeError(f"{kind} must be a name, a mapping or a {base.__name__}, got {came}")
    return built


def _refuse_lacking(estimator: GradientEstimator, solver: Solver) -> None:
    lacking = estimator.needs - solver.provides - CHAIN_ABILITIES  # the problem has these, or not
    if lacking:
        able = [name for name, entry in registry.components("solver").items() if _provides(entry, estimator.needs)]
        raise AbilityError(
            f"gradient {estimator!r} needs of the solver {', '.join(sorted(lacking))}, which {solver!r} does not "
            f"provide; {', '.join(able)} do"
        )


def _provides(component: Component, needs: frozenset[str]) -> bool:
    """Whether a registered solver, a stranger's among them, can be loaded and provides all that."""
    try:
        solver = registry.create("solver", component.name)
        return "chain" not in solver.needs and needs <= solver.provides
    except Exception:  # a stranger's module may raise anything as it is imported
        return False


def _rule(
    layout: Layout, termination: Termination | None, rtol: Any, atol: Any, **overrides: Any
) -> tuple[Termination, Yardstick]:
    """The stopping rule, and what it measures with; of several tolerances the rule has the strictest."""
    if termination is not None and not isinstance(termination, Termination):
        raise TypeError(f"termination must be a Termination, got {termination!r}; for one tolerance say rtol=")
    tolerances = {name: value for name, value in (("rtol", rtol), ("atol", atol)) if value is not None}
    tolerances = {name: float(value) if _is_scalar(value) else value for name, value in tolerances.items()}
    several = {name: value for name, value in tolerances.items() if not isinstance(value, (int, float, str))}
    given: dict[str, Any] = {key: value for key, value in overrides.items() if value is not None}
    given |= {name: value for name, value in tolerances.items() if name not in several}
    rule = replace(termination or Termination(), **given)
    yardstick = rule.yardstick
    if several:
        yardstick = yardstick.with_tolerances(layout, **several)
        strictest: dict[str, Any] = {name: float(getattr(yardstick, name).min()) for name in several}
        rule = replace(rule, per=yardstick.per, **strictest)
    return rule, yardstick


def _is_scalar(value: Any) -> bool:
    """Whether it is one number of a library."""
    return isinstance(value, (np.generic, Tensor)) and value.ndim == 0 and value.dtype not in (bool, torch.bool)
