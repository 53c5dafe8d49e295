r"""Chain adjoint: the exact gradient of a chain's states, in parallel rounds and bounded memory.

The backward pass solves the adjoint chain along the trajectory that was found (``fixedpoint.chains.adjoint.adjoint``),
jointly or step by step depending on the solver, to a tolerance of its own. One pass over all steps then accumulates the
gradient with respect to everything that the steps depend on: network parameters, conditioning, noise.

The general implicit gradient records all ``N`` steps at once and holds their activations. This estimator holds those of
one micro-batch.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.adjoint.adjoint import AdjointChain
from fixedpoint.chains.adjoint.affine import AffineAdjointChain
from fixedpoint.chains.adjoint.recording import recorded_constants, recorded_steps, times_rows
from fixedpoint.chains.capabilities import (
    CHAIN_ABILITIES,
    HasCoefficients,
    HasGaussianSlopes,
    HasRepresentativeSteps,
    undeclared,
)
from fixedpoint.chains.joint.solver import ChainSolver
from fixedpoint.chains.problem import ChainProblem, chain_of
from fixedpoint.chains.recurrence.affine import Affine
from fixedpoint.chains.recurrence.recurrence import Shift
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import OptionError, by_options, option
from fixedpoint.core.problem import AbilityError, Problem
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.termination import Termination
from fixedpoint.gradients.adjoint import failed_rows, report_failure, scaled_rows
from fixedpoint.gradients.ambient import Ambient
from fixedpoint.gradients.boundary import Edge
from fixedpoint.gradients.estimator import GradientEstimator, refuse_derivatives
from fixedpoint.gradients.report import AdjointReport

__all__ = ["ChainAdjoint"]

# What an adjoint chain knows where the chain that it is made of does.
_INHERITED_FROM: dict[str, type[ABC]] = {"coefficients": HasCoefficients, "gaussian-slopes": HasGaussianSlopes}
_INHERITED = frozenset(_INHERITED_FROM)


@dataclass(frozen=True)
class ChainAdjoint(GradientEstimator):
    """The exact gradient of a chain, in parallel rounds, in the memory of its states and one micro-batch of steps.

    ``solution.extras["adjoint"]`` is an ``AdjointReport``, which the backward pass fills in. Second derivatives and
    forward mode raise an error. The problem must keep all states.
    """

    solver: Solver = option(factory=ChainSolver, help="solver of the adjoint chain; serial: one step after another")
    termination: Termination = option(factory=Termination, help="when a row of the adjoint chain is solved")
    on_failure: Literal["warn", "raise"] = option("warn", help="what happens where rows are not solved")

    @by_options("trajectory")
    def needs(self) -> frozenset[str]:
        """All states of the chain, and what the solver requires that the adjoint chain takes from the chain itself."""
        return frozenset({"trajectory"}) | self.solver.needs & _INHERITED

    def check(self) -> None:
        if "chain" not in self.solver.needs:
            raise OptionError("ChainAdjoint", "solver", f"must be a solver of chains, got {self.solver!r}")
        lacking = self.solver.needs & CHAIN_ABILITIES - _INHERITED
        if lacking:
            known = f"must not require {', '.join(sorted(lacking))}, which an adjoint chain does not know"
            raise OptionError("ChainAdjoint", "solver", f"{known}; got {self.solver!r}")

    def check_problem(self, problem: Problem) -> None:
        if not isinstance(problem, ChainProblem) or problem.keep != "all":
            kept = f"{type(problem).__name__}" + (" with keep='last'" if isinstance(problem, ChainProblem) else "")
            raise AbilityError(f"gradient {self!r} requires a chain all of whose states are kept, got {kept}")
        if not isinstance(problem.recurrence, (Shift, Affine)):
            raise AbilityError(
                f"gradient 'chain-adjoint' requires an affine recurrence, got {type(problem.recurrence).__name__}; "
                "take gradient='implicit'"
            )
        for name in sorted(self.needs & _INHERITED):
            ability = _INHERITED_FROM[name]
            if not isinstance(problem.chain, ability) or (name == "coefficients" and problem.coefficients() is None):
                lacks = undeclared(problem.chain, ability, "has none")
                raise AbilityError(
                    f"the solver of gradient {self!r} requires a chain that knows its {name}, and "
                    f"{type(problem.chain).__name__} {lacks}"
                )

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        problem = chain_of(f.problem, "chain-adjoint")
        report = AdjointReport()
        solution.extras["adjoint"] = report
        steps = _representatives(problem)
        edge = _depends_on(problem, steps)
        f.counts.rounds += 1
        f.counts.evaluations += len(steps)
        f.counts.calls += problem.calls(len(problem.x0) * len(steps))
        f.counts.computed += len(problem.x0) * len(steps)
        rule = _Rule(self, problem, edge, report)
        attached: Tensor = _Attached.apply(rule, solution.state.detach(), problem.x0, *edge.values())  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return attached


def _representatives(problem: ChainProblem) -> Sequence[int]:
    """Return numbers of steps that depend on everything that any step depends on."""
    chain = problem.chain
    return chain.representative_steps() if isinstance(chain, HasRepresentativeSteps) else (0,)


def _depends_on(problem: ChainProblem, steps: Sequence[int]) -> Edge:
    """Return the tensors that steps depend on in addition to their states, found from some steps of every row.

    Raises
    ------
    RuntimeError
        When these tensors cannot be determined.
    """
    rows = torch.arange(len(problem.x0), device=problem.x0.device)
    ambient = Ambient.of(problem.x0)
    at, of = torch.tensor(steps, device=rows.device).repeat(len(rows)), rows.repeat_interleave(len(steps))
    size = problem.max_batch or len(at)
    edge: Edge | None = {}
    for some, its in zip(at.split(size), of.split(size), strict=True):
        _, _, found = recorded_steps(problem, problem.x0[its], some, its, ambient)
        edge = None if found is None or edge is None else {**edge, **found}
    index = torch.arange(problem.length, device=rows.device)
    _, other = recorded_constants(problem, index.repeat(len(rows)), rows.repeat_interleave(len(index)), ambient)
    if edge is None or other is None:
        raise RuntimeError(
            "a chain's gradient needs to know all that its steps depend on; these hide it in operations that torch "
            "cannot watch (an autograd.Function applied to what is not a leaf)"
        )
    return {**edge, **other}


@dataclass
class _Rule:
    """What a backward pass needs: the estimator, the chain, the tensors its steps depend on, and the report."""

    by: ChainAdjoint
    problem: ChainProblem
    edge: Edge
    report: AdjointReport

    def solved(
        self, states: Float[Tensor, "B D"], g: Float[Tensor, "B D"]
    ) -> tuple[AdjointChain | AffineAdjointChain, Float[Tensor, "B N *event"]]:
        """Solve the adjoint chain for the cotangent ``g`` of the states; return it and its states.

        It is solved with the rows of ``g`` scaled to unit norm.
        """
        by, problem = self.by, self.problem
        shape = (len(states), problem.length, *problem.x0.shape[1:])
        unit, size = scaled_rows(g)
        direct = unit.view(shape)
        # A loss of the last state alone is the usual case: then nothing is added along the adjoint chain.
        several = problem.length > 1 and bool((direct[:, :-1] != 0).any())
        kind = AdjointChain if problem.memoryless else AffineAdjointChain
        chain = kind(problem, states.view(shape), direct[:, -1].contiguous(), direct[:, :-1] if several else None)
        joint = ChainProblem(chain, chain.start, max_batch=problem.max_batch)
        solution = by.solver.solve(Evaluator(joint, norm=by.termination.yardstick), joint.initial(), by.termination)
        failed = failed_rows(solution)
        self._tell(solution, failed)
        return chain.scaled(size), times_rows(solution.z, size)

    def _tell(self, solution: Solution, failed: NDArray[np.bool_]) -> None:
        report = self.report
        report.backwards += 1
        report.status = solution.status
        report.rounds = solution.counts.rounds
        report.products = solution.counts.evaluations
        report.relative_error = solution.relative_error
        report.replaced = np.zeros_like(failed)
        report.message = solution.message
        report_failure(failed, report, self.by.on_failure)


class _Attached(torch.autograd.Function):
    """The states, as a function whose backward pass solves the adjoint chain.

    The gradient goes to the start and to the tensors that the steps depend on.
    """

    @staticmethod
    def forward(ctx: Any, rule: _Rule, states: Tensor, x0: Tensor, *outside: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(states, x0, *outside)
        return states.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        states, x0, *outside = ctx.saved_tensors
        with torch.no_grad():
            chain, cotangents = ctx.rule.solved(states, g.detach())
            gathered: tuple[Tensor | None, ...] = (None,) * len(outside)
            if outside:
                gathered = chain.gathered(cotangents, ctx.rule.edge)
        found = [None if each is None else refuse_derivatives(each, g, x0, *outside) for each in gathered]
        start = refuse_derivatives(chain.of_start(cotangents), g, x0, *outside) if ctx.needs_input_grad[2] else None
        return None, None, start, *found

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        raise RuntimeError(
            "gradient='chain-adjoint' has no forward mode; gradient='implicit' and gradient='unrolled' have"
        )
