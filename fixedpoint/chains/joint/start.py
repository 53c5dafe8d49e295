"""Starts: options that make the initial trajectory of a joint solve, and count its cost."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.chains.coarse import evenly_kept
from fixedpoint.chains.problem import ChainProblem, require_memoryless
from fixedpoint.core.counts import Counts
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import OptionError, Options, by_options, option
from fixedpoint.core.solver import Solver
from fixedpoint.core.termination import Termination
from fixedpoint.solvers.picard import Picard

__all__ = ["ConstantStart", "InitialTrajectory", "NestedStart", "OneJumpStart", "Start"]


# Returns the solver to use on a chain for any solver, including one that does not know chains.
Adapt = Callable[[ChainProblem, Solver], Solver]


class InitialTrajectory(NamedTuple):
    """An initial trajectory.

    Attributes
    ----------
    states
        Shape ``(B, N d)``: all states of the chain, flattened.
    spent
        The counts of rounds, calls and evaluations that the trajectory took.
    exact
        How many of the first states equal those of the serial chain, in every row.
    """

    states: Float[Tensor, "B D"]
    spent: Counts
    exact: int = 0


class Start(Options, ABC):
    """Base class of the options that make an initial trajectory."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Abilities that a chain of any length must have (``fixedpoint.chains.capabilities.CHAIN_ABILITIES``)."""

    @abstractmethod
    def trajectory(self, problem: ChainProblem, adapt: Adapt, max_rounds: int = sys.maxsize) -> InitialTrajectory:
        """Return all states of the chain, to start from.

        Parameters
        ----------
        problem
            The chain.
        adapt
            Returns the solver to use on a chain for any solver. A start that solves shorter chains uses it.
        max_rounds
            The largest number of rounds that the start may take.

        Raises
        ------
        AbilityError
            When the chain lacks an ability that the start requires, or the solver cannot solve a shorter chain.
        """


@dataclass(frozen=True)
class ConstantStart(Start):
    """The problem's own start: the trajectory it was given, or every state equal to ``x_0``."""

    variant = "constant"

    def trajectory(self, problem: ChainProblem, adapt: Adapt, max_rounds: int = sys.maxsize) -> InitialTrajectory:
        return InitialTrajectory(problem.initial(), _spent(problem))


@dataclass(frozen=True)
class OneJumpStart(Start):
    """Every state as the one jump from ``x_0`` to it: one round with one evaluation per row.

    That evaluation also gives the first step, which is not evaluated again.
    """

    variant = "one-jump"
    needs = frozenset({"jumps"})

    def trajectory(self, problem: ChainProblem, adapt: Adapt, max_rounds: int = sys.maxsize) -> InitialTrajectory:
        if max_rounds < 1:
            return InitialTrajectory(problem.initial(), _spent(problem))
        rows = len(problem.x0)
        # A chain with a memory needs the prediction itself, too, so it evaluates it again.
        exact = 1 if problem.memoryless else 0
        return InitialTrajectory(
            problem.jumps(), _spent(problem, rounds=1, calls=problem.calls(rows), evaluations=1), exact=exact
        )


@dataclass(frozen=True)
class NestedStart(Start):
    """Solves shorter chains first, each started from the one before, and interpolates the last to the whole chain.

    The number of rounds hardly depends on the length of a chain, so the first rounds, on few steps, cost little. The
    defects of the last round of a level are carried along it once more before it is interpolated. Levels that are not
    shorter than the chain are skipped.

    In parallel with every round of a shorter chain, the chain itself takes one step. That step waits for no other
    evaluation, so it costs one evaluation and no round, and the rounds of the whole solve stay within those of a solve
    without this start.
    """

    variant = "nested"

    steps: int | tuple[int, ...] = option(50, help="steps of the coarse chain, or of several, coarsest first")
    rounds: int = option(5, ge=1, help="rounds on each coarse chain")
    begin: ConstantStart | OneJumpStart = option(factory=ConstantStart, help="start of the coarsest chain")
    solver: Solver = option(factory=Picard, help="solver of the coarse chains; a step solver becomes their accelerator")

    def check(self) -> None:
        levels = self.levels
        if not levels or levels[0] < 1 or list(levels) != sorted(set(levels)):
            raise OptionError(
                type(self).__name__, "steps", f"must be numbers of steps, at least 1 and increasing, got {self.steps!r}"
            )

    @by_options()
    def needs(self) -> frozenset[str]:
        """The needs of ``begin``. Coarse chains are required only where the chain is longer than a level."""
        return self.begin.needs

    @property
    def levels(self) -> tuple[int, ...]:
        """Numbers of steps of the shorter chains, coarsest first."""
        return (self.steps,) if isinstance(self.steps, int) else self.steps

    def trajectory(self, problem: ChainProblem, adapt: Adapt, max_rounds: int = sys.maxsize) -> InitialTrajectory:
        require_memoryless(problem, "a nested start")
        states, spent, exact = self.begin.trajectory(problem, adapt, max_rounds)
        length = problem.length
        for count in (level for level in self.levels if level < length and spent.rounds < max_rounds):
            kept = evenly_kept(length, count)
            coarse = problem.coarse(kept)
            begin = states.unflatten(1, (length, -1))[:, kept - 1].flatten(1)
            rule = Termination(rtol=0.0, max_rounds=min(self.rounds, max_rounds - spent.rounds))
            found = adapt(coarse, self.solver).solve(Evaluator(coarse), begin, rule)
            defects = (found.fstate - found.state).unflatten(1, (count, -1))
            # The last round of a level has defects that no round follows: sweep them with identity slopes.
            reached = found.state + defects.cumsum(dim=1).flatten(1)
            states = problem.interpolate(reached.view(-1, count, *problem.x0.shape[1:]), kept)
            spent.add(found.counts)
        # One step per round spent so far: they run in parallel with these rounds and add none.
        steps = range(exact, min(spent.rounds, length))
        spent.add(_spent(problem, calls=len(steps) * problem.calls(len(problem.x0)), evaluations=len(steps)))
        return InitialTrajectory(_advanced(problem, states, steps), spent, exact=steps.stop)


def _advanced(problem: ChainProblem, states: Float[Tensor, "B D"], steps: range) -> Float[Tensor, "B D"]:
    """Take these steps one after another and return the trajectory with their results in place."""
    blocks = states.unflatten(1, (problem.length, -1))
    x = problem.x0 if steps.start == 0 else blocks[:, steps.start - 1].reshape(problem.x0.shape)
    row = torch.arange(len(x), device=x.device)
    reached = []
    for step in steps:
        x = problem.pairs(x, torch.full_like(problem.rows, step), row)
        reached.append(x.flatten(1))
    if not reached:
        return states
    found = torch.cat([blocks[:, : steps.start], torch.stack(reached, dim=1), blocks[:, steps.stop :]], dim=1)
    return found.flatten(1)


def _spent(problem: ChainProblem, rounds: int = 0, calls: int = 0, evaluations: int = 0) -> Counts:
    rows = len(problem.x0)
    return Counts(
        rounds=rounds,
        calls=calls,
        evaluations=np.full(rows, evaluations, dtype=np.int64),
        computed=rows * evaluations,
        products=np.zeros(rows, dtype=np.int64),
    )
