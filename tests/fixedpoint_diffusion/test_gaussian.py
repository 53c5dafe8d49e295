"""The preconditioner gaussian on DDIM chains: exact where the data is one Gaussian."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ddim_cases import ANY_LENGTH
from draws import examples
from hypothesis import given, settings
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.chains.capabilities import HasGaussianSlopes, step_jacobians
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.slope.preconditioner import Gaussian
from fixedpoint_diffusion import DDIMChain, DDIMSchedule, GaussianMixture, ddim_problem, draw_noise


@st.composite
def gaussian_problems(draw: st.DrawFn, steps: st.SearchStrategy[int] = ANY_LENGTH) -> dict[str, Any]:
    """One Gaussian of any mean and variance, and any schedule, prediction, length and eta."""
    prediction = draw(st.sampled_from(["epsilon", "sample", "v_prediction"]))
    schedule = DDIMSchedule(
        prediction_type=prediction,
        timestep_spacing=draw(st.sampled_from(["leading", "trailing", "linspace"])),
        beta_schedule=draw(st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"])),
        set_alpha_to_one=draw(st.booleans()),
        rescale_betas_zero_snr=prediction != "epsilon" and draw(st.booleans()),
        clip_sample=False,
    )
    variance, length, eta = draw(st.floats(1e-3, 10.0)), draw(steps), draw(st.sampled_from([0.0, 0.3, 1.0]))
    seed = draw(st.integers(0, 10**6))
    mean = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    model = GaussianMixture(mean, torch.tensor([variance], dtype=torch.float64), torch.ones(1), schedule)
    x_T, noise = draw_noise([seed, seed + 1], (4,), length if eta else 0, dtype=torch.float64)
    problem = ddim_problem(model, schedule, x_T, num_inference_steps=length, eta=eta, noise=noise)
    return {"problem": problem, "variance": variance}


def serial(problem: ChainProblem) -> torch.Tensor:
    states: torch.Tensor = fixedpoint.solve(problem, solver="serial").z
    return states


@examples(15, 40)
@given(case=gaussian_problems())
def test_one_sweep_solves_a_gaussian(case: dict[str, Any]) -> None:
    problem = case["problem"]
    solver = fixedpoint.ChainSolver(preconditioner=Gaussian(case["variance"]))
    solution = fixedpoint.solve(problem, solver=solver, rtol=1e-8)
    assert solution.converged.all()
    assert solution.counts.rounds <= 2
    exact = serial(problem)
    assert (solution.z - exact).abs().amax() <= 1e-8 * exact.abs().amax()


def test_another_variance_does_not_solve_it_at_once() -> None:
    schedule = DDIMSchedule(clip_sample=False)
    model = GaussianMixture(
        torch.zeros(1, 4, dtype=torch.float64), torch.tensor([0.01], dtype=torch.float64), torch.ones(1), schedule
    )
    problem = ddim_problem(model, schedule, draw_noise([0], (4,), dtype=torch.float64)[0])
    solver = fixedpoint.ChainSolver(preconditioner=Gaussian(1.0))
    assert fixedpoint.solve(problem, solver=solver, rtol=1e-8).counts.rounds > 2


@settings(max_examples=40)
@given(case=gaussian_problems(steps=st.integers(1, 60)), coarse=st.booleans())
def test_slopes_are_those_of_autograd(case: dict[str, Any], coarse: bool) -> None:
    problem = case["problem"]
    chain = problem.chain
    if coarse:
        chain = chain.coarse(torch.arange(chain.length % 2 or 2, chain.length + 1, 2))
    index = torch.arange(chain.length)
    x = torch.randn(chain.length, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = chain.gaussian_slopes(case["variance"])
    assert found.dtype == torch.float64
    jacobians = step_jacobians(chain.step, x, index, torch.zeros_like(index))
    wanted = found.view(-1, 1, 1) * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(jacobians, wanted, rtol=1e-9, atol=1e-9)


@given(
    length=st.integers(1, 200),
    variance=st.floats(1e-3, 10.0),
    eta=st.sampled_from([0.0, 0.5, 1.0]),
    spacing=st.sampled_from(["leading", "trailing", "linspace"]),
)
def test_slopes_do_not_depend_on_what_is_predicted(length: int, variance: float, eta: float, spacing: str) -> None:
    """From each kind's own coefficients and the slope that its prediction has for such data."""
    found = []
    for kind in ("epsilon", "sample", "v_prediction"):
        schedule = DDIMSchedule(prediction_type=kind, timestep_spacing=spacing)
        noise = torch.zeros(1, length, 4) if eta else None
        chain = DDIMChain(lambda x, _: x, schedule, length, eta=eta, noise=noise)
        signal, _ = schedule.signal(length)
        spread = signal * variance + 1 - signal
        slope = {
            "epsilon": (1 - signal).sqrt() / spread,
            "sample": signal.sqrt() * variance / spread,
            "v_prediction": (signal * (1 - signal)).sqrt() * (1 - variance) / spread,
        }[kind]
        index, row = torch.arange(length), torch.zeros(length, dtype=torch.int64)
        unclipped = DDIMChain(
            lambda x, _, slope=slope: slope.unsqueeze(1) * x,
            DDIMSchedule(prediction_type=kind, timestep_spacing=spacing, clip_sample=False),
            length,
            eta=eta,
            noise=noise,
        )
        # The step is linear in x, where the prediction is: its slope is its value at one.
        value = unclipped.step(torch.ones(length, 4, dtype=torch.float64), index, row)[:, 0]
        torch.testing.assert_close(chain.gaussian_slopes(variance), value, rtol=1e-9, atol=1e-9)
        found.append(chain.gaussian_slopes(variance))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_unit_variance_keeps_its_variance() -> None:
    """Slopes at most one; for eta = 0 the angle between the levels says how much less."""
    chain = DDIMChain(lambda x, _: x, DDIMSchedule(), 50)
    signal, later = chain.schedule.signal(50)
    angle = torch.arccos(later.sqrt()) - torch.arccos(signal.sqrt())
    torch.testing.assert_close(chain.gaussian_slopes(1.0), torch.cos(angle), rtol=1e-9, atol=1e-9)
    assert isinstance(chain, HasGaussianSlopes)


def test_a_variance_that_is_none_is_a_sentence() -> None:
    chain = DDIMChain(lambda x, _: x, DDIMSchedule(), 10)
    for variance in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="variance must be positive, got"):
            chain.gaussian_slopes(variance)
