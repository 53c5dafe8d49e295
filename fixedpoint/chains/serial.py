"""The sequential solver: a chain one step after another, the reference that joint solvers are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.loop import Progress, solution_at
from fixedpoint.core.reduce import row_norms
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.status import Status
from fixedpoint.core.termination import Termination

__all__ = ["Serial"]


@dataclass(frozen=True)
class Serial(Solver):
    """Runs a chain step by step: N rounds of one evaluation each, exact by construction.

    Takes no notice of the termination; a row one of whose steps is not finite keeps its last finite state.
    """

    needs = frozenset({"chain"})

    def solve(
        self,
        f: Evaluator,
        z0: Float[Tensor, "B D"],
        termination: Termination,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Solution:
        from fixedpoint.chains.chain import ChainProblem  # which is loaded with the solvers of chains

        problem: object = f.problem
        if not isinstance(problem, ChainProblem):
            raise TypeError(f"the serial solver wants a chain, got {type(problem).__name__}")
        x = problem.x0
        sound = torch.ones(len(x), dtype=torch.bool, device=x.device)
        rows = np.arange(len(x))
        states: list[Tensor] = []
        for i in range(problem.length):
            advanced = f.pairs(problem, x, torch.full_like(problem.rows, i), rows)
            sound = sound & advanced.flatten(1).isfinite().all(dim=1)
            x = torch.where(sound.view(-1, *[1] * (x.ndim - 1)), advanced, x)
            states = [*states, x] if problem.keep == "all" else [x]
            if on_round is not None:
                on_round(Progress(i + 1, running=len(x), relative_error=float("nan"), latest=x.flatten(1)))
        z = torch.stack(states, dim=1).flatten(1)
        at = _lost(z, row_norms(x.flatten(1)).unsqueeze(1), sound)
        f.remember(at)
        status = tuple(Status.CONVERGED if good else Status.NONFINITE for good in sound.tolist())
        rounds = np.full(len(x), f.counts.rounds, dtype=np.int64)
        return solution_at(at, status, rounds, f, self)


def _lost(z: Tensor, scale: Tensor, sound: Tensor) -> Evaluated:
    """Without defects; infinitely far in the rows that are lost."""
    error = torch.zeros_like(scale).masked_fill(~sound.unsqueeze(1), torch.inf)
    return Evaluated(z, z, error, scale, sound, residual=torch.zeros_like(z))
