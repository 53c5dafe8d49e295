"""The task ``ddim-sampling``: what it measures, and that it measures it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fixedpoint
from fixedpoint.registry import registry
from fixedpoint.tasks.task import Context
from fixedpoint_diffusion import DDIMSchedule, Denoiser, ddim_problem, draw_noise
from fixedpoint_diffusion.models import MixtureModel
from fixedpoint_diffusion.noise import row_seeds
from fixedpoint_diffusion.task import DDIMSampling

TASK = DDIMSampling(schedule=DDIMSchedule(clip_sample=False), num_inference_steps=30, batch=3)


def run(task: DDIMSampling, solver: str, rtol: float = 1e-4) -> object:
    built = registry.create("solver", solver)
    return task.run(Context(solver=built, termination=fixedpoint.Termination(rtol=rtol), seed=0))


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_joint_solvers_reach_the_serial_samples(solver: str, eta: float) -> None:
    result = run(replace(TASK, eta=eta), solver)
    assert result.status == {"converged": 3}
    assert result.metrics["relative_error"] < 1e-3
    assert result.metrics["max_error"] < 1e-2
    assert result.rounds <= 31
    assert result.images.pixels.shape == result.reference.pixels.shape == (3, 16, 16)
    assert result.trace["relative_error"].shape[1] == 3


def test_the_serial_row_is_the_reference() -> None:
    result = run(TASK, "serial")
    assert (result.rounds, result.evaluations) == (30, 90)
    assert result.metrics == {"relative_error": 0.0, "max_error": 0.0}


def test_an_unfinished_solve_has_the_error_it_has() -> None:
    """The metric is the distance to the sequential samples, not what the solver believes."""
    solver = fixedpoint.ChainSolver()
    rough = TASK.run(Context(solver=solver, termination=fixedpoint.Termination(rtol=0.0, max_rounds=4), seed=0))
    assert rough.status == {"max_rounds": 3}
    assert rough.metrics["relative_error"] > 0.05


def test_points_have_no_pictures() -> None:
    assert run(replace(TASK, model=MixtureModel(), dtype="float64"), "picard").images is None


def test_seeds_differ_and_repeat() -> None:
    context = Context(solver=fixedpoint.Serial(), termination=fixedpoint.Termination(), seed=1)
    again = Context(solver=fixedpoint.Serial(), termination=fixedpoint.Termination(), seed=1)
    other = Context(solver=fixedpoint.Serial(), termination=fixedpoint.Termination(), seed=2)
    first, second, third = (TASK.run(c).images.pixels for c in (context, again, other))
    assert (first == second).all()
    assert (first != third).any()


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden", "serial"])
def test_a_denoiser_that_fails_at_one_row_and_timestep(fault: float, solver: str) -> None:
    """The other rows are the same bit for bit; the broken one says so."""
    schedule = DDIMSchedule(clip_sample=False)
    exact = MixtureModel(dimension=16).denoiser(schedule)

    class Faulty(Denoiser):
        def predict(self, x: torch.Tensor, timestep: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
            hit = (row == 1) & (timestep == 400)
            return torch.where(hit.unsqueeze(1), fault, exact.predict(x, timestep, row))

    x_T, _ = draw_noise(row_seeds(0, 3), (16,), dtype=torch.float64)
    clean = fixedpoint.solve(ddim_problem(exact, schedule, x_T), solver=solver, rtol=1e-9)
    beside = fixedpoint.solve(ddim_problem(Faulty(), schedule, x_T), solver=solver, rtol=1e-9)
    assert [status.label for status in beside.status] == ["converged", "nonfinite", "converged"]
    for row in (0, 2):
        assert torch.equal(beside.z[row], clean.z[row])
    assert beside.z.isfinite().all()
