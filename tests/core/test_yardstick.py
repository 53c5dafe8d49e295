"""Tolerances for the whole row, for every tensor of it, or for every entry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fixedpoint import Picard, Termination, solve
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.layout import Layout
from fixedpoint.core.options import OptionError
from fixedpoint.core.problem import FunctionProblem
from fixedpoint.core.yardstick import Yardstick
from fixedpoint.testing.problems import affine_contraction

RATES = torch.tensor([[0.3, 0.9, 0.9, 0.99]], dtype=torch.float64)
SIZES = torch.tensor([[1e40, 1.0, 1e-20, 1e-47]], dtype=torch.float64)
START = torch.zeros(1, 4, dtype=torch.float64)


def spanning(z: Tensor) -> Tensor:
    """Entries over 87 orders of magnitude; the smaller, the slower. The solution is ``SIZES``."""
    return RATES * z + (1 - RATES) * SIZES


@pytest.mark.parametrize("solver", ["picard", "auto", "broyden", "newton-krylov"])
def test_an_entry_of_a_state_that_spans_magnitudes_is_right_when_asked(solver: str) -> None:
    """Entry by entry the answer is as near as the residual and the rate say: ``residual / (1 - rate)``."""
    solution = solve(spanning, START, solver=solver, per="entry", rtol=1e-6, max_rounds=5000)
    off = (solution.z / SIZES - 1).abs()
    if solution.converged.all():
        assert bool((off <= 1.01e-6 / (1 - RATES)).all())
    else:
        assert solver != "picard"
        assert float(solution.relative_error.max()) > 1e-6


def test_by_row_the_largest_entries_decide() -> None:
    solution = solve(spanning, START, solver="picard", rtol=1e-6)
    assert solution.converged.all()
    assert float((solution.z / SIZES - 1).abs().max()) > 0.5


def test_scalings_of_an_optimal_transport_are_right_in_every_row() -> None:
    """Sinkhorn's scalings: held against the whole, rows of the plan may be far too heavy."""
    rng = np.random.default_rng(2)
    x, y = np.sort(rng.uniform(size=12)), np.sort(rng.uniform(size=12))
    kernel, weight = np.exp(-((x[:, None] - y) ** 2) / 4e-3), np.full(12, 1 / 12)

    def f(z: tuple[Any, Any]) -> tuple[Any, Any]:
        u = weight / (kernel @ z[1])
        return u, weight / (kernel.T @ u)

    solution = solve(f, (np.ones(12), np.ones(12)), solver="picard", per="entry", rtol=1e-7, max_rounds=20000)
    u, v = solution.z
    assert solution.converged.all()
    assert u.max() / u.min() > 1e30
    assert np.abs((u[:, None] * kernel * v).sum(1) / weight - 1).max() < 1e-6
    assert solution.error.shape == (1, 24)


def leaves(z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return 0.3 * z[0] + 1e8, 0.9 * z[1] + 1e-8


PAIR = (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64))


def test_every_tensor_against_its_own_norm() -> None:
    whole = solve(leaves, PAIR, solver="picard", rtol=1e-6)
    each = solve(leaves, PAIR, solver="picard", per="leaf", rtol=1e-6)
    assert whole.counts.rounds < each.counts.rounds
    assert float((whole.z[1] / 1e-7 - 1).abs().max()) > 1e-2
    assert float((each.z[1] / 1e-7 - 1).abs().max()) < 1.1e-5
    assert each.error.shape == (2, 2)
    residual = [fz - z for z, fz in zip(each.z, each.fz, strict=True)]
    assert torch.allclose(each.error, torch.stack([part.norm(dim=1) for part in residual], dim=1))
    assert torch.allclose(each.scale, torch.stack([part.norm(dim=1) for part in each.fz], dim=1))
    assert np.allclose(each.relative_error, (each.error / each.scale).amax(1))


GIVEN = {
    "a number for each tensor": ((1e-3, 1e-8), "leaf"),
    "numbers of numpy": ((np.float32(1e-3), np.float64(1e-8)), "leaf"),
    "one for each entry": ((torch.full((2, 3), 1e-3), torch.full((2, 1), 1e-8)), "entry"),
    "both": ((1e-3, np.full((2, 1), 1e-8)), "entry"),
}


@pytest.mark.parametrize("name", GIVEN)
def test_tolerances_in_the_structure_of_the_start(name: str) -> None:
    rtol, per = GIVEN[name]
    solution = solve(leaves, PAIR, solver="picard", rtol=rtol)
    assert solution.converged.all()
    assert solution.error.shape[1] == (2 if per == "leaf" else 4)
    relative = (solution.error / solution.scale).amax(0)
    assert 1e-9 < float(relative[-1]) <= 1e-8
    tight = solve(leaves, PAIR, solver="picard", rtol=1e-8, per="leaf")
    assert solution.counts.rounds == tight.counts.rounds  # the second tensor is the slower one


def test_absolute_tolerances_of_entries_whose_solution_is_zero() -> None:
    """A relative tolerance is of no use there: the others are still held against theirs, and points are compared so."""
    rates = torch.tensor([[0.5, 0.95]], dtype=torch.float64)
    sizes = torch.tensor([[0.0, 1e-6]], dtype=torch.float64)
    f = lambda z: rates * z + (1 - rates) * sizes  # noqa: E731
    start = torch.ones(1, 2, dtype=torch.float64)
    without = solve(f, start, solver="picard", rtol=1e-6, per="entry", max_rounds=600)
    assert not without.converged.any()
    atol = torch.tensor([[1e-9, 0.0]], dtype=torch.float64)
    solution = solve(f, start, solver="picard", rtol=1e-6, atol=atol)
    assert solution.converged.all()
    assert float(solution.z[0, 0].abs()) <= 2e-9
    assert float((solution.z[0, 1] / 1e-6 - 1).abs()) <= 1.01e-6 / 0.05


def test_a_row_alone_and_in_a_batch_with_tolerances_of_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    gains = torch.linspace(0.2, 0.95, 6, dtype=torch.float64).unsqueeze(1)
    rtol = 10.0 ** -torch.arange(3.0, 9.0).unsqueeze(1).expand(6, 4)
    problem = affine_contraction((0.9, 0.5, -0.3, 0.1), rows=6, seed=1)
    for solver in ("anderson", "auto", "newton-krylov"):
        whole = solve(lambda z: gains * z.sin() + 0.3, start, solver=solver, rtol=rtol)
        taken = solve(problem, solver=solver, rtol=rtol)
        assert taken.converged.all()
        for row in range(6):
            one = slice(row, row + 1)
            part = solve(lambda z, one=one: gains[one] * z.sin() + 0.3, start[one], solver=solver, rtol=rtol[one])
            assert torch.equal(part.z[0], whole.z[row])
            assert part.status[0] == whole.status[row]
            alone = solve(problem.take(torch.tensor([row])), solver=solver, rtol=rtol[one])
            assert torch.equal(alone.z[0], taken.z[row])
            assert bool((taken.error[row] <= rtol[row] * taken.scale[row]).all())


def test_the_best_point_is_that_of_the_smallest_error_in_units_of_the_tolerance() -> None:
    points = {1000.0: (1.0, 1e-3), 1001.0: (0.5, 1e-2), 1002.0: (2.0, 1e-4)}

    def f(z: Tensor) -> Tensor:
        large, small = points[float(z[0, 0])]
        return torch.stack([z[:, 0] + large, z[:, 1] + small], dim=1)

    z = torch.tensor([[1000.0, 1e-3]], dtype=torch.float64)
    for per, best in (("row", 1001.0), ("entry", 1002.0)):
        evaluator = Evaluator(FunctionProblem(f, z), Termination(rtol=1e-6, atol=1e-7, per=per).yardstick)  # type: ignore[arg-type]
        for first in points:
            evaluator(torch.tensor([[first, 1e-3]], dtype=torch.float64))
        assert float(evaluator.best.z[0, 0]) == best


def test_an_entry_that_is_right_from_the_start_has_not_diverged_when_it_moves() -> None:
    start = torch.tensor([[1.0, 5.0]], dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return torch.stack([1.0 + 0.5 * (z[:, 1] - 2.0), 2.0 + 0.9 * (z[:, 1] - 2.0)], dim=1)

    start = torch.tensor([[2.5, 5.0]], dtype=torch.float64)  # the first entry's residual is zero there
    assert float((f(start) - start)[0, 0]) == 0.0
    assert solve(f, start, solver="picard", per="entry").converged.all()


def test_complex_entries_are_held_against_their_modulus() -> None:
    rates = np.array([0.5j, 0.9])
    sizes = np.array([1e30 + 1e10j, 1e-30j])
    solution = solve(lambda z: rates * z + (1 - rates) * sizes, np.zeros(2, complex), solver="picard", per="entry")
    assert solution.error.shape == (1, 2)
    assert (np.abs(solution.z / sizes - 1) <= 1.01e-6 / np.abs(1 - rates)).all()
    assert solve(lambda z: 0.5 * z + 1, np.zeros(2, complex), rtol=np.array([1e-3, 1e-9])).converged.all()


def halving() -> ChainProblem:
    class Halving(Chain):
        length = 3

        def step(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
            return x / 2

    return ChainProblem(Halving(), torch.ones(2, 3))


X = torch.ones(2, 3)
REFUSED = {
    "another structure": (
        lambda: solve(torch.cos, X, rtol=(1e-3, 1e-3)),
        r"rtol must be a number or have the structure of z0, z0, got rtol\[0\] \(\), rtol\[1\] \(\)",
    ),
    "another shape": (
        lambda: solve(torch.cos, X, rtol=torch.full((3,), 1e-3)),
        r"rtol must be a number or have the shape of z0, \(2, 3\), got \(3,\)",
    ),
    "another shape within": (
        lambda: solve(leaves, PAIR, atol=(1.0, np.ones(3))),
        r"atol\[1\] must be a number or have the shape of z0, \(2, 1\), got \(3,\)",
    ),
    "negative": (
        lambda: solve(torch.cos, X, rtol=torch.full((2, 3), -0.5)),
        "rtol must be at least 0 and less than 1, got -0.5",
    ),
    "all of it": (
        lambda: solve(leaves, PAIR, rtol=(1e-3, 1.0)),
        r"rtol\[1\] must be at least 0 and less than 1, got 1",
    ),
    "NaN": (lambda: solve(torch.cos, X, atol=X * torch.nan), "atol must be at least 0 and finite, got nan"),
    "words": (
        lambda: solve(leaves, PAIR, rtol=(1e-3, "1e-3")),
        r"rtol\[1\] must be a number or one for .*, got '1e-3'",
    ),
    "complex": (lambda: solve(torch.cos, X, rtol=X * 1e-3j), "rtol must be real numbers, got torch.complex64"),
    "a word for per": (lambda: solve(torch.cos, X, per="entries"), "per must be one of 'row', 'leaf', 'entry', got"),  # type: ignore[arg-type]
    "relative to the start": (
        lambda: solve(torch.cos, X, termination=Termination(relative_to="start"), rtol=X * 1e-3),
        "per must be 'row' where relative_to is 'start', got 'entry'",
    ),
    "a chain": (
        lambda: solve(halving(), per="entry"),
        "per='entry' is for problems measured by f.z. - z; ChainProblem has a measure of its own",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tolerances_that_do_not_fit_are_refused_with_a_sentence(name: str) -> None:
    act, sentence = REFUSED[name]
    with pytest.raises((TypeError, ValueError, OptionError), match=sentence) as caught:
        act()
    assert len(str(caught.value).splitlines()) == 1


def test_the_loop_wants_the_yardstick_of_the_termination() -> None:
    rule = Termination(per="leaf")
    with pytest.raises(ValueError, match="measures in the l2 norm per row, the termination requires l2 per leaf"):
        Picard().solve(Evaluator(FunctionProblem(torch.cos, X)), X, rule)


def test_tolerances_of_some_of_the_rows() -> None:
    layout = Layout.of(X.double())
    whole = Yardstick().with_tolerances(layout, rtol=X.double() * 1e-3, atol=1e-9)
    part = whole.take(np.array([1]))
    assert part.rtol.shape == (1, 3)  # type: ignore[union-attr]
    assert part.atol.shape == (1, 3)  # type: ignore[union-attr]
