r"""The chain solver: a preconditioner, an accelerator, a window and a start, in at most ``N`` rounds (see below).

A round at the states ``X``:

    r      = F(X) - X                      defects; steps whose input changed, in one batch
    G(X)   = X + M r                       same fixed point, any M
    X^     = accelerator(X, G(X))          Picard: X^ = G(X)
    X_new  = X^, but the first unfinished state takes its plain step

After round ``k`` the first ``k`` states are final, whatever the preconditioner and the accelerator do: their inputs
were final when their step was taken. They are not evaluated again. (Tang et al. 2024, "Accelerating parallel sampling
of diffusion models", section 4, for the guard under Anderson.) ``fixedpoint.chains.joint.engine`` describes which
states become final, which keep their value, and how the window slides.

The accelerator ``block-secant`` corrects ``M`` itself, step by step, so it takes the place of a step solver. A start
other than the constant one may compute some states exactly; the rounds it takes count. If it makes all of them exact,
one more round measures the result, the ``N + 1``-st.

With the preconditioners ``diagonal`` and ``jacobian``, ``M`` is made of the derivatives of the unfinished steps at the
states of every round: Newton's method on the chain, approximate or exact. In addition to the evaluations such a round
costs one diagonal or one Jacobian per step (``counts.products``; by autograd each takes ``d`` backward passes of a
step).

A step that returns NaN or Inf at states that are not final is not a failure: its defect is left out of the sweep, and
the guard reaches the step later, at its exact input. A row fails only when a step is not finite at its exact input; the
sequential chain fails there, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.calls import evaluate_pairs
from fixedpoint.chains.capabilities import HasReferenceSlopes
from fixedpoint.chains.coarse import HasExtension, HasJumps
from fixedpoint.chains.joint.accelerator import Accelerator, StepAccelerator, supports_window
from fixedpoint.chains.joint.engine import Engine
from fixedpoint.chains.joint.secant import Secants
from fixedpoint.chains.joint.start import ConstantStart, NestedStart, OneJumpStart
from fixedpoint.chains.problem import ChainProblem, chain_of
from fixedpoint.chains.slope.preconditioner import AnyPreconditioner, Identity
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.layout import Layout
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import OptionError, by_options, option
from fixedpoint.core.outcome import solution_at
from fixedpoint.core.problem import AbilityError
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.termination import Termination
from fixedpoint.solvers.anderson import Anderson
from fixedpoint.solvers.auto import Auto
from fixedpoint.solvers.picard import Picard

__all__ = ["BlockSecant", "ChainSolver", "accelerating", "joint"]


@dataclass(frozen=True)
class BlockSecant(Solver, Secants):
    """For chains: corrects the preconditioner's slope of every step by the last changes of its input and value."""

    memory: int = option(1, ge=1, help="m: number of moves of every step that are kept")

    needs = frozenset({"chain"})

    def solve(
        self,
        f: Evaluator,
        z0: Float[Tensor, "B D"],
        termination: Termination,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Solution:
        chain_of(f.problem, "block-secant")
        return ChainSolver(accelerator=self).solve(f, z0, termination, on_round)


@dataclass(frozen=True)
class ChainSolver(Solver):
    """Solves a chain as one joint fixed point, in at most N rounds (N + 1 with a start of its own)."""

    preconditioner: AnyPreconditioner = option(
        factory=Identity,
        help="linear part of the chain: zero (Jacobi), identity (ParaDiGMS), banded, coefficient (DEQ-DDIM), gaussian, "
        "or from the derivatives of the steps: diagonal (quasi-DEER), jacobian (DEER)",
    )
    accelerator: StepSolver[Any] | BlockSecant = option(
        factory=Picard, help="step solver applied to the preconditioned map, or block-secant"
    )
    window: int | None = option(
        None, ge=1, help="p: steps held and evaluated at a time, sliding along the chain; default: all of them"
    )
    start: ConstantStart | OneJumpStart | NestedStart = option(
        factory=ConstantStart, help="the states before the first round, and those that enter a window"
    )
    slack: float = option(
        0.02,
        ge=0.0,
        lt=1.0,
        help="share of the tolerance within which a state keeps its value and its step is not evaluated again",
    )

    provides = frozenset({"trajectory"})

    @by_options("chain")
    def needs(self) -> frozenset[str]:
        """``"chain"``, and the needs of the parts.

        In a window those of the start are left out, since an extension may be used in place of jumps.
        """
        start = self.start.needs if self.window is None else frozenset()
        return frozenset({"chain"}) | self.preconditioner.needs | self.accelerator.needs | start

    def check(self) -> None:
        name = type(self).__name__
        if isinstance(self.accelerator, BlockSecant) and not self.preconditioner.scalar:
            raise OptionError(
                name,
                "accelerator",
                f"must not be block-secant with preconditioner {self.preconditioner.variant!r}: it corrects the known "
                "slopes of the steps, one number each",
            )
        if isinstance(self.accelerator, StepSolver) and "chain" in self.accelerator.needs:
            kind = type(self.accelerator).__name__
            raise OptionError(name, "accelerator", f"must be a solver of any problem: {kind} solves chains itself")
        if self.window is not None and not supports_window(self.accelerator):
            kind = type(self.accelerator).__name__
            raise OptionError(name, "window", f"requires the accelerator anderson, picard or block-secant, not {kind}")

    @property
    def known_faults(self) -> Mapping[str, str]:
        return {} if isinstance(self.start, ConstantStart) else {"solved-start": "it makes its own start"}

    def solve(
        self,
        f: Evaluator,
        z0: Float[Tensor, "B D"],
        termination: Termination,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Solution:
        problem = chain_of(f.problem, "a chain solver")
        # N rounds make every state final, and one more round measures the result.
        f.limit = termination.max_rounds or problem.length + 1
        f.tracks_best = False  # the answer is the latest point: every round makes more of it final
        width = min(self.window or problem.length, problem.length)
        if width < problem.length and not problem.recurrence.slides:
            raise AbilityError(
                f"window={self.window} requires a recurrence of few pairs, and {type(problem.chain).__name__} needs "
                f"all {problem.length} of them; leave window at None"
            )
        layout = Layout.of(
            problem.x0.unsqueeze(1).expand(-1, width, *problem.x0.shape[1:]), rows="independent", blocks=width
        )
        accelerator: Accelerator[Any] = (
            self.accelerator if isinstance(self.accelerator, BlockSecant) else StepAccelerator(self.accelerator, layout)
        )
        linear = self.preconditioner.linear_part(problem, problem.x0)
        states, exact = self._begun(f, problem, z0, width)
        engine = Engine(
            f,
            problem,
            states,
            exact,
            width=width,
            slack=self.slack,
            accelerator=accelerator,
            linear=linear,
            full_jacobian=self.preconditioner.full_jacobian,
            extended=isinstance(self.start, OneJumpStart) and isinstance(problem.chain, HasExtension),
        )
        answer, rows = engine.run(termination, f.limit, on_round), engine.rows
        return solution_at(
            answer, rows.status, rows.rounds, f, self, {"step_errors": rows.step_errors, "exact": rows.exact}
        )

    def _begun(
        self, f: Evaluator, problem: ChainProblem, z0: Float[Tensor, "B D"], width: int
    ) -> tuple[Float[Tensor, "B n d"], NDArray[np.int64]]:
        """Return the initial states, and how many of the first states of each row are exact."""
        own: Tensor = z0.unflatten(1, (f.layout.blocks, -1))
        if isinstance(self.start, ConstantStart):
            return own, np.zeros(len(z0), dtype=np.int64)
        if isinstance(self.start, OneJumpStart) and width < problem.length and isinstance(problem.chain, HasExtension):
            states, known = self._jumped(f, problem, width)
        else:
            begun = self.start.trajectory(problem, accelerating, max_rounds=f.remaining - 1)
            f.counts.add(begun.spent)
            states, known = begun.states.unflatten(1, (problem.length, -1)), begun.exact
        finite = states.isfinite().all(dim=2)
        exact = finite[:, :known].cumprod(dim=1).sum(dim=1)  # a failed step is evaluated again, and judged
        x0 = problem.x0.flatten(1).unsqueeze(1)
        return torch.where(finite.unsqueeze(2), states, x0), exact.cpu().numpy()

    def _jumped(self, f: Evaluator, problem: ChainProblem, width: int) -> tuple[Float[Tensor, "B p d"], int]:
        """Return the window's states as extensions of the first step, and the number of exact ones.

        This holds ``p`` states, where :meth:`OneJumpStart.trajectory` would hold all ``N``.
        """
        x0, rows = problem.x0, torch.arange(len(problem.x0), device=problem.x0.device)
        if f.remaining < 2:  # the start would use the only round, and nothing could be judged
            return x0.flatten(1).unsqueeze(1).expand(-1, width, -1), 0
        value = evaluate_pairs(f, problem, x0, torch.zeros_like(rows), np.arange(len(x0)))
        row, target = rows.repeat_interleave(width), torch.arange(1, width + 1, device=x0.device).repeat(len(x0))
        states = problem.extend(x0[row], value[row], torch.zeros_like(row), target, row).view(len(x0), width, -1)
        return torch.cat([value.flatten(1).unsqueeze(1), states[:, 1:]], dim=1), 1


def joint(problem: ChainProblem, window: int | None = None) -> ChainSolver:
    """Return the default joint solver for a chain.

    For opaque steps it starts from one jump, if the chain provides jumps and has no start, and accelerates by
    Anderson's method. Where a chain names reference slopes, its predictions are corrected by their own secants: on
    samplers of diffusion models this is within two rounds of the best everywhere, and Anderson's mixture of whole
    states is not where noise is added (``benchmarks/sampler_rounds.py``).
    """
    if not problem.memoryless or isinstance(problem.chain, HasReferenceSlopes):
        return ChainSolver(accelerator=BlockSecant(), window=window)
    jumps = isinstance(problem.chain, HasJumps) and problem.start is None
    start = OneJumpStart() if jumps else ConstantStart()
    return ChainSolver(accelerator=Anderson(memory=2), window=window, start=start)


def accelerating(problem: ChainProblem, solver: Solver) -> Solver:
    """Return ``solver`` if it solves chains, else a joint solver that has it as its accelerator.

    For ``auto`` this is :func:`joint`.

    Raises
    ------
    AbilityError
        When the solver runs its own loop, so that the guard cannot be applied.
    """
    if isinstance(solver, BlockSecant):
        return ChainSolver(accelerator=solver)
    if "chain" in solver.needs:
        return solver
    if isinstance(solver, Auto):
        return joint(problem)
    if not isinstance(solver, StepSolver):
        raise AbilityError(f"a chain requires a step solver, and {type(solver).__name__} owns its loop")
    return ChainSolver(accelerator=solver)
