"""The default of ``find_root`` and its members: published systems, SciPy's answers, closed forms, honest statuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from draws import examples
from hypothesis import given
from hypothesis import strategies as st
from root_problems import CLASSIC, SCIPY
from roots import SMALL, false_roots, outcome

import fixedpoint as fp
from fixedpoint import find_root
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.problem import AbilityError
from fixedpoint.core.root import RootProblem

# Where the tolerance, which is relative to a g of 1e6 at the start, is met sooner.
LOOSE = {"variably dimensioned"}
ALL = {**CLASSIC, **SCIPY}


@pytest.mark.parametrize("name", [name for name in ALL if name not in LOOSE])
def test_the_default_solves_it_with_either_sign_of_g(name: str) -> None:
    plus, minus = (outcome(ALL[name], "default", sign) for sign in (1.0, -1.0))
    assert plus.solved
    assert minus.solved
    assert plus.cost == minus.cost


@pytest.mark.parametrize("name", ["generalised Rosenbrock", "Powell badly scaled", "Wood"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_and_whatever_the_option_sign_says(name: str, sign: float) -> None:
    problem = CLASSIC[name]
    solution = find_root(problem.g, problem.z0, sign=sign)
    assert solution.converged.all(), solution.message
    assert float(problem.g(solution.z).abs().max()) <= SMALL


@pytest.mark.parametrize("name", ["generalised Rosenbrock", "Powell badly scaled", "helical valley", "F6"])
def test_and_without_derivatives(name: str) -> None:
    assert outcome(ALL[name], "numpy").solved


def test_a_loose_tolerance_was_the_only_reason() -> None:
    problem = CLASSIC["variably dimensioned"]
    solution = find_root(problem.g, problem.z0, rtol=1e-11)
    assert torch.allclose(solution.z, torch.ones(10, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("name", ["Chebyquad", "Broyden tridiagonal", "Broyden banded", "discrete boundary value"])
@pytest.mark.parametrize("solver", ["newton", "trust-region", {"name": "newton", "damping": "none"}], ids=str)
def test_finds_the_root_that_scipy_finds(name: str, solver: Any) -> None:
    problem = CLASSIC[name]
    solution = find_root(problem.g, problem.z0, solver=solver, rtol=1e-10)
    assert solution.converged.all(), solution.message
    reference = scipy.optimize.root(lambda x: problem.g(torch.from_numpy(x)).numpy(), problem.z0.numpy(), tol=1e-12)
    assert np.allclose(solution.z, reference.x, rtol=1e-8, atol=1e-10)


def test_random_equations_get_no_false_roots() -> None:
    told = false_roots(300, seed=3, rows=15)
    assert told["false"] == 0
    assert told["with a root"] < told["equations"]
    assert told["claimed"] >= 0.8 * told["with a root"]


def test_a_minimum_that_is_no_root_is_not_called_one() -> None:
    """``(x^2 + y^2 + 1, x - y)``: the residual is smallest at the origin."""

    def g(z: torch.Tensor) -> torch.Tensor:
        x, y = z.unbind(-1)
        return torch.stack([x**2 + y**2 + 1, x - y], dim=-1)

    for solver in ("trust-region", "auto"):
        solution = find_root(g, torch.tensor([1.0, 2.0], dtype=torch.float64), solver=solver)
        assert not solution.converged.any()
        assert float(solution.error) == pytest.approx(1.0, abs=1e-3)
    ended = find_root(g, torch.tensor([1.0, 2.0], dtype=torch.float64), solver="trust-region")
    assert ended.status[0] is fp.Status.STALLED
    assert ended.counts.rounds < 200


@examples(10, 40)
@given(
    rows=st.integers(1, 4),
    size=st.integers(1, 5),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    solver=st.sampled_from(["auto", "newton", "trust-region"]),
    seed=st.integers(0, 2**16),
)
def test_a_linear_system_takes_one_jacobian(rows: int, size: int, dtype: torch.dtype, solver: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, size, size, generator=generator, dtype=torch.float64)
    matrix = matrix + 3 * size * torch.eye(size, dtype=torch.float64)
    root = 1 + torch.rand(rows, size, generator=generator, dtype=torch.float64)
    a, b = matrix.to(dtype), (matrix * root[:, None, :]).sum(-1).to(dtype)
    rtol = 1e-8 if dtype is torch.float64 else 1e-4
    solution = find_root(
        lambda z: (a * z[:, None, :]).sum(-1) - b, torch.ones(rows, size, dtype=dtype), solver=solver, rtol=rtol
    )
    assert solution.converged.all(), solution.message
    assert torch.allclose(solution.z.double(), root, rtol=10 * rtol)
    # One step may not be enough for a proof: the probe and the way back take a Jacobian each.
    assert (solution.counts.products <= 3 * size).all()


def test_rows_need_different_members() -> None:
    """Beside Broyden's tridiagonal function, Wood's is left to the trust region, and rows without a root to all."""
    banded, hard = CLASSIC["Powell singular"], CLASSIC["Wood"]

    def g(z: torch.Tensor) -> torch.Tensor:
        return torch.cat([banded.g(z[:1]), hard.g(z[1:2]), z[2:] ** 2 + 1])

    z0 = torch.stack([banded.z0, hard.z0, hard.z0])
    solution = find_root(g, z0, atol=1e-9)
    assert solution.converged.tolist() == [True, True, False]
    for row, problem in enumerate((banded, hard)):
        alone = find_root(lambda z, problem=problem: problem.g(z), problem.z0[None], atol=1e-9)
        assert torch.equal(alone.z[0], solution.z[row])
        assert alone.counts.products[0] == solution.counts.products[row]


@pytest.mark.parametrize("jacobian", ["auto", "forward", "difference"])
def test_the_jacobian_is_that_of_the_residual(jacobian: str) -> None:
    """``(x y, x + y^3)``: by products of one call, and by differences; finished rows have none."""
    z0 = torch.tensor([[2.0, 3.0], [0.5, -1.0]], dtype=torch.float64)
    problem = RootProblem(
        lambda z: torch.stack([z[:, 0] * z[:, 1], z[:, 0] + z[:, 1] ** 3], dim=1), z0, None, -1.0, fp.Termination()
    )
    f = Evaluator(problem)
    with torch.no_grad():
        at = f(z0.clone())
        f.narrow(np.array([True, False]))
        found = f.jacobian(at, {"auto": None, "forward": True, "difference": False}[jacobian])
    assert torch.allclose(found[0], -torch.tensor([[3.0, 2.0], [1.0, 27.0]], dtype=torch.float64), rtol=1e-6)
    assert (found[1] == 0).all()
    spent = (0, 2, 1) if jacobian != "difference" else (2, 0, 2)
    assert (f.counts.evaluations[0] - 1, f.counts.products[0], f.counts.rounds - 1) == spent


def test_what_torch_cannot_batch_is_done_one_by_one() -> None:
    def g(z: torch.Tensor) -> torch.Tensor:
        if float(z.detach().sum()) > 1e6:  # reads a number, which vmap refuses
            return z
        return z**3 - 5

    solution = find_root(g, torch.tensor([1.5, 2.0], dtype=torch.float64), solver="newton")
    assert solution.converged.all(), solution.message
    assert torch.allclose(solution.z, torch.full((2,), 5 ** (1 / 3), dtype=torch.float64))


def test_many_unknowns_get_newton_krylov() -> None:
    n = 200
    solution = find_root(CLASSIC["Broyden tridiagonal"].g, -torch.ones(n, dtype=torch.float64))
    assert solution.converged.all(), solution.message
    assert int(solution.counts.products[0]) < n


def test_unrolling_is_refused_and_the_default_does_it_by_broyden() -> None:
    a = torch.tensor([[5.0]], dtype=torch.float64, requires_grad=True)
    for gradient in ("unrolled", "shine"):
        solution = find_root(lambda x: x**3 - a, torch.full_like(a, 1.8).detach(), gradient=gradient, rtol=1e-10)
        (slope,) = torch.autograd.grad(solution.z.sum(), a)
        assert float(slope) == pytest.approx(1 / (3 * 5 ** (2 / 3)), rel=0.2 if gradient == "shine" else 1e-4)
    for solver in ("newton", "trust-region"):
        with pytest.raises(AbilityError):
            find_root(lambda x: x**3 - a, torch.full_like(a, 1.8).detach(), gradient="unrolled", solver=solver)
