"""The parallel scan is the recurrence it stands for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fixedpoint.chains.scan import linear_recurrence


def draw(seed: int, *shape: int, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loop(slopes: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    states = [inputs[:, 0]]
    for a, r in zip(slopes[:, 1:].unbind(1), inputs[:, 1:].unbind(1), strict=True):
        carried = a * states[-1] if a.ndim == 2 else torch.einsum("bij,bj->bi", a, states[-1])
        states.append(r + carried)
    return torch.stack(states, dim=1)


@given(
    rows=st.integers(1, 3),
    length=st.integers(1, 40),
    d=st.integers(1, 5),
    size=st.floats(0.0, 2.0),
    seed=st.integers(0, 10**6),
)
def test_equals_the_loop(rows: int, length: int, d: int, size: float, seed: int) -> None:
    inputs = draw(seed, rows, length, d)
    shapes = ((rows, length, d), (rows, length, d, d), (rows, length, 1), (1, length, 1))
    for slopes in (draw(seed + 1, *shape, size=size) for shape in shapes):
        wanted = loop(slopes, inputs)
        scale = loop(slopes.abs(), inputs.abs()).amax()
        assert (linear_recurrence(slopes, inputs) - wanted).abs().amax() <= 1e-13 * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slopes_whose_product_underflows(dtype: torch.dtype) -> None:
    """A running product would be zero after a dozen of these, and its inverse infinite."""
    slopes = torch.tensor([1e-30, 0.0, -1e-20, 1.0], dtype=dtype).repeat(25).view(1, 100, 1).expand(2, 100, 3)
    inputs = draw(3, 2, 100, 3).to(dtype)
    torch.testing.assert_close(linear_recurrence(slopes, inputs), loop(slopes, inputs), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_the_first_slope_is_never_used(fault: float) -> None:
    inputs, slopes, matrices = draw(1, 2, 13, 3), draw(2, 2, 13, 3), draw(4, 2, 13, 3, 3)
    for each in (slopes, matrices):
        broken = each.clone()
        broken[:, 0] = fault
        assert torch.equal(linear_recurrence(broken, inputs), linear_recurrence(each, inputs))


def test_what_is_not_finite_stays_behind_it() -> None:
    inputs, slopes = draw(1, 2, 21, 3), draw(2, 2, 21, 3)
    broken = slopes.clone()
    broken[1, 9, 2] = float("nan")
    found = linear_recurrence(broken, inputs)
    bad = torch.zeros(2, 21, 3, dtype=torch.bool)
    bad[1, 9:, 2] = True
    assert torch.equal(found.isnan(), bad)
    assert torch.equal(found[~bad], linear_recurrence(slopes, inputs)[~bad])


@given(length=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_a_row_alone_has_the_same_bits(length: int, seed: int) -> None:
    slopes, inputs = draw(seed, 4, length, 5), draw(seed + 1, 4, length, 5)
    together = linear_recurrence(slopes, inputs)
    for row in range(4):
        assert torch.equal(linear_recurrence(slopes[row : row + 1], inputs[row : row + 1])[0], together[row])


def test_gradients_flow_through() -> None:
    slopes, inputs = draw(1, 1, 7, 2).requires_grad_(), draw(2, 1, 7, 2).requires_grad_()
    assert torch.autograd.gradcheck(linear_recurrence, (slopes, inputs))


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 6, 3), (1, 5, 3), (2, 5, 3, 4), (2, 5)])
def test_shapes_that_do_not_go_together(shape: tuple[int, ...]) -> None:
    with pytest.raises((ValueError, TypeError)):  # the checker of annotations may come first
        linear_recurrence(torch.zeros(shape), torch.zeros(2, 5, 3))
