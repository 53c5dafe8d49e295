"""DEQ-DDIM as published: its joint map, its weights, what it lacks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.testing.chains import linear_chain, trajectory, wave_chain
from fixedpoint_diffusion import DDIMSchedule, ddim_problem, draw_noise
from fixedpoint_diffusion.models.choices import MixtureModel


def start(rows: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def iterates(problem: ChainProblem, solver: fixedpoint.DEQDDIM, count: int) -> list[torch.Tensor]:
    with torch.no_grad():
        f = Evaluator(problem)
        at = solver.begin(f, problem.initial())
        state = solver.init(f, at)
        points = [at.z.clone()]
        for _ in range(count):
            proposal, state = solver.step(f, at, state)
            at = f(proposal)
            points.append(at.z.clone())
    return points


@given(seed=st.integers(0, 10**6), steps=st.sampled_from([5, 10, 25]))
def test_the_first_step_is_the_papers_joint_map(seed: int, steps: int) -> None:
    """``x_k = sqrt(ab_k / ab_T) x_T + sqrt(ab_k) sum_j (s_{j-1} - s_j) eps(x_j)``, eq. 9."""
    schedule = DDIMSchedule(clip_sample=False)
    model = MixtureModel(dimension=6).denoiser(schedule)
    x_T, _ = draw_noise([seed, seed + 1], (6,), dtype=torch.float64)
    problem = ddim_problem(model, schedule, x_T, num_inference_steps=steps)
    _, second = iterates(problem, fixedpoint.DEQDDIM(), 1)
    signal, later = schedule.signal(steps)
    timesteps = torch.from_numpy(schedule.timesteps(steps).copy())
    s, s_later = ((1 - ab) ** 0.5 / ab**0.5 for ab in (signal, later))
    total = torch.zeros_like(x_T)
    for k in range(steps):
        eps = model.predict(x_T, timesteps[k].expand(2), torch.arange(2))
        total = total + (s_later[k] - s[k]) * eps
        expected = (later[k] / signal[0]).sqrt() * x_T + later[k].sqrt() * total
        torch.testing.assert_close(second.unflatten(1, (steps, -1))[:, k], expected, rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 10**6), ridge=st.sampled_from([1e-3, 1.0]), relaxation=st.sampled_from([0.5, 1.0]))
def test_every_state_is_mixed_alone_by_the_bordered_system(seed: int, ridge: float, relaxation: float) -> None:
    problem = ChainProblem(wave_chain(length=7, rows=2, seed=seed), start(2, 3, seed))
    solver = fixedpoint.DEQDDIM(memory=3, ridge=ridge, relaxation=relaxation)
    points = iterates(problem, solver, 5)
    images = []
    with torch.no_grad():
        for z in points:
            defects = (problem(z) - z).unflatten(1, (7, 3))
            images.append(z.unflatten(1, (7, 3)) + defects.cumsum(1))  # the chain's coefficients are all one
    for k in range(1, 6):
        old = range(max(k - 3, 0), k)
        for row in range(2):
            for state in range(7):
                x = np.array([points[j].unflatten(1, (7, 3))[row, state].numpy() for j in old])
                g = np.array([images[j][row, state].numpy() for j in old])
                n = len(x)
                system = np.zeros((n + 1, n + 1))
                system[0, 1:] = system[1:, 0] = 1.0
                system[1:, 1:] = (g - x) @ (g - x).T + ridge * np.eye(n)
                alpha = np.linalg.solve(system, np.eye(n + 1)[0])[1:]
                expected = relaxation * alpha @ g + (1 - relaxation) * alpha @ x
                got = points[k].unflatten(1, (7, 3))[row, state].numpy()
                np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9)


def test_it_finds_the_sequential_chain() -> None:
    for seed in range(3):
        chain, x0 = linear_chain(seed=seed), start(4, 3, seed)
        solution = fixedpoint.solve(ChainProblem(chain, x0), solver="deq-ddim", rtol=1e-10)
        assert solution.converged.all()
        assert solution.counts.rounds == 2  # its own coefficients are the whole chain
        torch.testing.assert_close(solution.z, trajectory(chain, x0), rtol=1e-9, atol=1e-9)


def test_a_ridge_of_zero_is_no_crash() -> None:
    """Equal columns make the system singular: the newest point is taken alone."""
    problem = ChainProblem(wave_chain(seed=3), start(4, 3, 0))
    solution = fixedpoint.solve(problem, solver=fixedpoint.DEQDDIM(ridge=0.0), rtol=1e-10)
    assert solution.z.isfinite().all()


class NoCoefficients(Chain):
    length = 3

    def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return x / 2


def test_bad_input_is_a_sentence() -> None:
    with pytest.raises(TypeError, match="deq-ddim requires a chain that knows its coefficients, and this one has none"):
        fixedpoint.solve(ChainProblem(NoCoefficients(), torch.ones(2, 3)), solver="deq-ddim")
    with pytest.raises(ValueError, match="accelerator must be a solver of any problem: DEQDDIM solves chains itself"):
        fixedpoint.ChainSolver(accelerator=fixedpoint.DEQDDIM())
    with pytest.raises(TypeError, match=r"deq-ddim requires a chain \(ChainProblem\), got FunctionProblem"):
        fixedpoint.solve(torch.cos, torch.ones(2, 3), solver="deq-ddim")
