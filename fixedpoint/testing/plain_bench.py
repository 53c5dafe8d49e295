"""The bench for solvers of general fixed-point problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.api import solve
from fixedpoint.core.problem import Problem
from fixedpoint.core.solution import Solution
from fixedpoint.testing.bench import Bench
from fixedpoint.testing.problems import (
    Affine,
    Constant,
    Cosine,
    HEquation,
    Hopeless,
    KnownProblem,
    PeriodTwo,
    TakeableProblem,
    affine_contraction,
    tanh_cell,
)
from fixedpoint.testing.wrappers import Counted, Mixed, Opaque, Poisoned, Raising, Scaled, Tally, Walled

__all__ = ["PlainBench"]

_MILD = (0.7, 0.5, 0.2, -0.1, -0.3, -0.5)


class PlainBench(Bench):
    """Affine maps, tanh cells, cosines, the H-equation, and problems without a solution."""

    bound = 0.8

    def contractions(self, dtype: torch.dtype = torch.float64) -> dict[str, Problem]:
        return {
            "symmetric affine map": affine_contraction(_MILD, seed=1).astype(dtype),
            "affine map that is not normal": affine_contraction(_MILD, normal=False, bound=0.8, seed=2).astype(dtype),
            "tanh cell": tanh_cell(gain=0.8, seed=3).astype(dtype),
        }

    def answer(self, problem: Problem) -> Float[Tensor, "B D"]:
        assert isinstance(problem, KnownProblem)  # the contractions above are
        return problem.solution

    def family(self) -> dict[str, Problem]:
        c = torch.tensor([[0.5], [0.9], [0.99], [1.0 - 1e-8]], dtype=torch.float64, device="cpu")
        ones = torch.ones(4, 32, dtype=torch.float64, device="cpu")
        return {
            **self.contractions(),
            "slow affine map": self.slow(),
            "affine map with an eigenvalue of 3": affine_contraction((3.0, 0.5, -0.5), seed=4),
            "cosine": Cosine(_noise(4, 3, seed=5)),
            "H-equation": HEquation(ones, c),
            "map without a fixed point": Hopeless(_noise(4, 2, seed=6)),
        }

    def slow(self, dtype: torch.dtype = torch.float64) -> Problem:
        spectrum = torch.linspace(-0.9, 0.99, 24, device="cpu").tolist()
        return affine_contraction(spectrum, normal=False, bound=0.995, seed=7).astype(dtype)

    def solved(self) -> Problem:
        noise = _noise(4, 6, seed=8)
        return Constant(noise, noise.clone())

    def degenerate(self) -> dict[str, Problem]:
        start, target = _noise(4, 5, seed=9), _noise(4, 5, seed=10)
        return {
            "constant map": Constant(start, target),
            "unknowns solved from the start": self._partly_solved(),
            "period two": PeriodTwo(start, target),
            "one unknown": Cosine(start[:, :1]),
            "two unknowns": affine_contraction((0.6, -0.4), seed=11),
            "equal unknowns": Cosine(torch.full_like(start, 0.5)),
        }

    def diverging(self) -> dict[str, Problem]:
        return {
            "map without a fixed point": Hopeless(_noise(4, 2, seed=6)),
            "map without a fixed point, far out": Hopeless(1e3 * _noise(4, 2, seed=6)),
            "affine map with eigenvalues of 3": affine_contraction((3.0,) * 6, seed=12),
        }

    def beside_diverging(self) -> tuple[Problem, Problem, Sequence[int]]:
        whole = affine_contraction(_MILD, seed=1)
        mask = torch.tensor([False, True, False, True], device="cpu")
        return whole, Mixed(whole, Hopeless(torch.ones_like(whole.start)), mask), (0, 2)

    def scaled(self, problem: Problem, factor: float) -> Problem:
        return Scaled(_takeable(problem), factor)

    def poisoned(self, problem: Problem, row: int, value: float, grace: int) -> Problem:
        mask = torch.arange(problem.layout.rows, device="cpu") == row
        return Poisoned(_takeable(problem), mask, value, grace)

    def walled(self) -> Problem:
        """Return a function whose domain plain iteration leaves."""
        return Walled(affine_contraction((3.0, 0.5, -0.5), seed=4), 10.0)

    def counted(self, problem: Problem) -> tuple[Problem, Tally]:
        tally = Tally()
        return Counted(_takeable(problem), tally), tally

    def opaque(self, problem: Problem) -> Problem:
        """Return the problem with an operation that has no forward mode."""
        return Opaque(_takeable(problem))

    def raising(self, problem: Problem, error: Exception) -> Problem:
        return Raising(_takeable(problem), error, grace=1)

    def structured(self) -> Sequence[Float[Tensor, "B D"]]:
        problem = tanh_cell(gain=0.8, seed=3)

        def pieces(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return z[:, 0], z[:, 1:3], z[:, 3:].reshape(-1, 3, 1)

        def raveled(parts: Any) -> Tensor:
            return torch.cat([part.reshape(4, -1) for part in parts], dim=1)

        def of_dict(z: dict[str, Tensor]) -> dict[str, Tensor]:
            return dict(zip("abc", pieces(problem(raveled(z.values()))), strict=True))

        start = problem.initial()
        solutions = [
            solve(problem, solver=self.solver),
            solve(problem.__call__, start, solver=self.solver, rows="independent"),
            solve(lambda z: pieces(problem(raveled(z))), pieces(start), solver=self.solver, rows="independent"),
            solve(of_dict, dict(zip("abc", pieces(start), strict=True)), solver=self.solver, rows="independent"),
        ]
        return [solution.state for solution in solutions]

    def free_start(self) -> Float[Tensor, "B D"]:
        return self._free().initial()

    def from_start(self, start: Float[Tensor, "B D"]) -> Solution:
        return self.solve(self._free().starting_at(start))

    def _partly_solved(self) -> Affine:
        """Return a diagonal map, two of whose unknowns start and stay at zero."""
        matrix = torch.diag(torch.tensor([0.6, 0.0, -0.4, 0.5], dtype=torch.float64, device="cpu")).expand(4, -1, -1)
        offset = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64, device="cpu").expand(4, -1)
        solution = offset / (1 - matrix.diagonal(dim1=1, dim2=2))
        return Affine(torch.zeros_like(offset), solution, matrix, offset)

    def _free(self) -> Affine:
        return affine_contraction(_MILD, seed=1)


def _takeable(problem: Problem) -> TakeableProblem:
    assert isinstance(problem, TakeableProblem)  # every problem of this bench is
    return problem


def _noise(rows: int, size: int, seed: int) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
