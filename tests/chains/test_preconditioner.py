"""Linear parts against their matrices, windows of them, and the solves they precondition."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.chains.capabilities import HasCoefficients, HasGaussianSlopes
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.joint.solver import ChainSolver
from fixedpoint.chains.joint.start import ConstantStart, OneJumpStart
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.recurrence.linear import Band, LinearPart
from fixedpoint.chains.recurrence.recurrence import Held
from fixedpoint.chains.slope.preconditioner import Banded, Coefficient, Gaussian, Identity, Preconditioner, Zero
from fixedpoint.core.options import OptionError
from fixedpoint.registry import registry
from fixedpoint.testing.chains import LinearChain, linear_chain, trajectory, wave_chain

SLOPES = ("zero", "one", "positive", "signed", "vanishing", "steep")


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_slopes(kind: str, length: int, seed: int) -> torch.Tensor:
    """Slopes; the first is never used, and infinite."""
    drawn = draw(seed, length)
    slopes = {
        "zero": torch.zeros_like(drawn),
        "one": torch.ones_like(drawn),
        "positive": (0.2 * drawn).exp(),
        "signed": drawn,
        "vanishing": torch.where(drawn > 0.5, 0.0, 1.0),
        "steep": torch.full_like(drawn, 1e-9),
    }[kind]
    slopes[0] = torch.inf
    return slopes


@st.composite
def parts(draw: st.DrawFn) -> LinearPart | Band:
    length = draw(st.integers(1, 40))
    if draw(st.booleans()):
        return Band(draw(st.integers(1, length + 3)), length)
    return LinearPart(some_slopes(draw(st.sampled_from(SLOPES)), length, draw(st.integers(0, 10**6))))


def linear_part(preconditioner: Preconditioner, problem: ChainProblem) -> Any:
    return preconditioner.linear_part(problem, problem.x0)


@given(length=st.integers(2, 30), kind=st.sampled_from(SLOPES), seed=st.integers(0, 10**6))
def test_the_matrix_solves_the_chain_of_its_slopes(length: int, kind: str, seed: int) -> None:
    """``M`` is the inverse of the bidiagonal Jacobian ``I - shift(A)``."""
    part = LinearPart(some_slopes(kind, length, seed))
    unit = torch.eye(length, dtype=torch.float64)
    bidiagonal = unit - torch.diag(part.slopes[1:], -1)
    assert (part.matrix @ bidiagonal - unit).abs().amax() <= 1e-14 * part.matrix.abs().amax()


@given(length=st.integers(1, 30), order=st.integers(1, 33))
def test_a_band_is_a_band_of_ones(length: int, order: int) -> None:
    wanted = [[float(0 <= i - k < order) for k in range(length)] for i in range(length)]
    assert Band(order, length).matrix.tolist() == wanted


@given(part=parts(), seed=st.integers(0, 10**6))
def test_the_sweep_is_its_lower_triangular_matrix(part: LinearPart | Band, seed: int) -> None:
    defects = draw(seed, 2, len(part), 3)
    assert torch.equal(part.matrix, part.matrix.tril())
    scale = (part.matrix.abs() @ defects.abs()).amax()
    assert (part.sweep(defects) - part.matrix @ defects).abs().amax() <= 1e-14 * len(part) * scale


@given(
    part=parts(),
    size=st.integers(1, 20),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    data=st.data(),
    seed=st.integers(0, 10**6),
)
def test_a_window_is_that_part_of_the_whole_sweep(
    part: LinearPart | Band, size: int, dtype: torch.dtype, data: st.DataObject, seed: int
) -> None:
    """Also one that begins at another step in each row, or reaches beyond the chain."""
    length = len(part)
    first = torch.tensor(data.draw(st.lists(st.integers(0, length - 1), min_size=3, max_size=3)))
    whole = torch.zeros(3, length + size, 2, dtype=dtype)
    steps = first.unsqueeze(1) + torch.arange(size)
    defects = draw(seed, 3, size, 2).to(dtype).masked_fill((steps >= length).unsqueeze(2), 0.0)
    rows = torch.arange(3).unsqueeze(1)
    whole[rows, steps] = defects
    wanted = torch.zeros_like(whole)
    wanted[:, :length] = part.sweep(whole[:, :length])
    inside = (steps < length).unsqueeze(2)
    found = part.sweep(defects, window_at(first))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        torch.where(inside, found, 0.0),
        torch.where(inside, wanted[rows, steps], 0.0),
        rtol=0.0,
        atol=8 * size * eps * float(defects.abs().sum()) * max(1.0, float(part.matrix.abs().amax())),
    )
    for row in range(3):  # alone as in its batch
        alone = part.sweep(defects[row : row + 1], window_at(first[row : row + 1]))
        assert torch.equal(alone[0], found[row])
    if bool((first == first[0]).all()) and first[0] == 0:
        assert torch.equal(found, part.sweep(defects))


def window_at(first: torch.Tensor) -> Held:
    """A window that begins at these steps; opaque steps need nothing else of it."""
    none = torch.zeros(len(first), 1, 0)
    return Held(none, none, none, none, first)


@given(length=st.integers(1, 40), order=st.integers(1, 40), size=st.floats(1.0, 1e8), seed=st.integers(0, 10**6))
def test_a_band_does_not_cancel(length: int, order: int, size: float, seed: int) -> None:
    """A huge first defect leaves nothing behind once it is out of the band, as running sums would."""
    defects = draw(seed, 1, length, 2).float()
    huge = defects.clone()
    huge[:, 0] *= size
    band = Band(order, length)
    assert torch.equal(band.sweep(huge)[:, order:], band.sweep(defects)[:, order:])


def test_a_sweep_that_overflows_leaves_plain_steps() -> None:
    part = LinearPart(torch.full((8,), -1e200, dtype=torch.float64))
    defects = draw(0, 1, 8, 2)
    swept = part.sweep(defects)
    assert swept.isfinite().all()
    assert torch.equal(swept[:, 2:], defects[:, 2:])


@pytest.mark.parametrize(("order", "same"), [(1, Zero()), (20, Identity()), (10**6, Identity())])
def test_a_band_of_one_is_zero_and_of_the_whole_chain_identity(order: int, same: Preconditioner) -> None:
    problem = ChainProblem(wave_chain(20, seed=3), draw(1, 4, 3))
    found, wanted = (
        fixedpoint.solve(problem, solver=ChainSolver(preconditioner=kind), rtol=1e-10) for kind in (Banded(order), same)
    )
    assert torch.equal(found.z, wanted.z)
    assert found.counts.rounds == wanted.counts.rounds


@pytest.mark.parametrize("order", [2, 3, 7])
@pytest.mark.parametrize("accelerator", ["picard", "anderson"])
def test_a_band_ends_at_the_sequential_chain(order: int, accelerator: str) -> None:
    problem = ChainProblem(wave_chain(25, seed=4), draw(1, 4, 3))
    spec = {"name": "chain", "preconditioner": {"name": "banded", "order": order}, "accelerator": accelerator}
    solution = fixedpoint.solve(problem, solver=spec, rtol=1e-12)
    assert solution.converged.all()
    assert solution.counts.rounds <= 26
    torch.testing.assert_close(solution.z, trajectory(problem.chain, problem.x0), rtol=1e-9, atol=1e-9)


def test_a_chain_without_slope_is_carried_as_far_as_the_band() -> None:
    """``x' = x + b_i`` in order k: a round makes k more states right."""
    chain = LinearChain(torch.ones(12, dtype=torch.float64), draw(5, 2, 12, 3))
    problem = ChainProblem(chain, draw(1, 2, 3))
    exact = trajectory(chain, problem.x0)
    states = fixedpoint.solve(problem, solver=ChainSolver(preconditioner=Banded(3)), max_rounds=2).z
    right = (states - exact).abs().amax(dim=(0, 2)) < 1e-12
    assert right.tolist() == [True] * 3 + [False] * 9


@pytest.mark.parametrize("kind", SLOPES)
@pytest.mark.parametrize("preconditioner", [Coefficient(), Gaussian(0.5)], ids=str)
def test_an_affine_chain_with_its_own_slopes_needs_one_sweep(kind: str, preconditioner: Preconditioner) -> None:
    """Whatever their signs, and however small their product."""

    class Known(LinearChain, HasGaussianSlopes):
        def gaussian_slopes(self, variance: float) -> torch.Tensor:
            assert variance == 0.5
            return self.slope

    slopes = some_slopes(kind, 30, seed=11).clamp(max=2.0)
    problem = ChainProblem(Known(slopes, draw(3, 2, 30, 3)), draw(2, 2, 3))
    solution = fixedpoint.solve(problem, solver=ChainSolver(preconditioner=preconditioner), rtol=1e-10)
    assert solution.converged.all()
    assert solution.counts.rounds <= 2
    exact = trajectory(problem.chain, problem.x0)
    assert (solution.z - exact).abs().amax() <= 1e-10 * exact.abs().amax()


@pytest.mark.parametrize(
    "name", ["zero", "identity", "coefficient", "gaussian", "diagonal", "jacobian", {"name": "banded", "order": 4}]
)
def test_by_name_in_a_file_and_in_python(name: Any) -> None:
    built = registry.create("solver", {"name": "chain", "preconditioner": name}).preconditioner
    assert built.variant == (name["name"] if isinstance(name, dict) else name)
    if isinstance(name, str):
        assert ChainSolver(preconditioner=name).preconditioner == built
        assert ChainSolver(preconditioner=built) == ChainSolver(preconditioner=name)
    else:
        assert built == Banded(4)


def test_a_start_goes_by_name_too() -> None:
    assert ChainSolver(start="one-jump").start == OneJumpStart()
    assert ChainSolver(start="constant").start == ConstantStart()


class Plain(Chain):
    length = 3

    def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return x / 2


class Known(Plain, HasCoefficients, HasGaussianSlopes):
    def __init__(self, slopes: list[float]) -> None:
        self.found = torch.tensor(slopes, dtype=torch.float64)

    def coefficients(self) -> torch.Tensor:
        return self.found

    def gaussian_slopes(self, variance: float) -> torch.Tensor:
        return self.found


@pytest.mark.parametrize(
    ("preconditioner", "chain", "sentence"),
    [
        (
            "coefficient",
            Plain(),
            "requires a chain that knows its coefficients, and this one has none; take 'identity'",
        ),
        ("gaussian", Plain(), "with a method gaussian_slopes(variance), and Plain has none; take 'identity'"),
        ("coefficient", Known([1.0, 1.0, torch.inf]), "the chain's coefficients must be finite, got [1.0, 1.0, inf]"),
        ("gaussian", Known([1.0, torch.nan, 1.0]), "the chain's gaussian_slopes must be finite, got [1.0, nan, 1.0]"),
    ],
)
def test_what_a_chain_does_not_know_is_a_sentence(preconditioner: str, chain: Chain, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(sentence)):
        fixedpoint.solve(
            ChainProblem(chain, torch.ones(2, 3)), solver={"name": "chain", "preconditioner": preconditioner}
        )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Banded(0), "Banded: order must be at least 1, got 0"),
        (lambda: Gaussian(0.0), "Gaussian: variance must be greater than 0.0, got 0.0"),
        (lambda: ChainSolver(preconditioner="banded"), "Banded or 'coefficient' or 'gaussian' .*, got 'banded'"),
        (lambda: ChainSolver(preconditioner=1.0), "preconditioner must be 'zero' or 'identity' or Banded or"),
        (lambda: ChainSolver(start="jump"), "start must be 'constant' or 'one-jump' or 'nested', got 'jump'"),
    ],
)
def test_bad_options_are_a_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        make()


def test_slopes_of_another_shape_are_a_sentence() -> None:
    with pytest.raises((TypeError, ValueError)):  # the checker of annotations may come first
        linear_part(Coefficient(), ChainProblem(Known([1.0, 1.0]), torch.ones(2, 3)))


def test_slopes_after_the_first_are_all_that_counts() -> None:
    chain = linear_chain(10, seed=2)
    chain.slope[0] = torch.inf
    part = linear_part(Coefficient(), ChainProblem(chain, draw(1, 4, 3)))
    assert part.sweep(draw(4, 4, 10, 3)).isfinite().all()
