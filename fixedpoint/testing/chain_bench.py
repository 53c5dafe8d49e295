"""The benches for solvers of chains: ``ChainBench`` for joint solvers, ``SerialBench`` for the serial one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.chains.chain import Chain
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.problem import Problem
from fixedpoint.core.solution import Solution
from fixedpoint.testing.bench import Bench, NotApplicableError
from fixedpoint.testing.chains import (
    CoefficientChain,
    CountedChain,
    LinearChain,
    PoisonedChain,
    RaisingChain,
    ScaledChain,
    linear_chain,
    trajectory,
    wave_chain,
)
from fixedpoint.testing.wrappers import Tally

__all__ = ["ChainBench", "SerialBench"]


class ChainBench(Bench):
    """Linear and nonlinear chains, most of them of a dozen steps."""

    bound = 0.0

    def contractions(self, dtype: torch.dtype = torch.float64) -> dict[str, Problem]:
        start = _noise(4, 3, seed=1).to(dtype)
        return {
            "linear chain": ChainProblem(linear_chain(seed=2), start),
            "nonlinear chain": ChainProblem(wave_chain(seed=3), start),
            "chain of one step": ChainProblem(wave_chain(length=1, seed=4), start),
        }

    def answer(self, problem: Problem) -> Float[Tensor, "B D"]:
        """Return the states of the chain, computed one step after another."""
        assert isinstance(problem, ChainProblem)  # every problem of this bench is
        assert isinstance(problem.chain, Chain)
        return trajectory(problem.chain, problem.x0).flatten(1)

    def family(self) -> dict[str, Problem]:
        start = _noise(4, 3, seed=1)
        return {
            **self.contractions(),
            "long chain": self.slow(),
            "steep chain": ChainProblem(_constant_slope(1.5, length=20), start),
        }

    def slow(self, dtype: torch.dtype = torch.float64) -> Problem:
        return ChainProblem(wave_chain(length=40, seed=5), _noise(4, 3, seed=1).to(dtype))

    def solved(self) -> Problem:
        still = LinearChain(
            torch.ones(6, dtype=torch.float64, device="cpu"), torch.zeros(4, 6, 3, dtype=torch.float64, device="cpu")
        )
        return ChainProblem(still, _noise(4, 3, seed=1))

    def degenerate(self) -> dict[str, Problem]:
        start = _noise(4, 3, seed=1)
        return {
            "steps that nearly ignore their input": ChainProblem(_constant_slope(1e-8), start),
            "one unknown a step": ChainProblem(wave_chain(size=1, seed=6), start[:, :1]),
            "chain of one step": ChainProblem(wave_chain(length=1, seed=4), start),
            "chain of two steps": ChainProblem(wave_chain(length=2, seed=4), start),
        }

    def diverging(self) -> dict[str, Problem]:
        raise NotApplicableError("a chain always has a solution, and its rounds end by themselves")

    def beside_diverging(self) -> tuple[Problem, Problem, Sequence[int]]:
        chain, start = _constant_slope(1.5, length=20), _noise(4, 3, seed=1)
        overflowing = start.clone()
        overflowing[1] = 1e307  # 1.5^20 times this overflows
        return ChainProblem(chain, start), ChainProblem(chain, overflowing), (0, 2, 3)

    def scaled(self, problem: Problem, factor: float) -> Problem:
        chain, start = _parts(problem)
        return ChainProblem(ScaledChain(chain, factor), factor * start)

    def poisoned(self, problem: Problem, row: int, value: float, grace: int) -> Problem:
        chain, start = _parts(problem)
        return ChainProblem(
            PoisonedChain(chain, torch.tensor([row], device="cpu"), min(grace, chain.length - 1), value), start
        )

    def counted(self, problem: Problem) -> tuple[Problem, Tally]:
        chain, start = _parts(problem)
        tally = Tally()
        return ChainProblem(CountedChain(chain, tally), start), tally

    def raising(self, problem: Problem, error: Exception) -> Problem:
        chain, start = _parts(problem)
        return ChainProblem(RaisingChain(chain, error, grace=1), start)

    def structured(self) -> Sequence[Float[Tensor, "B D"]]:
        raise NotApplicableError("the state of a step is one tensor")

    def free_start(self) -> Float[Tensor, "B D"]:
        return _noise(4, 3, seed=1)

    def from_start(self, start: Float[Tensor, "B D"]) -> Solution:
        return self.solve(ChainProblem(wave_chain(seed=3), start))


class SerialBench(ChainBench):
    """The bench for the serial solver, which takes every step once and ignores the start and the termination."""

    def unhurried(self) -> Problem:
        raise NotApplicableError("every step is taken once, whatever the limit")

    def solved(self) -> Problem:
        raise NotApplicableError("every step is taken once, whatever the start")


def _constant_slope(slope: float, length: int = 8) -> Chain:
    base = linear_chain(length=length, seed=7)
    return LinearChain(torch.full((length,), slope, dtype=torch.float64, device="cpu"), base.shift)


def _parts(problem: Problem) -> tuple[CoefficientChain, Tensor]:
    assert isinstance(problem, ChainProblem)
    assert isinstance(problem.chain, CoefficientChain)  # every problem of this bench is
    return problem.chain, problem.x0


def _noise(rows: int, size: int, seed: int) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
