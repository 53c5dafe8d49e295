"""Solutions along a line are expected on a line."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.chains.problem import ChainProblem
from fixedpoint_diffusion import DDIMChain, DDIMSchedule, draw_noise
from fixedpoint_diffusion.inversion.latent_gradients import Exact
from fixedpoint_diffusion.inversion.secant import Secant, at_rest
from fixedpoint_diffusion.models.choices import MixtureModel

DTYPES = st.sampled_from([torch.float32, torch.float64])


@given(seed=st.integers(0, 1000), rows=st.integers(1, 4), share=st.floats(-2, 2), dtype=DTYPES)
def test_an_affine_solution_is_met(seed: int, rows: int, share: float, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(seed)
    first, move, aside = torch.randn(3, rows, 2, 3, generator=draw, dtype=torch.float64).to(dtype)
    weight = torch.randn(7, 6, generator=draw, dtype=torch.float64).to(dtype)

    def solution(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ weight.T + 1

    after = first + move
    kept = Secant({}, first).keep(value=solution(first))
    assert torch.equal(Secant(kept, after).expected("value"), solution(first))  # type: ignore[arg-type]
    kept = Secant(kept, after).keep(value=solution(after))
    wanted = after + share * move
    close = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(Secant(kept, wanted).expected("value"), solution(wanted), rtol=close, atol=close)
    # across the line nothing is known
    across = aside - (aside * move).sum((1, 2), keepdim=True) / (move * move).sum((1, 2), keepdim=True) * move
    torch.testing.assert_close(Secant(kept, after + across).expected("value"), solution(after), rtol=close, atol=close)


def test_it_does_not_go_far_and_not_without_a_move() -> None:
    one = torch.ones(1, 2, dtype=torch.float64)
    kept = Secant(Secant({}, 0 * one).keep(value=0 * one), one).keep(value=one)
    assert torch.equal(Secant(kept, 100 * one).expected("value"), 3 * one)  # type: ignore[arg-type]
    assert torch.equal(Secant(kept, -100 * one).expected("value"), -one)  # type: ignore[arg-type]
    assert torch.equal(Secant(at_rest(kept), 2 * one).expected("value"), one)  # type: ignore[arg-type]
    assert Secant({}, one).expected("value") is None
    assert Secant(kept, one).expected("another") is None
    still = Secant(kept, one).keep(value=2 * one)  # the point stayed where it was
    assert torch.equal(Secant(still, 3 * one).expected("value"), 2 * one)  # type: ignore[arg-type]


def test_rows_know_nothing_of_each_other() -> None:
    first, after, then = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(0))

    def expected(rows: slice) -> torch.Tensor | None:
        kept = Secant(Secant({}, first[rows]).keep(value=first[rows].sin()), after[rows]).keep(value=after[rows].sin())
        return Secant(kept, then[rows]).expected("value")

    everything = expected(slice(None))
    assert everything is not None
    for row in range(5):
        assert torch.equal(everything[row], expected(slice(row, row + 1))[0])  # type: ignore[index]


@pytest.mark.parametrize("length", [10, 30])
def test_a_way_that_goes_on_costs_fewer_calls(length: int) -> None:
    schedule = DDIMSchedule(clip_sample=False)
    model = MixtureModel(dimension=6, separation=4.0)
    chain = DDIMChain(model.denoiser(schedule), schedule, length)
    start, images, move = (
        draw_noise(seeds=range(seed, seed + 3), shape=(6,), dtype=torch.float64)[0] for seed in (0, 10, 20)
    )
    tight = fixedpoint.Termination(rtol=1e-4)
    gradient = Exact(termination=tight, adjoint_termination=tight)
    calls = {}
    for name in ("on", "rest", "cold"):
        kept, calls[name] = {}, 0
        for step in range(6):
            found = gradient.find(ChainProblem(chain, start + 0.002 * step * move), images, kept)
            assert bool(found.solved.all())
            kept = {"on": found.kept, "rest": at_rest(found.kept), "cold": {}}[name]
            calls[name] += found.calls
    assert calls["on"] < calls["rest"] < calls["cold"]
