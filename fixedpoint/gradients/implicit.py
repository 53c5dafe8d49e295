r"""Implicit gradient: the implicit function theorem at the fixed point.

With ``z* = f(z*, theta)``, a cotangent ``g`` at ``z*`` and ``J = df/dz`` there,

    u = (I - J^T)^{-1} g,      dL/dtheta = u^T df(z*, theta)/dtheta

(Bai, Kolter & Koltun 2019, "Deep equilibrium models"; Krantz & Parks 2002, "The implicit function theorem".)
Nothing of the forward solve is kept but ``z*`` and one recorded evaluation, whatever the number of rounds and whoever
found it. ``u`` is itself a fixed point, ``u = J^T u + g``, and any registered solver finds it. The relative error of
the gradient follows its tolerance, beside that of the forward solve; so unless it is told another one, ``u`` is as
exact as the forward solve was asked to be, whoever asked: a layer, ``solve`` or a run file.

Second derivatives: what the backward pass returns is a function of ``g``, ``z*`` and ``theta``, and ``u`` depends on
them as a fixed point of ``K(u) = J^T u + g``, whose Jacobian is ``J^T``; so its own derivative is again an implicit
one, whose adjoint equation is ``w = J w + h``. The rule is applied to itself, to any order. Forward mode:
``dz = (I - J)^{-1} df/dtheta dtheta``, the same equation with ``J``.

Where we differ: cotangents are scaled row by row, failed rows are told, and nothing hangs on hooks, so that several
forwards before one backward and repeated backward passes each give their gradient.
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
from fixedpoint.gradients.boundary import Boundary, Edge
from fixedpoint.gradients.estimator import GradientEstimator, refuse_derivatives
from fixedpoint.gradients.recorded import Map, forward_products, products, severed, tangent_of, without_tangents
from fixedpoint.gradients.report import AdjointReport
from fixedpoint.solvers.krylov import Krylov

__all__ = ["Implicit", "followed"]

# Rounds that an adjoint equation has at least.
_ROUNDS = 50


@dataclass(frozen=True)
class Implicit(GradientEstimator):
    """The exact gradient of a fixed point, by solving the adjoint equation: constant memory, any order.

    ``solution.extras["adjoint"]`` is an ``AdjointReport``, which a backward pass fills in: the last adjoint solve, that
    of a second derivative included. In forward mode (dual tensors) it gives the tangent, and fills it in at once.
    """

    solver: Solver = option(factory=Krylov, help="solver of the adjoint equation; any but those of chains")
    termination: Termination | None = option(
        None, help="when a row of the adjoint equation is solved; by default as exactly as the forward solve"
    )
    on_failure: OnFailure = option(
        "warn", help="for rows not solved: warn, raise, or give them the one-step gradient (with the warning)"
    )

    def check(self) -> None:
        if "chain" in self.solver.needs:
            raise OptionError("Implicit", "solver", f"must not be a solver of chains, got {self.solver!r}")

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        report = AdjointReport()
        solution.extras["adjoint"] = report
        once = Evaluator(f.problem, f.yardstick, f.max_batch)  # kept for second derivatives; f holds the solve's memory
        rule = _Rule(once.value, self, self.termination or followed(f.termination), report, Ambient.of(solution.state))
        if isinstance(f.problem, HasTake) and f.max_batch is None:
            rule.problem = f.problem
        attached = _attached(rule, solution.state.detach())
        f.counts.add(once.counts)
        f.recorded, once.recorded = f.recorded if f.recorded is not None else once.recorded, None
        return attached


def followed(forward: Termination | None) -> Termination:
    """The termination of an adjoint equation that is to be as exact as a forward solve.

    Its relative tolerance, 1e-6 where that is zero, in its norm: ``atol`` has the units of the state, which say nothing
    of a cotangent. Its limit on rounds, too, but for one below 50: few rounds may be enough from a warm start, and the
    adjoint equation always begins anew.
    """
    if forward is None:
        return Termination()
    limit = forward.max_rounds and max(forward.max_rounds, _ROUNDS)
    return replace(forward, rtol=forward.rtol or Termination().rtol, atol=0.0, relative_to="state", max_rounds=limit)


@dataclass
class _Rule:
    """What a backward pass goes by: the map, how its adjoint equation is solved, and where that is reported.

    ``edge`` is what the map depends on, where that can be told, as autograd names it; ``known`` are tensors it may be.
    ``problem`` is the map as a problem, where rows can be taken from it.
    """

    f: Map
    by: Implicit
    termination: Termination
    report: AdjointReport
    ambient: Ambient
    known: tuple[Tensor, ...] = ()
    edge: Edge | None = None
    problem: HasTake | None = None

    def solved(
        self, linear: Map, g: Float[Tensor, "B D"], record: Callable[[Tensor], Map | None] | None = None
    ) -> Float[Tensor, "B D"]:
        """``(I - linear)^{-1} g``."""
        by = self.by
        return solve_adjoint(linear, g, by.solver, self.termination, by.on_failure, self.report, record)

    def transposed(self, z: Float[Tensor, "B D"], fz: Float[Tensor, "B D"]) -> Callable[[Tensor], Map | None] | None:
        """``J^T v`` at some of the rows of ``z``, by evaluating them once more; None where they cannot be taken.

        That of rows whose value is not what it is among all of them is None, too.
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
        """``f(z)``, and what it depends on beside ``z``."""
        with torch.enable_grad(), self.ambient, uncompiled(), Boundary(z, *self.known) as boundary:
            fz = self.f(z)
        return fz, boundary.edge(fz, z)

    def again(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """``f(z)``, once more.

        Raises
        ------
        RuntimeError
            Where it is not known what it depends on, or that has changed.
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
    """``value``, bit for bit, as the fixed point of ``rule.f``."""
    z = severed(value)
    fz, rule.edge = rule.recorded(z)
    if rule.edge is not None and not rule.edge and tangent_of(fz) is None:
        return value  # it depends on nothing
    outside = () if rule.edge is None else rule.edge.values()
    result: Tensor = _FixedPoint.apply(rule, value, fz, z, *outside)  # type: ignore[no-untyped-call]  # as torch leaves it
    return result


class _FixedPoint(torch.autograd.Function):
    """Its cotangent goes on through ``fz``; where that is to be differentiated in turn, straight to ``outside``."""

    @staticmethod
    def forward(ctx: Any, rule: _Rule, value: Tensor, fz: Tensor, z: Tensor, *outside: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.set_materialize_grads(False)
        answer = value.clone()
        ctx.save_for_backward(fz, z, answer, *outside)
        if forward_ad._current_level >= 0:  # what is saved for forward mode loses its graph while gradients are off
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
    """``u^T df/dtheta`` for all that ``f`` depends on, as functions of that, of ``z`` (attached) and of ``g``."""

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
    """No cotangent goes beyond these tensors, so that derivatives by them are partial ones."""
    nodes: set[Any] = {tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None}
    hooks = [node.register_prehook(lambda cotangents: (None,) * len(cotangents)) for node in nodes]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
