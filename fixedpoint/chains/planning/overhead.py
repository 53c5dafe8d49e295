"""Measures the overhead of a round: the time that a joint solve takes in addition to the evaluations of steps."""

from __future__ import annotations

import functools
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.chain import Chain
from fixedpoint.chains.joint.solver import BlockSecant, ChainSolver
from fixedpoint.chains.joint.start import ConstantStart
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.termination import Termination
from fixedpoint.solvers.anderson import Anderson

__all__ = ["round_overhead_seconds"]

_LENGTH, _WINDOW, _ROUNDS, _SOLVES = 16, 8, 4, 3


@dataclass(frozen=True)
class _Halving(Chain):
    """A chain whose steps cost next to nothing."""

    length: int = _LENGTH

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        return 0.5 * x


def round_overhead_seconds(x0: Float[Tensor, "B *event"], secants: bool, length: int, window: int) -> float:
    """Return the seconds of a round of states like ``x0``, with steps that cost next to nothing.

    They are measured once per shape, dtype and device, in a narrow window. Block secants pass along a window in a loop,
    so their seconds grow with it, but through a whole chain in blocks; those of Anderson's method hardly grow.

    Parameters
    ----------
    x0
        The start of a chain.
    secants
        Whether the solver is the one with block secants.
    length
        ``N``, the number of steps of the chain.
    window
        The number of steps in the window.
    """
    seconds = _measured(x0.shape, x0.dtype, x0.device, secants)
    return seconds * window / _WINDOW if secants and window < length else seconds


@functools.lru_cache(maxsize=64)
def _measured(shape: torch.Size, dtype: torch.dtype, device: torch.device, secants: bool) -> float:
    problem = ChainProblem(_Halving(), torch.ones(shape, dtype=dtype, device=device), keep="last")
    accelerator = BlockSecant() if secants else Anderson(memory=2)
    solver = ChainSolver(accelerator=accelerator, window=_WINDOW, start=ConstantStart())
    began: list[float] = []
    for _ in range(_SOLVES):
        rule = Termination(rtol=0.0, max_rounds=_ROUNDS)
        solver.solve(Evaluator(problem), problem.initial(), rule, lambda _: began.append(time.perf_counter()))
    # Every _ROUNDS-th difference spans the end of one solve and the start of the next.
    rounds = [after - before for k, (before, after) in enumerate(pairwise(began), start=1) if k % _ROUNDS]
    return statistics.median(rounds)
