"""The main entry points, :func:`solve` and :func:`find_root`, for functions of tensors, arrays or floats."""

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
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.choice import solver_for
from fixedpoint.core.compiling import outside_of_graphs
from fixedpoint.core.counts import Counts
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.foreign import foreign
from fixedpoint.core.inference import ordinary, outside_of_inference_mode
from fixedpoint.core.layout import Layout, Rows
from fixedpoint.core.problem import AbilityError, FunctionProblem, Problem
from fixedpoint.core.progress import Progress
from fixedpoint.core.root import RootProblem, is_flat
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.status import ROOT_DOUBTED, Status
from fixedpoint.core.statuses import Statuses
from fixedpoint.core.termination import Termination
from fixedpoint.core.transfer import to_device
from fixedpoint.core.whole import AssumesIndependentRows, checked_jointly
from fixedpoint.core.yardstick import Yardstick
from fixedpoint.gradients.estimator import GradientEstimator
from fixedpoint.registry import Component, registry
from fixedpoint.solvers.roots import Roots

__all__ = ["find_root", "solve"]


@outside_of_graphs
@outside_of_inference_mode
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
        A function from a value like ``z0`` to one of the same structure, shapes, dtype and device; or a
        :class:`.Problem`. Its argument is valid only during the call: the function must clone what it keeps, and must
        not change its argument in place. It may return the same memory, filled anew, at every call, unless autograd
        records the iterations.
    z0
        The start: a tensor or array, a float, or tuples, lists or dicts of tensors or of arrays. Real or complex, all
        of one dtype and on one device. By default the first dimension is a batch of independent problems if every
        tensor has at least two dimensions; a vector is one problem (see ``rows``). A complex problem is solved as a
        real one with twice as many unknowns; ``f`` need not be holomorphic. None if ``f`` is a problem.
    solver
        The name of a registered solver, a mapping of ``name`` and options, or a solver. ``"auto"`` uses Anderson
        acceleration with a long memory, in turns with SQUAREM and Newton-Krylov for rows that it does not bring on. It
        solves a chain
        step by step or jointly, whichever it expects to be faster on this machine.
    gradient
        How autograd differentiates the solution: the name of a registered estimator (``"implicit"``, ``"one-step"``,
        ``"unrolled"`` ...), a mapping of ``name`` and options, or an estimator. None: the solution is a constant.
    rows
        ``"independent"``: each row of the first dimension is a problem of its own; ``f`` must not mix rows.
        ``"joint"``: the whole value is one problem. None: see ``z0``.
    termination
        The stopping rule. The arguments ``rtol``, ``atol``, ``per`` and ``max_rounds`` override its fields.
    rtol, atol
        Relative tolerance, at least 0 and less than 1 (default 1e-6), and absolute tolerance, at least 0 (default 0).
        Either a number, or a value with the structure of ``z0``: a number for each of its tensors (each tensor then
        has its own tolerance, ``per="leaf"``), or numbers of the shape of a tensor (each entry then has its own,
        ``per="entry"``).
    per
        What is compared with its tolerance: the norm of a whole ``"row"``, of each tensor of it (``"leaf"``), or each
        ``"entry"``. The last two are for states whose parts differ by orders of magnitude.
    max_rounds
        Limit on rounds, at least 1. By default the solver's own bound (a chain: N + 1), otherwise 1000.
    max_batch
        Evaluate at most this many rows in one call, at least 1. Requires a problem that declares ``HasTake``.
    on_round
        Called with a :class:`.Progress` after every round that ends with a judged point. For a chain, its ``latest`` is
        the value of the last step, shape ``(B, d)``: in diffusion, the image as it forms.
    has_aux
        Whether ``f`` returns a pair ``(value, aux)``, where ``aux`` is anything. ``solution.aux`` comes from one more
        evaluation, at exactly the returned point, which counts as a round of every row, even beyond ``max_rounds``.
        With ``gradient``, autograd records that evaluation, so that gradients flow from ``aux`` to the solution and to
        the parameters of ``f``.

    Returns
    -------
    Solution
        ``solution.z`` has the structure of ``z0``. A row that does not converge raises nothing: see
        ``solution.status``, ``solution.message`` and ``solution.raise_for_status()``.

    Raises
    ------
    TypeError, ValueError
        If an argument, or a value that ``f`` returns, is not as described. The message names what was expected and what
        was given.
    AbilityError
        If the solver does not provide what the gradient estimator requires, or the problem lacks an ability that the
        solver requires. A subclass of ``TypeError``.
    NotImplementedError
        If called within a transform of ``torch.func``.
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
    evaluator, start = Evaluator(problem, yardstick, max_batch), ordinary(problem.initial())
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
    # The iterations are recorded only for estimators that differentiate through them.
    recorded = estimator is not None and estimator.runs_forward
    with torch.set_grad_enabled(recorded and torch.is_grad_enabled()), forward_ad._set_fwd_grad_enabled(recorded):
        solution = method.solve(evaluator, start, rule, on_round)
    recorded = estimator is not None and wanted
    attached = estimator.attach(evaluator, solution) if estimator is not None and recorded else solution.state
    if evaluator.recorded is None and isinstance(problem, AssumesIndependentRows) and problem.assumes_independent_rows:
        with torch.no_grad():
            evaluator.value(solution.state)
    value, evaluator.recorded = evaluator.recorded, None  # cleared, since an estimator may keep the evaluator alive
    if value is not None:
        solution = checked_jointly(evaluator, solution, rule, value)
    solution = replace(solution, state=attached)
    if not (isinstance(problem, FunctionProblem) and problem.has_aux):
        return solution
    with torch.set_grad_enabled(recorded and torch.is_grad_enabled()), forward_ad._set_fwd_grad_enabled(recorded):
        # Cloned: what f returns as aux may be a view of its argument, and must not share memory with the solution.
        return replace(solution, aux=evaluator.aux(solution.state.clone()))


def _problem(f: Problem | Callable[[Any], Any], z0: Any, rows: Rows | None, has_aux: bool) -> Problem:
    """Return a problem unchanged, or make one of a function and its start; refuse arguments that a problem brings."""
    if isinstance(f, Chain):
        raise TypeError(f"{type(f).__name__} is a chain; its states are one problem: ChainProblem(chain, x0)")
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
    """Return the estimator that was asked for; raise ``TypeError`` unless the values are torch tensors."""
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
    solver: str | Mapping[str, Any] | Solver = "auto",
    sign: float | None = None,
    rows: Rows | None = None,
    termination: Termination | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_rounds: int | None = None,
    has_aux: bool = False,
    **options: Any,
) -> Solution:
    """Solve ``g(z) = 0``.

    The default, ``"auto"``, is the solver :class:`.Roots`: for up to 64 unknowns in a row Newton's method with whole
    Jacobians, then a trust region, then Newton's method without damping, and Broyden's method; for more unknowns
    Newton-Krylov and Broyden's method. Each gets the rows that those before it did not solve. Jacobians come from
    forward mode, or from differences where ``g`` is not differentiable. Neither the units nor the sign of ``g`` matter.
    A minimum of ``||g||`` that is no root is not reported as converged.

    Any other solver works on the fixed point of ``z + sign * g(z)``. Picard and Anderson require that this map
    contracts: use ``sign=-1`` for a ``g`` that increases with ``z``, such as the gradient of a function to be
    minimised.

    A row has converged to a root if ``||g(z)||`` is at most ``rtol`` times its value at the start *and* the step that
    the last slope of ``g`` implies is at most ``rtol * ||z||``; or if ``||g(z)|| <= atol``. The result therefore does
    not depend on the units of ``z`` and ``g``, and a ``g`` that only comes near zero, or vanishes at infinity, has no
    root. A root at ``z = 0`` requires ``atol``. The norms are those of a whole row: an equation in far smaller units
    than the others has no influence, so scale the equations to one size. ``solution.error`` is ``||g(z)||``.

    Parameters
    ----------
    g
        Function of a value like ``z0``, which returns one of the same structure, shapes, dtype and device.
    z0
        The start, as for :func:`solve`.
    solver
        ``"auto"``, see above, or a solver as for :func:`solve`.
    sign
        The factor of ``g`` in the map that solvers see: ``+1``, ``-1`` or a step size; finite and not 0. The default
        solver does not need it. By default a positive factor for each row, such that the first step is no longer than
        the start (than 1 per entry from a start at zero) and long enough to estimate a slope.
    rows, termination, rtol, atol, max_rounds, has_aux, options
        As for :func:`solve`, with numbers for ``rtol`` and ``atol``; with ``has_aux``, ``g`` returns ``(value, aux)``.

    Returns
    -------
    Solution
        As for :func:`solve`. ``solution.notes`` explains rows whose ``g`` is small but which may not be at a root.

    Raises
    ------
    TypeError, ValueError
        As for :func:`solve`, and if ``g`` is not callable, or ``sign`` is zero or not finite.
    """
    if not callable(g):
        raise TypeError(f"g must be a function, got {type(g).__name__}")
    if sign is not None and not math.isfinite(sign):
        raise ValueError(f"sign must be a finite number, got {sign}")
    if sign == 0:
        raise ValueError("sign must not be zero")
    rule, _ = _rule(Layout.of(z0, rows), termination, rtol, atol, max_rounds=max_rounds)
    problem = RootProblem(g, z0, rows, sign, rule, has_aux)
    solution = solve(problem, solver=Roots() if solver == "auto" else solver, termination=rule, **options)
    solution = _unless_flat(problem, solution)
    doubtful = ~solution.converged & (solution.relative_error <= rule.rtol)
    return replace(solution, notes={int(row): ROOT_DOUBTED for row in np.flatnonzero(doubtful)})


def _unless_flat(problem: RootProblem, solution: Solution) -> Solution:
    """Mark as stalled the converged rows whose ``g`` is zero only because it underflows."""
    zero = solution.converged & (solution.relative_error == 0)
    if not zero.any():
        return solution
    with torch.no_grad():
        flat = is_flat(problem, solution.state.detach(), to_device(zero, solution.state.device)).cpu().numpy()
    counts = solution.counts  # the test evaluated g once, without the evaluator
    counts.add(Counts(1, 1, zero.astype(np.int64), len(zero), np.zeros_like(counts.products)))
    return replace(solution, status=Statuses(solution.status).where(flat, Status.STALLED))


def _component(kind: Any, spec: Any, base: type) -> Any:
    """Make a component from a name, a mapping or an instance; raise ``TypeError`` for anything else."""
    built = registry.create(kind, spec)
    if not isinstance(built, base):
        came = f"the class {built.__name__}; call it: {built.__name__}()" if isinstance(built, type) else repr(built)
        raise TypeError(f"{kind} must be a name, a mapping or a {base.__name__}, got {came}")
    return built


def _refuse_lacking(estimator: GradientEstimator, solver: Solver) -> None:
    """Raise ``AbilityError`` unless the solver provides what the estimator requires; name the solvers that do."""
    lacking = estimator.needs - solver.provides - CHAIN_ABILITIES  # those are asked of the problem
    if lacking:
        able = [name for name, entry in registry.components("solver").items() if _provides(entry, estimator.needs)]
        raise AbilityError(
            f"gradient {estimator!r} needs of the solver {', '.join(sorted(lacking))}, which {solver!r} does not "
            f"provide; {', '.join(able)} do"
        )


def _provides(component: Component, needs: frozenset[str]) -> bool:
    """Whether a registered solver, possibly of a plugin, can be loaded and provides all of ``needs``."""
    try:
        solver = registry.create("solver", component.name)
        with foreign():
            return "chain" not in solver.needs and needs <= solver.provides
    except Exception:  # importing a plugin's module may raise anything
        return False


def _rule(
    layout: Layout, termination: Termination | None, rtol: Any, atol: Any, **overrides: Any
) -> tuple[Termination, Yardstick]:
    """Return the stopping rule and its yardstick; where there are several tolerances, the rule gets the strictest."""
    if termination is not None and not isinstance(termination, Termination):
        raise TypeError(f"termination must be a Termination, got {termination!r}; for one tolerance say rtol=")
    tolerances = {name: value for name, value in (("rtol", rtol), ("atol", atol)) if value is not None}
    tolerances = {name: float(value) if _is_scalar(value) else value for name, value in tolerances.items()}
    several = {name: value for name, value in tolerances.items() if not isinstance(value, (int, float, str))}
    given: dict[str, Any] = {key: value for key, value in overrides.items() if value is not None}
    given |= {name: value for name, value in tolerances.items() if name not in several}
    rule = termination or Termination()
    rule = replace(rule, **given) if given else rule
    yardstick = rule.yardstick
    if several:
        yardstick = yardstick.with_tolerances(layout, **several)
        strictest: dict[str, Any] = {name: float(getattr(yardstick, name).min()) for name in several}
        rule = replace(rule, per=yardstick.per, **strictest)
    return rule, yardstick


def _is_scalar(value: Any) -> bool:
    """Whether ``value`` is a single number of numpy or torch."""
    return isinstance(value, (np.generic, Tensor)) and value.ndim == 0 and value.dtype not in (bool, torch.bool)
