"""Every kind of sampler on a Gaussian mixture, in float64: joint is serial, and adjoints are backpropagation."""

from __future__ import annotations

import diffusers
import pytest
import torch
from draws import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from sampler_cases import KINDS, arguments_of_steps, made
from torch import Tensor

import fixedpoint
from fixedpoint.chains import BlockSecant, ChainAdjoint, ChainProblem, ChainSolver
from fixedpoint_diffusion import DDIMSchedule, Denoiser, GaussianMixture, sampler_tables, sampling_problem

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SIZE, ROWS = 6, 3
SECANTS = ChainSolver(accelerator=BlockSecant())


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(predicted: str, seed: int) -> GaussianMixture:
    """Six components in three classes, some narrow and some wide, with training timesteps as diffusers has them."""
    means = normal(6, SIZE, seed=seed)
    variances = torch.tensor([0.05, 0.1, 0.2, 0.4, 0.1, 0.05], dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0, 1.0, 0.5, 1.0, 1.5], dtype=torch.float64)
    classes = torch.tensor([0, 1, 2, 0, 1, 2])
    schedule = DDIMSchedule(clip_sample=False)
    return GaussianMixture(means, variances, weights, schedule, classes=classes, prediction_type=predicted)


def problem_of(
    scheduler: object, steps: int, x_T: Tensor, denoiser: Denoiser, seed: int, **step_kwargs
) -> ChainProblem:
    draws = len(sampler_tables(scheduler, steps, step_kwargs=step_kwargs).draws)
    noise = normal(len(x_T), draws, SIZE, seed=seed + 1) if draws else None
    return sampling_problem(denoiser, scheduler, x_T, num_inference_steps=steps, noise=noise, step_kwargs=step_kwargs)


@pytest.mark.parametrize("kind", KINDS)
@examples(3, 60)
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_joint_is_serial(kind: str, data: st.DataObject, seed: int) -> None:
    name, options = data.draw(KINDS[kind])
    steps = data.draw(st.integers(2, 60))
    scheduler = made(name, **options)
    given_to_steps = data.draw(arguments_of_steps(name))
    try:
        tables = sampler_tables(scheduler, steps, step_kwargs=given_to_steps)
    except (ValueError, IndexError, AssertionError):  # what diffusers or the probe refuse is tested elsewhere
        assume(False)
    predicted = {"": "epsilon"}.get(tables.prediction_type, tables.prediction_type)
    denoiser = mixture(predicted, seed)
    problem = problem_of(scheduler, steps, normal(ROWS, SIZE, seed=seed), denoiser, seed, **given_to_steps)
    serial = fixedpoint.solve(problem, solver="serial")
    assume(bool(serial.z.isfinite().all()))
    joint = fixedpoint.solve(problem, solver=SECANTS, rtol=1e-11)
    assert joint.converged.all(), joint.message
    scale = serial.z.flatten(2).norm(dim=2)
    assert float(((joint.z - serial.z).flatten(2).norm(dim=2) / scale).max()) <= 1e-9
    # Without slack the rounds end with the bits of the serial run.
    exact = fixedpoint.solve(problem, solver=ChainSolver(accelerator=BlockSecant(), slack=0.0), rtol=0.0)
    assert torch.equal(exact.z, serial.z)
    assert exact.counts.rounds <= problem.length


BETAS = {"prediction_type": "v_prediction"}
SAMPLERS = {
    "2m": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS),
    "3m": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS, solver_order=3, use_karras_sigmas=True),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**BETAS),
    "heun": lambda: diffusers.HeunDiscreteScheduler(**BETAS, use_karras_sigmas=True),
    "2m-sde": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++"),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "euler-a": lambda: diffusers.EulerAncestralDiscreteScheduler(**BETAS),
    "pndm": lambda: diffusers.PNDMScheduler(**BETAS),
    "lms": lambda: diffusers.LMSDiscreteScheduler(**BETAS, use_karras_sigmas=True),
}


def losses(z: Tensor, several: bool) -> Tensor:
    weights = normal(*z.shape, seed=7)
    return (weights * z.sin())[:, slice(None) if several else slice(-1, None)].sum()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("several", [False, True], ids=["last", "all"])
def test_the_adjoint_is_backpropagation_through_the_serial_run(name: str, several: bool) -> None:
    """By the start, every draw of noise, the means of the mixture, and the guidance scale."""
    scheduler, steps = SAMPLERS[name](), 12
    tables = sampler_tables(scheduler, steps)
    predicted = "flow_prediction" if name == "flow" else "v_prediction"
    model = mixture(predicted, seed=3)
    scale = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    denoiser = model.conditioned(torch.tensor([0, 1, 2]), guidance_scale=scale)
    x_T = normal(ROWS, SIZE, seed=4).requires_grad_()
    noise = normal(ROWS, len(tables.draws), SIZE, seed=5).requires_grad_() if tables.stochastic else None
    problem = sampling_problem(denoiser, scheduler, x_T, num_inference_steps=steps, noise=noise, max_batch=11)
    asked = [x_T, scale, *([] if noise is None else [noise])]

    inputs, predictions, states = [problem.x0], list[Tensor](), list[Tensor]()
    for j in range(problem.length):  # one step after another, recorded by autograd
        predictions.insert(0, problem.pairs(inputs[0], torch.full_like(problem.rows, j), problem.rows))
        states.append(problem.next_state(j, inputs, predictions, problem.rows))
        inputs.insert(0, states[-1])
    wanted = torch.autograd.grad(losses(torch.stack(states, dim=1), several), asked, retain_graph=True)

    gradient = ChainAdjoint(solver=SECANTS, termination=fixedpoint.Termination(rtol=1e-13, atol=1e-14))
    solution = fixedpoint.solve(problem, solver=SECANTS, rtol=1e-13, gradient=gradient)
    for found, expected in zip(torch.autograd.grad(losses(solution.z, several), asked), wanted, strict=True):
        assert float((found - expected).norm() / expected.norm()) <= 1e-10
