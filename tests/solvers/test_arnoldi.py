"""Arnoldi's basis stays orthogonal in single precision, however many steps, and its matrix is the projection."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fixedpoint.core.combine import add_combination
from fixedpoint.core.reduce import row_dots
from fixedpoint.solvers.arnoldi import Arnoldi, unit


def grown(matrix: torch.Tensor, start: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    everyone = torch.ones(len(start), dtype=torch.bool)
    arnoldi = Arnoldi(unit(start, start.double().norm(dim=1), everyone), steps + 1)
    hessenberg = torch.zeros(len(start), steps + 1, steps, dtype=torch.float64)
    for j in range(steps):
        column, _ = arnoldi.components((matrix * arnoldi.vector.unsqueeze(1)).sum(-1))
        hessenberg[:, : j + 1, j] = torch.from_numpy(column.along.T)
        hessenberg[:, j + 1, j] = torch.from_numpy(column.remainder)
        arnoldi.append(column.remainder)
    return arnoldi.basis, hessenberg


def of(basis: torch.Tensor) -> Arnoldi:
    """A process that has come to a given basis of one row."""
    arnoldi = Arnoldi(basis[:, 0], basis.shape[1] + 1)
    for j in range(1, basis.shape[1]):
        arnoldi.components(basis[:, j])
        arnoldi.append(np.ones(1))
    arnoldi._held[: basis.shape[1]] = basis.transpose(0, 1)
    return arnoldi


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_basis_is_orthogonal_and_projects_the_matrix(dtype: torch.dtype) -> None:
    """A matrix that nearly has low rank, for which one pass of Gram-Schmidt loses everything after twenty steps."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(2, 300, 300, generator=generator, dtype=torch.float64)
    turned, _ = torch.linalg.qr(draw)
    sizes = 0.9 ** torch.arange(300, dtype=torch.float64)
    matrix = (turned * sizes) @ turned.roll(1, dims=0).mT
    start = torch.randn(2, 300, generator=generator, dtype=torch.float64)
    basis, hessenberg = grown(matrix.to(dtype), start.to(dtype), 60)
    eps, wide = torch.finfo(dtype).eps, basis.double()
    identity = torch.eye(61, dtype=torch.float64)
    assert float((wide @ wide.mT - identity).abs().max()) < 100 * eps
    projected = wide @ matrix @ wide[:, :-1].mT
    assert float((projected - hessenberg).abs().max()) < 1000 * eps


def test_what_is_rounding_is_nothing() -> None:
    basis = torch.eye(3, dtype=torch.float64).unsqueeze(0)
    column, _ = of(basis).components(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64))
    assert column.along.T.tolist() == [[1.0, 2.0, 3.0]]
    assert column.remainder.tolist() == [0.0]
    assert column.length.tolist() == pytest.approx([14**0.5])


@pytest.mark.parametrize(("share", "passes"), [(0.05, 2), (0.65, 2), (0.75, 1), (0.95, 1)])
def test_what_has_much_left_is_done_once(share: float, passes: int) -> None:
    """Of a unit vector ``share`` is left; the components are those of so many passes of Gram-Schmidt, bit for bit."""
    generator = torch.Generator().manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(1, 50, 6, generator=generator, dtype=torch.float64))
    basis = basis.mT.contiguous()
    outside = torch.randn(1, 50, generator=generator, dtype=torch.float64)
    outside = outside - ((basis @ outside.unsqueeze(2)) * basis).sum(1)
    within = torch.randn(1, 6, 1, generator=generator, dtype=torch.float64)
    vector = share * outside / outside.norm() + (1 - share**2) ** 0.5 * (basis * within).sum(1) / within.norm()
    arnoldi = of(basis)
    column, _ = arnoldi.components(vector)
    assert column.remainder.tolist() == [pytest.approx(share, rel=1e-12)]
    along, rest = torch.zeros(1, 6, dtype=torch.float64), vector
    for _ in range(passes):
        part = row_dots(basis, rest)
        along, rest = along + part, add_combination(rest, basis, -part.unsqueeze(1))
    assert column.along.T.tolist() == along.tolist()
    arnoldi.append(column.remainder)
    assert torch.allclose(arnoldi.vector, rest / share, rtol=1e-12)


def test_a_basis_may_be_as_orthogonal_as_is_asked_for_and_no_more() -> None:
    """Vectors that nearly repeat: without a second pass they would soon be parallel; with a few they are not."""
    generator = torch.Generator().manual_seed(2)
    matrix = torch.eye(200) + 0.02 * torch.randn(200, 200, generator=generator) / 200**0.5
    start, found = torch.randn(1, 200, generator=generator), {}
    for orthogonality in (None, 1e-3, np.inf):
        arnoldi = Arnoldi(
            unit(start, start.double().norm(dim=1), torch.ones(1, dtype=torch.bool)), 9, 0.0, orthogonality
        )
        for _ in range(8):
            column, _ = arnoldi.components((matrix @ arnoldi.vector.unsqueeze(2)).squeeze(2))
            arnoldi.append(column.remainder)
        wide = arnoldi.basis.double()
        found[orthogonality] = float((wide @ wide.mT - torch.eye(9, dtype=torch.float64)).abs().max())
    assert found[None] < 1e-5 < found[1e-3] < 1e-3 < found[np.inf]
