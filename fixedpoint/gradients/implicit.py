r"""Implicit gradient: the implicit function theorem at the fixed point.

With ``z* = f(z*, theta)``, a cotangent ``g`` at ``z*`` and ``J = df/dz`` there,

    u = (I - J^T)^{-1} g,      dL/dtheta = u^T df(z*, theta)/dtheta

(Bai, Kolter & Koltun 2019, "Deep equilibrium models"; Krantz & Parks 2002, "The implicit function theorem".)
Of the forward solve only ``z*`` and one recorded evaluation are kept, whatever the number of rounds and the solver.
``u`` is itself a fixed point, ``u = J^T u + g``, and any registered solver finds it. The relative error of the gradient
depends on the tolerance of ``u`` and on that of the forward solve. By default ``u`` is therefore solved to the
tolerance that the forward solve was given by a layer, ``solve`` or a run file.

Second derivatives: the result of the backward pass is a function of ``g``, ``z*`` and ``theta``. ``u`` depends on them
as a fixed point of ``K(u) = J^T u + g``, whose Jacobian is ``J^T``. The derivative of ``u`` is therefore an implicit
gradient as well, with the adjoint equation ``w = J w + h``. The rule applies to itself in this way, to any order.
Forward mode solves the same equation with ``J``: ``dz = (I - J)^{-1} df/dtheta dtheta``.

Where we differ: cotangents are scaled row by row, and rows that fail are reported. No hooks stay registered, so that
several forward passes before one backward pass, and repeated backward passes, each give the right gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from fixedpoint.core.compiling import uncompiled
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import OptionError, option
from fixedpoint.core.problem import HasTake
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.termination import Termination
from fixedpoint.core.whole import same_rows
from fixedpoint.gradients.adjoint import OnFailure, solve_adjoint
from fixedpoint.gradients.ambient import Ambient
from fixedpoint.gradients.boundary import Boundary, Edge, NamesTensors
from fixedpoint.gradients.estimator import GradientEstimator, refuse_derivatives
from fixedpoint.gradients.recorded import Map, forward_products, products, severed, tangent_of, without_tangents
from fixedpoint.gradients.report import AdjointReport
from fixedpoint.solvers.krylov import Krylov

__all__ = ["Implicit", "adjoint_termination"]

# Smallest limit on the rounds of an adjoint equation: it has no warm start, even if the forward solve had one.
_ROUNDS = 50


@dataclass(frozen=True)
class Implicit(GradientEstimator):
    """The exact gradient of a fixed point, by solving the adjoint equation: constant memory, derivatives of any order.

    ``solution.extras["adjoint"]`` is an ``AdjointReport``. Every backward pass fills it in again, those of second
    derivatives included, so it describes the last adjoint solve. In forward mode (dual tensors) the tangent is computed
    and the report filled in as soon as the solution is returned.
    """

    solver: Solver = option(factory=Krylov, help="solver of the adjoint equation; any but those of chains")
    termination: Termination | None = option(
        None, help="stopping rule of the adjoint equation; by default as exact as the forward solve"
    )
    on_failure: OnFailure = option(
        "warn", help="for rows that are not solved: warn, raise, or use the one-step gradient (and warn)"
    )

    def check(self) -> None:
        if "chain" in self.solver.needs:
            raise OptionError("Implicit", "solver", f"must not be a solver of chains, got {self.solver!r}")

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        report = AdjointReport()
        solution.extras["adjoint"] = report
        # A separate evaluator: it lives on for second derivatives, and f would keep the memory of the solve alive.
        once = Evaluator(f.problem, f.yardstick, f.max_batch)
        rule = _Rule(
            once.value, self, self.termination or adjoint_termination(f.termination), report, Ambient.of(solution.state)
        )
        if isinstance(f.problem, HasTake) and f.max_batch is None:
            rule.problem = f.problem
        if isinstance(f.problem, NamesTensors):
            rule.names = tuple(f.problem.tensors())
        attached = _attached(rule, solution.state.detach())
        f.counts.add(once.counts)
        # The value of all rows at the answer, against which the solve checks rows that were evaluated separately.
        f.recorded, once.recorded = f.recorded if f.recorded is not None else once.recorded, None
        return attached


def adjoint_termination(forward: Termination | None) -> Termination:
    """Return the termination of an adjoint equation that is to be as exact as a forward solve.

    It has the norm and the relative tolerance of the forward solve, or 1e-6 where that tolerance is zero. It has no
    absolute tolerance: that of the forward solve is in units of the state, which do not apply to a cotangent. It has
    the limit on rounds of the forward solve, but at least 50: few rounds may be enough from a warm start, and an
    adjoint equation has none.
    """
    if forward is None:
        return Termination()
    limit = forward.max_rounds and max(forward.max_rounds, _ROUNDS)
    return replace(forward, rtol=forward.rtol or Termination().rtol, atol=0.0, relative_to="state", max_rounds=limit)


@dataclass
class _Rule:
    """Everything a backward pass needs: the map, how to solve its adjoint equation, and the report to fill in.

    ``edge`` contains the tensors that the map depends on, by their autograd nodes; None if they cannot be determined.
    ``known`` are tensors that count as such dependencies wherever they occur, and so do those that the map ``names``;
    None if it names none. ``problem`` is the map as a problem, if rows can be taken from it.
    """

    f: Map
    by: Implicit
    termination: Termination
    report: AdjointReport
    ambient: Ambient
    known: tuple[Tensor, ...] = ()
    edge: Edge | None = None
    problem: HasTake | None = None
    names: tuple[Tensor, ...] | None = None

    def solved(
        self, linear: Map, g: Float[Tensor, "B D"], record: Callable[[Tensor], Map | None] | None = None
    ) -> Float[Tensor, "B D"]:
        """``(I - linear)^{-1} g``."""
        by, narrow = self.by, self.ambient.dtype
        noise = 0.0 if narrow is None else torch.finfo(narrow).eps
        return solve_adjoint(linear, g, by.solver, self.termination, by.on_failure, self.report, record, noise)

    def transposed(self, z: Float[Tensor, "B D"], fz: Float[Tensor, "B D"]) -> Callable[[Tensor], Map | None] | None:
        """Return a function that gives ``J^T v`` for some rows of ``z`` by evaluating these rows again, or None.

        It is None if rows cannot be taken. The function returns None for rows whose value, evaluated without the other
        rows, differs from their value in the whole batch.
        """
        problem = self.problem
        if problem is None:
            return None

        def record(rows: Tensor) -> Map | None:
            part = problem.take(rows)
            with torch.enable_grad(), self.ambient, uncompiled():
                at = severed(z.detach()[rows])
                value = part(at)
                same = same_rows(value.detach(), fz.detach()[rows])
            return (lambda v: products(value, at, v)) if bool(same.all()) else None

        return record

    def recorded(self, z: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B D"], Edge | None]:
        """``f(z)``, recorded by autograd, and the tensors other than ``z`` that it depends on."""
        if self.names is not None:
            with torch.enable_grad(), self.ambient, uncompiled():
                named = Boundary(z, *self.known, *self.names)
                fz = self.f(z)
            edge = named.edge(fz, z)
            if edge is not None:
                return fz, edge
            self.names = None  # it depends on more: evaluated once more, and watched
        with torch.enable_grad(), self.ambient, uncompiled(), Boundary(z, *self.known) as boundary:
            fz = self.f(z)
        return fz, boundary.edge(fz, z)

    def again(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Evaluate and record ``f(z)`` again.

        Raises
        ------
        RuntimeError
            If the tensors that ``f`` depends on cannot be determined, or differ from those of the first evaluation.
        """
        fz, edge = self.recorded(z)
        if self.edge is None or edge is None or set(edge) != set(self.edge):
            raise RuntimeError(
                "second derivatives of an implicit gradient need to know all that f depends on; this f hides it in "
                "operations that torch cannot watch (an autograd.Function applied to what is not a leaf), or depends "
                "on other tensors each time"
            )
        return fz


def _attached(rule: _Rule, value: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """``value``, bit for bit, with the derivatives of a fixed point of ``rule.f``."""
    z = severed(value)
    fz, rule.edge = rule.recorded(z)
    if rule.edge is not None and not rule.edge and tangent_of(fz) is None:
        return value  # the map depends on no differentiable tensor
    outside = () if rule.edge is None else rule.edge.values()
    result: Tensor = _FixedPoint.apply(rule, value, fz, z, *outside)  # type: ignore[no-untyped-call]  # as torch leaves it
    return result


class _FixedPoint(torch.autograd.Function):
    """The fixed point as an autograd function.

    A first derivative sends the cotangent ``u`` on through the recorded ``fz``. Where autograd records the backward
    pass for a second derivative, the gradients of ``outside`` are returned directly, as differentiable functions.
    """

    @staticmethod
    def forward(ctx: Any, rule: _Rule, value: Tensor, fz: Tensor, z: Tensor, *outside: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.set_materialize_grads(False)
        answer = value.clone()
        ctx.save_for_backward(fz, z, answer, *outside)
        if forward_ad._current_level >= 0:  # saved tensors have no graph here, where gradients are off
            ctx.recorded = fz, z
        return answer

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        fz, z, answer, *outside = ctx.saved_tensors
        direct: tuple[Tensor | None, ...] = (None,) * len(outside)
        u = None
        if g is not None:
            u = ctx.rule.solved(lambda v: products(fz, z, v), g, ctx.rule.transposed(z, fz))
            if torch.is_grad_enabled():  # autograd is recording a graph for second derivatives
                direct, u = _differentiable(ctx.rule, g, u, answer, outside), None
        return None, None, u, None, *direct

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        fz, z = ctx.recorded
        moved = torch.zeros_like(fz) if tangents[2] is None else tangents[2]
        with without_tangents():
            tangent: Tensor = ctx.rule.solved(forward_products(fz, z), moved)
        return refuse_derivatives(tangent, moved)


def _differentiable(
    rule: _Rule, g: Float[Tensor, "B D"], u: Float[Tensor, "B D"], z: Float[Tensor, "B D"], outside: list[Tensor]
) -> tuple[Tensor | None, ...]:
    """``u^T df/dtheta`` for every tensor that ``f`` depends on, differentiable by these, by ``z`` and by ``g``."""

    def adjoint(v: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        (transposed,) = torch.autograd.grad(
            rule.again(z), z, v, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return transposed + g

    attached = _attached(_Rule(adjoint, rule.by, rule.termination, rule.report, rule.ambient, known=(z, g)), u)
    fz = rule.again(z)
    with _cut((z, *outside)):
        return torch.autograd.grad(fz, outside, attached, create_graph=True, allow_unused=True)


@contextmanager
def _cut(tensors: Iterable[Tensor]) -> Iterator[None]:
    """A context in which no cotangent passes beyond these tensors, so that derivatives by them are partial."""
    nodes: set[Any] = {tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None}
    hooks = [node.register_prehook(lambda cotangents: (None,) * len(cotangents)) for node in nodes]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
