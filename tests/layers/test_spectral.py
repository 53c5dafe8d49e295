import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_cells import TwoScales, draw

from fixedpoint.layers import jacobian_penalty, spectral_radius


@given(size=st.integers(1, 40), seed=st.integers(0, 10**6), rows=st.integers(1, 3))
def test_the_radius_of_any_matrix(size: int, seed: int, rows: int) -> None:
    """Random matrices, most of whose largest eigenvalues are complex pairs, against LAPACK."""
    matrices = draw(seed, rows, size, size)
    found = spectral_radius(
        lambda z: torch.tanh((matrices @ z.unsqueeze(2)).squeeze(2)), torch.zeros(rows, size).double()
    )
    wanted = torch.linalg.eigvals(matrices).abs().amax(dim=1)
    torch.testing.assert_close(found.value, wanted, rtol=2e-2, atol=1e-12)


def test_a_complex_pair_is_no_trouble() -> None:
    """A rotation by any angle, scaled by .9, among smaller eigenvalues: power iteration would never settle."""
    for angle in (0.1, 1.0, math.pi / 2, 3.0):
        c, s = 0.9 * math.cos(angle), 0.9 * math.sin(angle)
        matrix = torch.block_diag(
            torch.tensor([[c, -s], [s, c]]).double(), torch.diag(torch.linspace(-0.85, 0.85, 58)).double()
        )
        mixed = draw(1, 60, 60)
        matrix = torch.linalg.solve(mixed, matrix @ mixed)
        found = spectral_radius(lambda z, matrix=matrix: z @ matrix.T, torch.zeros(2, 60).double(), rtol=1e-6)
        assert found.value.tolist() == pytest.approx([0.9, 0.9], rel=1e-4)
        assert (found.residual <= 1e-6).all()


def test_restarts_reach_what_one_cycle_does_not() -> None:
    values = torch.linspace(0.0, 1.0, 200).double()
    short = spectral_radius(lambda z: values * z, torch.zeros(1, 200).double(), memory=8, max_products=8)
    long = spectral_radius(lambda z: values * z, torch.zeros(1, 200).double(), memory=8, max_products=2000, rtol=1e-4)
    assert short.products == 8
    assert abs(float(long.value) - 1) < 1e-3 < abs(float(short.value) - 1)
    assert float(long.residual) <= 1e-4


def test_nilpotent_maps_and_states_of_several_tensors() -> None:
    shift = torch.diag(torch.ones(5).double(), 1)
    # Eigenvalues of a Jordan block of six are as exact as the sixth root of rounding.
    assert float(spectral_radius(lambda z: z @ shift, torch.zeros(1, 6).double()).value) < 1e-2
    cell, x = TwoScales(), draw(3, 5, 4)
    z = (draw(4, 5, 4), draw(5, 5, 2))
    found = spectral_radius(lambda state: cell(state, x), z, rtol=1e-9)

    def flat(row: torch.Tensor, number: int) -> torch.Tensor:
        value = cell((row[None, :4], row[None, 4:]), x[number : number + 1])
        return torch.cat([part[0] for part in value])

    for number in range(5):
        at = torch.cat([part[number] for part in z])
        jacobian = torch.autograd.functional.jacobian(lambda row, number=number: flat(row, number), at)
        assert float(found.value[number]) == pytest.approx(float(torch.linalg.eigvals(jacobian).abs().max()), rel=1e-6)


def test_the_penalty_is_the_frobenius_norm_on_average() -> None:
    matrices = draw(0, 3, 7, 7).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    f = lambda z: (matrices @ z.unsqueeze(2)).squeeze(2)  # noqa: E731
    found = jacobian_penalty(f, draw(1, 3, 7), vectors=4000, generator=generator)
    wanted = matrices.square().sum() / 21
    assert found.item() == pytest.approx(wanted.item(), rel=0.02)
    (slope,) = torch.autograd.grad(found, matrices)
    torch.testing.assert_close(slope, 2 * matrices.detach() / 21, rtol=0.2, atol=0.02)


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: jacobian_penalty(torch.tanh, draw(0, 2, 3), vectors=0), "vectors must be at least 1, got 0"),
        (lambda: jacobian_penalty(lambda z: z.detach(), draw(0, 2, 3)), "does not depend on z"),
        (lambda: spectral_radius(lambda z: z.detach(), draw(0, 2, 3)), "does not depend on z"),
        (lambda: spectral_radius(torch.tanh, draw(0, 2, 3), rtol=2), "rtol must be at least 0 and less than 1, got 2"),
        (lambda: spectral_radius(torch.tanh, draw(0, 2, 3), memory=0), "memory must be at least 1, got 0"),
    ],
)
def test_bad_input_is_a_sentence(act: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        act()
