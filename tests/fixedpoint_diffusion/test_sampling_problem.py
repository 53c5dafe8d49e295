"""Sampling problems of any scheduler: their serial and joint runs, samples, jumps, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)
from draws import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from sampler_cases import HISTORY, KINDS, arguments_of_steps, difference, images, made, network

import fixedpoint
from fixedpoint.chains import ChainProblem
from fixedpoint.chains.joint.solver import BlockSecant
from fixedpoint.core.problem import AbilityError
from fixedpoint_diffusion import (
    DDIMChain,
    Denoiser,
    MultistepChain,
    SamplerChain,
    SamplerTables,
    draw_noise,
    sampler_tables,
    sampling_problem,
)
from fixedpoint_diffusion.samplers.recurrence import serial_run

# Some schedulers compute with numpy as it was.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

MEMORYLESS = sorted(name for name, history in HISTORY.items() if history == 1 and name != "DDIMScheduler")
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def each(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """``network`` for images with a timestep each."""
    return torch.stack([network(image, time) for image, time in zip(u, t, strict=True)])


class ByEvaluation(Denoiser):
    """A denoiser whose timestep is the number of the evaluation: it always implies the same image."""

    def __init__(self, tables: SamplerTables, image: torch.Tensor) -> None:
        levels = tables.levels
        ones = torch.ones(tables.evaluations, dtype=torch.float64)
        self.of_input = torch.zeros_like(ones) if levels is None else levels.clean_input
        self.of_output = ones if levels is None else levels.clean_output
        self.image = image

    def predict(self, x: torch.Tensor, timestep: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        along = (-1, *[1] * (x.ndim - 1))
        of_input, of_output = (part[timestep].view(along) for part in (self.of_input, self.of_output))
        return (self.image - of_input * x) / of_output


def numbered(tables: SamplerTables) -> SamplerTables:
    """The same sampler, whose timesteps are the numbers of the evaluations."""
    same = copy.copy(tables)
    object.__setattr__(same, "timesteps", torch.arange(tables.evaluations))
    return same


def own_states(scheduler: Any, x: torch.Tensor, noise: torch.Tensor, step_kwargs: Mapping[str, Any]) -> torch.Tensor:
    """``prev_sample`` of every step of the scheduler's own loop."""
    drawn = iter(noise.unbind(1))

    def randn(*size: Any, dtype: torch.dtype | None = None, **others: Any) -> torch.Tensor:
        return next(drawn).to(dtype or torch.float32)

    x, states = x * getattr(scheduler, "init_noise_sigma", 1.0), []
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        with mock.patch("torch.randn", randn):
            x = scheduler.step(network(scaled, t), t, x, **step_kwargs).prev_sample
        states.append(x)
    return torch.stack(states, dim=1)


@st.composite
def samplers(draw: st.DrawFn, kind: str) -> tuple[Any, dict[str, Any], int]:
    """A scheduler, the arguments of its steps, and a number of steps with which it has tables."""
    name, chosen = draw(KINDS[kind])
    return made(name, **chosen), draw(arguments_of_steps(name)), draw(st.integers(2, 60))


def tables_of(scheduler: Any, count: int, step_kwargs: Mapping[str, Any]) -> SamplerTables:
    try:
        return sampler_tables(scheduler, count, step_kwargs=step_kwargs)
    except ValueError:  # what the scheduler itself refuses: see test_probe
        assume(False)
        raise


@pytest.mark.parametrize("kind", KINDS)
@examples(4, 25)
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_a_serial_run_is_the_schedulers_own_loop(kind: str, data: st.DataObject, seed: int) -> None:
    """The later inputs and the sample as the tables give them, and the scheduler's own states as its loop does."""
    scheduler, step_kwargs, count = data.draw(samplers(kind))
    tables = tables_of(scheduler, count, step_kwargs)
    x_T, noise = images(len(tables.draws), seed)
    problem = sampling_problem(
        each, scheduler, x_T, num_inference_steps=count, noise=noise if noise.numel() else None, step_kwargs=step_kwargs
    )
    assert isinstance(problem.chain, MultistepChain if tables.history != 1 else (SamplerChain, DDIMChain))
    solution = fixedpoint.solve(problem, solver="serial")
    bound = 2e-5 if "DPM" in tables.scheduler else 2e-6
    assert difference(solution.z, serial_run(tables, lambda u, j: network(u, tables.timesteps[j]), x_T, noise)) <= (
        1e-6 if isinstance(problem.chain, DDIMChain) else 1e-9
    )
    fresh = copy.deepcopy(scheduler)
    fresh.set_timesteps(count)
    narrow_scheduler = copy.deepcopy(fresh)
    expected = own_states(fresh, x_T, noise, step_kwargs)
    narrow = difference(own_states(narrow_scheduler, x_T.float(), noise.float(), step_kwargs).double(), expected)
    assert difference(solution.samples, expected) <= max(bound, 3 * narrow)
    assert torch.equal(solution.samples[:, -1], solution.z[:, -1])


@pytest.mark.parametrize("kind", KINDS)
@examples(4, 25)
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_jumps_are_exact_where_the_clean_image_stays(kind: str, data: st.DataObject, seed: int) -> None:
    scheduler, step_kwargs, count = data.draw(samplers(kind))
    tables = numbered(tables_of(scheduler, count, step_kwargs))
    x_T, noise = images(len(tables.draws), seed)
    image = torch.linspace(-1, 1, x_T[0].numel(), dtype=torch.float64).view(x_T.shape[1:])
    make = SamplerChain if tables.history == 1 else MultistepChain
    chain = make(ByEvaluation(tables, image), tables, noise if tables.stochastic else None)
    problem = ChainProblem(chain, tables.starts[0] * x_T)
    exact = fixedpoint.solve(problem, solver="serial").z
    torch.testing.assert_close(problem.jumps().view(exact.shape), exact, rtol=1e-7, atol=1e-7)
    if not isinstance(chain, SamplerChain):
        return
    kept = torch.tensor(sorted(data.draw(st.sets(st.integers(1, chain.length))) | {chain.length}))
    # Evaluations of a coarse chain are those of the steps that its jumps begin with, and so are their numbers.
    torch.testing.assert_close(
        fixedpoint.solve(problem.coarse(kept), solver="serial").z, exact[:, kept - 1], rtol=1e-7, atol=1e-7
    )
    between = problem.interpolate(exact[:, kept - 1], kept).view(exact.shape)
    torch.testing.assert_close(between, exact, rtol=1e-6, atol=1e-6)
    states = torch.cat([problem.x0.unsqueeze(1), exact], dim=1)
    index = data.draw(st.integers(0, chain.length - 1))
    target = data.draw(st.integers(index + 1, chain.length))
    row = problem.rows
    found = chain.extend(
        states[:, index], states[:, index + 1], torch.full_like(row, index), torch.full_like(row, target), row
    )
    torch.testing.assert_close(found, states[:, target], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", MEMORYLESS)
def test_a_coarse_chain_of_all_states_is_the_chain(name: str) -> None:
    tables = sampler_tables(made(name), 12)
    x_T, noise = images(len(tables.draws), 5)
    chain = SamplerChain(each, tables, noise if tables.stochastic else None)
    problem = ChainProblem(chain, tables.starts[0] * x_T)
    every = torch.arange(1, chain.length + 1)
    exact = fixedpoint.solve(problem, solver="serial")
    coarse = fixedpoint.solve(problem.coarse(every), solver="serial")
    torch.testing.assert_close(coarse.z, exact.z, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(coarse.samples, exact.samples, rtol=1e-11, atol=1e-11)
    kept = every.flip(0)[::2].flip(0)
    assert torch.equal(
        problem.interpolate(exact.z[:, kept - 1], kept).view(exact.z.shape)[:, kept - 1], exact.z[:, kept - 1]
    )


JOINT = {
    "DDPM": lambda: made("DDPMScheduler"),
    "Euler, Karras": lambda: EulerDiscreteScheduler(use_karras_sigmas=True),
    "Euler ancestral": lambda: EulerAncestralDiscreteScheduler(),
    "flow": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "DPM++ 2M": lambda: DPMSolverMultistepScheduler(),
    "DPM++ 2M SDE": lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "Heun": lambda: HeunDiscreteScheduler(use_karras_sigmas=True),
    "UniPC": lambda: made("UniPCMultistepScheduler"),
    "PNDM, dense": lambda: PNDMScheduler(),
}


@pytest.mark.parametrize("name", JOINT)
def test_joint_runs_converge_to_the_serial_one(name: str) -> None:
    scheduler = JOINT[name]()
    draws = len(sampler_tables(scheduler, 24).draws)
    x_T, noise = images(draws, 11, rows=3)

    def problem(rows: slice) -> ChainProblem:
        return sampling_problem(
            each, scheduler, x_T[rows], num_inference_steps=24, noise=noise[rows] if draws else None
        )

    serial = fixedpoint.solve(problem(slice(None)), solver="serial")
    for accelerator in (fixedpoint.Anderson(memory=2), BlockSecant()):
        solver = fixedpoint.ChainSolver(accelerator=accelerator)
        joint = fixedpoint.solve(problem(slice(None)), solver=solver, rtol=1e-11)
        assert joint.converged.all(), joint.message
        assert difference(joint.z, serial.z) <= 1e-9
        assert joint.counts.rounds <= problem(slice(None)).length + 1
        alone = fixedpoint.solve(problem(slice(1, 2)), solver=solver, rtol=1e-11)
        assert torch.equal(alone.z[0], joint.z[1])


@pytest.mark.parametrize("name", JOINT)
@pytest.mark.parametrize("variance", [0.05, 1.0, 3.0])
def test_gaussian_slopes_solve_a_gaussian_at_once(name: str, variance: float) -> None:
    """The network that is right for data from one Gaussian has exactly these slopes."""
    tables = numbered(sampler_tables(JOINT[name](), 20))
    levels = tables.levels
    assert levels is not None
    x_T, noise = images(len(tables.draws), 2)
    spread = levels.signal**2 * variance + levels.noise**2
    mean = 0.3

    def g(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        signal, gain, of_input, of_output = (
            part[t].view(-1, *[1] * (u.ndim - 1))
            for part in (levels.signal, levels.signal * variance / spread, levels.clean_input, levels.clean_output)
        )
        clean = mean + gain * (u - signal * mean)
        return (clean - of_input * u) / of_output

    make = SamplerChain if tables.history == 1 else MultistepChain
    chain = make(g, tables, noise if tables.stochastic else None)
    problem = ChainProblem(chain, tables.starts[0] * x_T)
    serial = fixedpoint.solve(problem, solver="serial").z
    solver = fixedpoint.ChainSolver(preconditioner=fixedpoint.chains.Gaussian(variance))
    solution = fixedpoint.solve(problem, solver=solver, rtol=1e-8)
    assert solution.counts.rounds <= 3
    assert difference(solution.z, serial) <= 1e-8
    if variance == 1.0:
        assert torch.equal(chain.reference_slopes(), chain.gaussian_slopes(1.0))


def test_gradients_reach_the_start_and_every_draw() -> None:
    tables = sampler_tables(EulerAncestralDiscreteScheduler(), 6)
    x_T, noise = (part.requires_grad_() for part in images(6, 3))
    problem = sampling_problem(each, EulerAncestralDiscreteScheduler(), x_T, num_inference_steps=6, noise=noise)
    x = problem.x0
    for j in range(problem.length):
        x = problem.next_state(j, [x], [problem.pairs(x, torch.full_like(problem.rows, j), problem.rows)], problem.rows)
    found = torch.autograd.grad(x.square().sum(), (x_T, noise))
    run = serial_run(tables, lambda u, j: network(u, tables.timesteps[j]), x_T, noise)
    expected = torch.autograd.grad(run[:, -1].square().sum(), (x_T, noise))
    torch.testing.assert_close(found, expected, **EXACT)


def test_timesteps_come_in_the_schedulers_own_dtype_and_may_repeat() -> None:
    came: list[torch.Tensor] = []

    def g(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        came.append(t)
        return 0.1 * u

    for scheduler in (
        HeunDiscreteScheduler(timestep_spacing="linspace"),
        EulerDiscreteScheduler(use_karras_sigmas=True),
    ):
        came.clear()
        problem = sampling_problem(g, scheduler, torch.ones(1, 2), num_inference_steps=5)
        fixedpoint.solve(problem, solver="serial")
        scheduler.set_timesteps(5)
        assert torch.equal(torch.cat(came), scheduler.timesteps)


def test_a_ddim_scheduler_becomes_a_ddim_chain() -> None:
    x_T, noise = draw_noise([0, 1], (3, 4), 7, dtype=torch.float64)
    clipping = DDIMScheduler(clip_sample_range=0.4)
    problem = sampling_problem(
        each,
        clipping,
        x_T,
        num_inference_steps=7,
        noise=noise,
        step_kwargs={"eta": 0.7, "use_clipped_model_output": True},
    )
    assert isinstance(problem.chain, DDIMChain)
    assert noise is not None
    clipping.set_timesteps(7)
    solution = fixedpoint.solve(problem, solver="serial")
    expected = own_states(clipping, x_T, noise, {"eta": 0.7, "use_clipped_model_output": True})
    assert difference(solution.z, expected) <= 2e-6
    assert torch.equal(solution.samples, solution.z)
    chosen = sampling_problem(each, clipping, x_T, timesteps=[900, 500, 20])
    assert chosen.chain.timesteps.tolist() == [900, 500, 20]
    with pytest.raises(ValueError, match="a DDIM chain takes no sigmas"):
        sampling_problem(each, clipping, x_T, sigmas=[1.0, 0.5])


def test_only_samplers_have_samples() -> None:
    solution = fixedpoint.solve(lambda z: 0.5 * torch.cos(z), torch.ones(2, 3))
    assert not hasattr(solution, "samples")
    with pytest.raises(AttributeError, match="not that of a sampler, so it has no samples; take z"):
        solution.samples  # noqa: B018


def test_the_last_sample_alone() -> None:
    scheduler = EulerDiscreteScheduler()
    problem = sampling_problem(each, scheduler, torch.ones(1, 2, 3, 4), num_inference_steps=5)
    last = ChainProblem(problem.chain, problem.x0, keep="last")
    solution = fixedpoint.solve(last, solver=fixedpoint.ChainSolver(window=2))
    assert solution.samples.shape == (1, 1, 2, 3, 4)
    assert torch.equal(solution.samples, solution.z)


def test_a_sampler_that_forgets_its_state_has_no_inverse() -> None:
    x_T, noise = images(3, 0)
    lcm = sampling_problem(each, LCMScheduler(clip_sample=False), x_T, num_inference_steps=4, noise=noise)
    assert isinstance(lcm.chain, SamplerChain)
    assert "keep nothing of their state" in str(lcm.chain.no_inverse())
    euler = sampling_problem(each, EulerDiscreteScheduler(), x_T, num_inference_steps=4)
    assert isinstance(euler.chain, SamplerChain)
    assert euler.chain.no_inverse() is None


def test_unknown_levels_hold_the_output() -> None:
    """Then there are no slopes for Gaussian data, and the reference is the plain one."""
    for name, reference in (("MiniMaxH3Scheduler", 1.0), ("IPNDMScheduler", 0.0)):
        problem = sampling_problem(each, made(name), torch.ones(1, 2, 3, 4), num_inference_steps=6)
        chain = problem.chain
        assert isinstance(chain, (SamplerChain, MultistepChain))
        assert chain.levels is None
        assert chain.reference_slopes().tolist() == [reference] * chain.length
        with pytest.raises(AbilityError, match="gaussian slopes require noise levels"):
            chain.gaussian_slopes(1.0)


def never(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    raise AssertionError


def conditioned() -> Denoiser:
    class Conditioned(Denoiser):
        rows = 3

        def predict(self, x: torch.Tensor, timestep: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    return Conditioned()


@pytest.mark.parametrize(
    ("make", "arguments", "sentence"),
    [
        (
            lambda: EulerAncestralDiscreteScheduler(),
            {"num_inference_steps": 4},
            r"draws noise 4 times: pass noise of shape \(B, 4, \*event\), for example by draw_noise\(seeds, shape, 4\)",
        ),
        (
            lambda: EulerAncestralDiscreteScheduler(),
            {"num_inference_steps": 4, "noise": torch.ones(2, 3, 5)},
            r"noise must have shape \(B, 4, \*event\), one image for each draw, got \(2, 3, 5\)",
        ),
        (
            lambda: EulerAncestralDiscreteScheduler(),
            {"num_inference_steps": 4, "noise": torch.ones(2, 4, 6)},
            r"noise must have shape \(2, 4, \*\(5,\)\) to go with x_T, got \(2, 4, 6\)",
        ),
        (
            lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
            {"num_inference_steps": 4},
            r"draws noise 4 times",
        ),
        (
            lambda: PNDMScheduler(),
            {"timesteps": [900, 500]},
            r"PNDMScheduler.set_timesteps takes no timesteps; it takes num_inference_steps",
        ),
        (
            lambda: HeunDiscreteScheduler(),
            {"sigmas": [1.0, 0.5]},
            r"HeunDiscreteScheduler.set_timesteps takes no sigmas; it takes num_inference_steps, .*timesteps",
        ),
        (lambda: DDPMScheduler(), {}, r"DDPMScheduler has clip_sample=True: .* is no affine recurrence"),
        (lambda: DDIMScheduler(), {"mu": 1.0}, r"a DDIM chain takes no mu"),
        (
            lambda: DDIMScheduler(),
            {"step_kwargs": {"eta": 1.0}},
            r"eta > 0 requires noise of shape \(B, N, \*event\); see draw_noise",
        ),
        *(
            (make, {"num_inference_steps": 4, **arguments}, sentence)
            for make in (lambda: EulerAncestralDiscreteScheduler(), lambda: DDIMScheduler())
            for arguments, sentence in (
                ({"noise": [1.0]}, r"noise must be a tensor of shape \(B, M, \*event\), got list"),
                ({"noise": torch.ones(2, 4, 5).long()}, r"noise must be of a floating-point dtype, got torch.int64"),
                ({"noise": torch.full((2, 4, 5), torch.nan)}, r"noise must be finite, got 40 entries"),
                ({"step_kwargs": "eta"}, r"step_kwargs must be a mapping of names to values, got str"),
                ({"num_inference_steps": 2.5}, r"num_inference_steps must be an integer, got 2.5"),
                ({"num_inference_steps": True}, r"num_inference_steps must be an integer, got True"),
                ({"num_inference_steps": 0}, r"num_inference_steps must be (at least|from) 1.*, got 0"),
                ({"max_batch": 1.5, "noise": torch.ones(2, 4, 5)}, r"max_batch must be an integer, got 1.5"),
            )
        ),
    ],
)
def test_what_does_not_go_together_is_a_sentence(
    make: Callable[[], Any], arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        sampling_problem(never, make(), torch.ones(2, 5), **arguments)


def test_noise_has_no_effect_where_none_is_drawn() -> None:
    x, noise = images(4, seed=0)
    for scheduler in (EulerDiscreteScheduler(), DPMSolverMultistepScheduler()):
        one, two = (sampling_problem(each, scheduler, x, num_inference_steps=4, noise=given) for given in (None, noise))
        assert torch.equal(fixedpoint.solve(one, solver="serial").z, fixedpoint.solve(two, solver="serial").z)


def test_other_bad_input_is_a_sentence() -> None:
    with pytest.raises(TypeError, match=r"x_T must be a tensor of shape \(B, \*event\), got list"):
        sampling_problem(never, EulerDiscreteScheduler(), [1.0])  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match=r"x_T must be of a floating-point dtype, got torch.int64"):
        sampling_problem(never, EulerDiscreteScheduler(), torch.ones(2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="conditioned for 3 rows, x_T has 2"):
        sampling_problem(conditioned(), EulerDiscreteScheduler(), torch.ones(2, 5))
    with pytest.raises(TypeError, match="requires a scheduler of diffusers, got str"):
        sampling_problem(never, "euler", torch.ones(2, 5))
    with pytest.raises(ValueError, match="num_inference_steps must be at most 10000"):
        sampling_problem(never, EulerDiscreteScheduler(), torch.ones(2, 5), num_inference_steps=10**6)
    with pytest.raises(ValueError, match="has a memory; take MultistepChain"):
        SamplerChain(never, sampler_tables(DPMSolverMultistepScheduler(), 5))
