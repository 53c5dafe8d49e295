"""Adjoint equations solved as linear systems: by the series, by GMRES, row by row, never less exactly than told."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gradient_cases import cotangent
from hypothesis import example, given
from hypothesis import strategies as st

import fixedpoint as fp
from fixedpoint.core.status import Status
from fixedpoint.gradients.adjoint import solve_adjoint
from fixedpoint.gradients.direct import defect, is_direct, solved_directly
from fixedpoint.gradients.report import AdjointReport, AdjointWarning

Linear = Callable[[torch.Tensor], torch.Tensor]


def matrices(gains: list[float], size: int, seed: int) -> torch.Tensor:
    """One matrix for each row, of 2-norm ``gain``."""
    drawn = cotangent((len(gains), size, size), seed)
    return drawn * (torch.tensor(gains, dtype=torch.float64) / torch.linalg.matrix_norm(drawn, 2))[:, None, None]


def product(matrix: torch.Tensor) -> Linear:
    """Products whose rounding does not depend on the other rows."""
    return lambda v: (matrix * v.unsqueeze(1)).sum(-1)


def rule(rtol: float, **more: int) -> fp.Termination:
    return fp.Termination(rtol=rtol, **more)


MIXED = [0.0, 0.05, 0.2, 0.3, 0.5, 0.8, 0.99, 1.5]


@example(gains=[1.0], size=1, seed=0, rtol=1e-2, method="auto")
@example(gains=[1.0], size=1, seed=1, rtol=1e-2, method="auto")
@given(
    gains=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=5),
    size=st.integers(1, 12),
    seed=st.integers(0, 2**16),
    rtol=st.sampled_from([1e-1, 1e-2, 1e-3, 1e-5, 1e-8]),
    method=st.sampled_from(["auto", "gmres"]),
)
def test_a_row_is_as_exact_as_it_is_told_to_be(
    gains: list[float], size: int, seed: int, rtol: float, method: str
) -> None:
    """Contractions and others; the true residual is within the tolerance, and the report has it."""
    linear, g = product(matrices(gains, size, seed)), cotangent((len(gains), size), seed + 1)
    found = solved_directly(linear, g, fp.Krylov(method), rule(rtol))  # type: ignore[arg-type]
    true = defect(linear, g, found.u)
    solved = found.status == Status.CONVERGED
    assert (true[solved] <= rtol * (1 + 1e-9)).all()
    assert np.allclose(found.relative_error[solved], true[solved], rtol=3 * rtol, atol=1e-13)
    assert np.allclose(found.relative_error[~solved], true[~solved], rtol=1e-6)
    # Only a matrix that is nearly singular may be left unsolved.
    system = torch.eye(size, dtype=torch.float64) - matrices(gains, size, seed)
    singular = torch.linalg.matrix_norm(system, -2).numpy() < 1e-4
    assert (solved | singular).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rtol", [1e-2, 1e-3])
@pytest.mark.parametrize("copies", [1, 12])
def test_a_row_has_the_bits_that_it_has_alone(dtype: torch.dtype, rtol: float, copies: int) -> None:
    """Rows that the series solves soon or late or leaves, in batches that are dropped from (96 rows) and others."""
    matrix = matrices(MIXED * copies, 20, seed=3).to(dtype)
    g = cotangent((len(matrix), 20), seed=4).to(dtype)
    g[1] = 0
    whole = solved_directly(product(matrix), g, fp.Krylov(), rule(rtol))
    for row in [*range(8), len(matrix) - 1, len(matrix) - 4]:
        alone = solved_directly(product(matrix[row : row + 1]), g[row : row + 1], fp.Krylov(), rule(rtol))
        assert torch.equal(alone.u[0], whole.u[row])
        assert alone.products[0] == whole.products[row]
        assert alone.status[0] == whole.status[row]
        assert alone.relative_error[0] == whole.relative_error[row]
    assert whole.method == "series, gmres"
    assert whole.products[1] == 0
    assert bool((whole.u[1] == 0).all())


@pytest.mark.parametrize(
    ("gains", "rtol", "method"),
    [
        ([0.1, 0.3], 1e-3, "series"),
        ([0.9, 1.5], 1e-3, "gmres"),
        ([0.1, 1.5], 1e-3, "series, gmres"),
        ([0.3, 0.3], 1e-13, "gmres"),
    ],
)
def test_the_report_says_by_which_method(gains: list[float], rtol: float, method: str) -> None:
    report = AdjointReport()
    matrix = torch.eye(6, dtype=torch.float64) * torch.tensor(gains, dtype=torch.float64)[:, None, None]
    matrix = matrix @ torch.linalg.qr(cotangent((6, 6), 1)).Q
    solve_adjoint(product(matrix), cotangent((2, 6), 2), fp.Krylov(), rule(rtol), "warn", report)
    assert report.method == method
    assert report.status == (Status.CONVERGED, Status.CONVERGED)
    assert report.message.startswith("2 of 2 rows converged")


@pytest.mark.parametrize("share", [0.02, 0.2, 0.3])
@pytest.mark.parametrize("rtol", [1e-2, 1e-4])
def test_the_series_of_a_number_is_its_geometric_series(share: float, rtol: float) -> None:
    """``K = q``: after ``k`` products the sum is ``(1 - q^k) / (1 - q)``, the residual ``q^k``."""
    g = cotangent((1, 5), seed=7)
    found = solved_directly(lambda v: share * v, g, fp.Krylov(), rule(rtol))
    k = next(k for k in range(1, 99) if share**k <= 0.9 * rtol * (1 - share**k) / (1 - share))
    assert (found.rounds, found.products.tolist(), found.method) == (k, [k], "series")
    assert torch.allclose(found.u, g * (1 - share**k) / (1 - share), rtol=1e-12)
    assert found.relative_error.tolist() == pytest.approx([share**k * (1 - share) / (1 - share**k)])


def test_scale_does_not_matter() -> None:
    linear, g = product(matrices(MIXED, 9, seed=5)), cotangent((8, 9), seed=6)
    plain = solved_directly(linear, g, fp.Krylov(), rule(1e-3))
    for factor in (2.0**-500, 2.0**400):
        scaled = solved_directly(linear, g * factor, fp.Krylov(), rule(1e-3))
        assert scaled.products.tolist() == plain.products.tolist()
        assert torch.allclose(scaled.u / factor, plain.u, rtol=1e-9)


@pytest.mark.parametrize("method", ["auto", "gmres"])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_cotangent_that_is_not_finite_is_never_solved(method: str, value: float) -> None:
    """Nor with a map that keeps it as it is, where every comparison of infinities would hold."""
    g = cotangent((3, 4), seed=2)
    g[1] = value
    found = solved_directly(lambda v: 0.5 * v, g, fp.Krylov(method), rule(1e-3))  # type: ignore[arg-type]
    assert found.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    assert found.relative_error[1] == np.inf
    assert torch.allclose(found.u[[0, 2]], 2 * g[[0, 2]], rtol=2e-3)


def coarse(matrix: torch.Tensor) -> Linear:
    """Products in bfloat16, as autocast makes them: not quite linear."""
    return lambda v: (matrix.bfloat16() * v.bfloat16().unsqueeze(1)).sum(-1).float()


def test_products_that_are_rounded_coarsely_are_measured() -> None:
    """Where they allow no such tolerance, the report says so; where they do, rows have it."""
    matrix = matrices([0.2, 0.5, 0.9, 1.5], 16, seed=8).float()
    g, noise = cotangent((4, 16), seed=9).float(), torch.finfo(torch.bfloat16).eps
    report = AdjointReport()
    with pytest.warns(AdjointWarning):
        u = solve_adjoint(coarse(matrix), g, fp.Krylov(), rule(1e-5, max_rounds=60), "warn", report, noise=noise)
    # Rows of unit length, as they were solved, are rounded otherwise than those of the cotangent.
    assert np.allclose(report.relative_error, defect(coarse(matrix), g, u), atol=noise / 2)
    assert (report.converged == (report.relative_error <= 1e-5)).all()
    assert not report.converged.all()
    loose = AdjointReport()
    u = solve_adjoint(coarse(matrix), g, fp.Krylov(), rule(0.1), "warn", loose, noise=noise)
    assert loose.converged.all()
    assert (defect(coarse(matrix), g, u) <= 0.1).all()


def test_a_row_without_progress_gets_the_one_step_gradient() -> None:
    """A cyclic shift: GMRES gains nothing before it has made as many products as there are unknowns."""
    shift = torch.roll(torch.eye(40, dtype=torch.float64), 1, dims=0).unsqueeze(0) * 1.0
    g = torch.eye(40, dtype=torch.float64)[:1]
    found = solved_directly(product(2 * shift), g, fp.Krylov(memory=5), rule(1e-3, max_rounds=20))
    assert found.status.tolist() != [Status.CONVERGED]
    assert found.relative_error[0] == pytest.approx(float(defect(product(2 * shift), g, found.u)[0]))
    assert float(found.u.norm()) >= 0.5
    assert found.products.tolist() == [found.rounds]  # the evaluation of what is unsolved included


@pytest.mark.parametrize(
    "termination",
    [
        fp.Termination(rtol=1e-3, norm="max"),
        fp.Termination(rtol=1e-3, per="entry"),
        fp.Termination(rtol=1e-3, relative_to="start"),
        fp.Termination(rtol=1e-3, atol=1e-3),
        fp.Termination(rtol=1e-3, max_rounds=2),
        fp.Termination(rtol=1e-14),
    ],
    ids=str,
)
def test_other_rules_are_left_to_the_loop(termination: fp.Termination) -> None:
    assert not is_direct(fp.Krylov(), termination, torch.float64)
    assert is_direct(fp.Krylov(), fp.Termination(rtol=1e-3), torch.float64)
    assert not is_direct(fp.Krylov("bicgstab"), fp.Termination(rtol=1e-3), torch.float64)
    linear, g = product(matrices([0.3, 0.6], 5, seed=1)), cotangent((2, 5), seed=2)
    report = AdjointReport()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdjointWarning)
        u = solve_adjoint(linear, g, fp.Krylov(), termination, "warn", report)
    assert (defect(linear, g, u) <= 2e-3).all() or not report.converged.all()
    assert report.method == "krylov"


def test_what_is_worth_it_is_recorded_again() -> None:
    """Rows that have many products before them are, a quarter of the rows or less, once; those with few are not."""
    asked: list[list[int]] = []
    gains = [0.01] * 36 + [0.5] * 4
    matrix, g = matrices(gains, 15, seed=2), cotangent((40, 15), seed=3)

    def record(rows: torch.Tensor) -> Linear:
        asked.append(rows.tolist())
        return product(matrix[rows])

    found = solved_directly(product(matrix), g, fp.Krylov(), rule(1e-3), record)
    plain = solved_directly(product(matrix), g, fp.Krylov(), rule(1e-3))
    assert asked == [[36, 37, 38, 39]]
    assert torch.equal(found.u, plain.u)
    assert (found.products - plain.products).tolist() == [0] * 36 + [1] * 4
    asked.clear()
    solved_directly(product(matrix), g, fp.Krylov(), rule(1e-1), record)
    assert asked == []
