r"""The chain solver: a preconditioner, an accelerator, and the guard that keeps ``N`` rounds enough.

A round at the states ``X``:

    r      = F(X) - X                      all defects, in one batch
    G(X)   = X + M r                       the preconditioned map; same fixed point, any M
    X^     = accelerator(X, G(X))          Picard: X^ = G(X)
    X_new  = X^, but the first unfinished state takes its plain step, finished ones stay

After round ``k`` the first ``k`` states are exact, whatever the preconditioner and the accelerator do: their
inputs were exact when their step was taken. They are not evaluated again. (Tang et al. 2024, "Accelerating parallel
sampling of diffusion models", section 4, for the guard under Anderson.)

The accelerator ``block-secant`` corrects ``M`` itself, step by step, and so needs no other. A start other than the
constant one may know some states exactly; the rounds spent on it are among the ``N + 1``.

With the preconditioners ``diagonal`` and ``jacobian``, ``M`` is made anew from the derivatives of the unfinished steps
at the states of every round: Newton's method on the chain, exact or approximate. Beside the evaluations such a round
costs one diagonal or Jacobian a step (``counts.products``; by autograd each takes ``d`` backward passes of a step).

A step that returns NaN or Inf at states that are still wrong is no failure: its defect is left out of the sweep,
and the guard reaches it in time. A row fails only when a step is not finite at its exact input; the sequential
chain fails there, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.chains.linear import Band, Derivatives, LinearPart
from fixedpoint.chains.preconditioner import AnyPreconditioner, Identity
from fixedpoint.chains.secant import BlockSecant
from fixedpoint.chains.start import ConstantStart, NestedStart, OneJumpStart
from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.options import OptionError, option
from fixedpoint.core.problem import HasSteps
from fixedpoint.core.solver import Solver, StepSolver
from fixedpoint.solvers.anderson import Anderson
from fixedpoint.solvers.auto import Auto
from fixedpoint.solvers.picard import Picard

__all__ = ["ChainSolver", "ChainState", "as_chain_solver"]


@dataclass(frozen=True)
class ChainState:
    """``exact`` states from the start of the chain are final; ``inner`` is the accelerator's state.

    ``linear`` is None where it is to be made at the states of the round.
    """

    exact: int
    linear: LinearPart | Band | Derivatives | None
    inner: Any


@dataclass(frozen=True)
class ChainSolver(StepSolver[ChainState]):
    """Solves a chain as one joint fixed point, in at most N + 1 rounds (the last one verifies)."""

    preconditioner: AnyPreconditioner = option(
        factory=Identity,
        help="linear part of the chain: zero (Jacobi), identity (ParaDiGMS), banded, coefficient (DEQ-DDIM), gaussian, "
        "or from the derivatives of the steps: diagonal (quasi-DEER), jacobian (DEER)",
    )
    accelerator: StepSolver[Any] = option(factory=Picard, help="step solver applied to the preconditioned map")
    start: ConstantStart | OneJumpStart | NestedStart = option(
        factory=ConstantStart, help="the states before the first round"
    )

    needs = frozenset({"chain"})
    lasting = True

    def check(self) -> None:
        if isinstance(self.accelerator, ChainSolver):
            raise OptionError(type(self).__name__, "accelerator", "must not be a chain solver itself")
        if isinstance(self.accelerator, BlockSecant) and not self.preconditioner.scalar:
            raise OptionError(
                type(self).__name__,
                "accelerator",
                f"must not be block-secant with preconditioner {self.preconditioner.variant!r}: it corrects the known "
                "slopes of the steps, one number each",
            )

    @property
    def known_faults(self) -> Mapping[str, str]:
        if isinstance(self.start, ConstantStart):
            return {}
        faults = {"solved-start": "it makes its own start"}
        if isinstance(self.start, NestedStart):  # a row whose first steps fail has those of all rows taken again
            faults["nonfinite-neighbour"] = "rows share the number of states that the start knows"
        return faults

    def rounds_bound(self, f: Evaluator) -> int:
        return f.layout.blocks + 1

    def begin(self, f: Evaluator, z0: Float[Tensor, "B D"]) -> Evaluated:
        if not isinstance(f.problem, HasSteps):
            raise TypeError(f"a chain solver wants a chain (ChainProblem), got {type(f.problem).__name__}")
        if isinstance(self.start, ConstantStart):
            return _cleaned(f(z0), 0, f.layout.blocks)
        from fixedpoint.chains.chain import ChainProblem  # which adapts solvers to itself by this module

        chain: object = f.problem
        if not isinstance(chain, ChainProblem):
            raise TypeError(f"the start {self.start} wants a ChainProblem, got {type(chain).__name__}")
        begun = self.start.trajectory(chain, most=f.remaining - 1)
        f.counts.add(begun.spent)
        states, own = _blocks(begun.states, chain.length), _blocks(z0, chain.length)
        finite = states.isfinite().all(dim=2)
        exact = int(finite[:, : begun.exact].all(dim=0).cumprod(0).sum())  # a step that failed is taken again, and told
        usable = torch.where(finite.unsqueeze(2), states, own).flatten(1)
        return _cleaned(f.resume(usable, exact), exact, chain.length)

    def init(self, f: Evaluator, at: Evaluated) -> ChainState:
        exact, length = f.first, f.layout.blocks
        linear = self.preconditioner.linear_part(f, at.z, exact)
        return ChainState(exact=exact, linear=linear, inner=self.accelerator.init(f, _swept(at, linear, length)))

    def step(
        self, f: Evaluator, at: Evaluated, state: ChainState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, ChainState]:
        length = f.layout.blocks
        linear = state.linear
        if linear is None:
            linear = self.preconditioner.linear_part(f, at.z, state.exact)
        proposal: Tensor | Evaluated
        if isinstance(self.accelerator, BlockSecant):
            assert isinstance(linear, LinearPart)  # checked on construction
            states, values = _blocks(at.z, length), _blocks(at.fz, length)
            change, inner = self.accelerator.sweep(linear, states, values, state.exact, state.inner)
            proposal = at.z + change.flatten(1)
        else:
            proposal, inner = self.accelerator.step(f, _swept(at, linear, length), state.inner)
        if isinstance(proposal, Evaluated):
            raise TypeError(
                f"{type(self.accelerator).__name__} evaluates within its step and cannot accelerate a chain"
            )
        sound = _blocks(proposal, length).isfinite().all(dim=2).all(dim=1)
        guarded = _guarded(torch.where(sound.unsqueeze(1), proposal, at.fz), at, state.exact, length)
        inner = self.accelerator.reset(inner, ~sound)
        following = ChainState(state.exact + 1, None if isinstance(linear, Derivatives) else linear, inner)
        return _cleaned(f.resume(guarded, following.exact), following.exact, length), following

    def reset(self, state: ChainState, rows: Bool[Tensor, " B"]) -> ChainState:
        return replace(state, inner=self.accelerator.reset(state.inner, rows))


def as_chain_solver(solver: Solver) -> Solver:
    """``solver`` if it knows chains, else a chain solver with it as the accelerator.

    Raises
    ------
    TypeError
        When it owns its loop, so that the guard cannot be kept.
    """
    if "chain" in solver.needs and not isinstance(solver, BlockSecant):
        return solver
    if isinstance(solver, Auto):
        return ChainSolver(accelerator=Anderson(memory=2))
    if not isinstance(solver, StepSolver):
        raise TypeError(f"a chain wants a step solver, and {type(solver).__name__} owns its loop")
    return ChainSolver(accelerator=solver)


def _blocks(state: Float[Tensor, "B D"], length: int) -> Float[Tensor, "B N d"]:
    blocks: Tensor = state.unflatten(1, (length, -1))
    return blocks


def _swept(at: Evaluated, linear: LinearPart | Band | Derivatives, length: int) -> Evaluated:
    """The point with the preconditioned map's value in place of the chain's."""
    change = linear.sweep(_blocks(at.residual, length)).flatten(1)
    return replace(at, fz=at.z + change, residual=change)


def _guarded(proposal: Tensor, at: Evaluated, exact: int, length: int) -> Tensor:
    """Exact states as they are, the next one by its plain step, the rest as proposed."""
    blocks, current, stepped = (_blocks(state, length) for state in (proposal, at.z, at.fz))
    return torch.cat([current[:, :exact], stepped[:, exact : exact + 1], blocks[:, exact + 1 :]], dim=1).flatten(1)


def _cleaned(at: Evaluated, exact: int, length: int) -> Evaluated:
    """Without the defects of steps that are not finite; the row's error is infinite while there are any.

    A state so large that it has no finite norm is nothing to compare an error with.
    """
    if exact >= length:
        return at
    bad = ~_blocks(at.fz, length).isfinite().all(dim=2)
    mask = bad.unsqueeze(2)
    fz = torch.where(mask, _blocks(at.z, length), _blocks(at.fz, length)).flatten(1)
    residual = torch.where(mask, 0.0, _blocks(at.residual, length)).flatten(1)
    error = at.error.masked_fill(bad.any(dim=1, keepdim=True), torch.inf)
    scale = torch.where(at.scale.isfinite(), at.scale, 0.0)
    return replace(at, fz=fz, residual=residual, error=error, scale=scale, finite=~bad[:, exact])
