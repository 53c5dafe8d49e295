"""The task ``ddim-sampling``: what it measures, and that it measures it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import fixedpoint
from fixedpoint.core.progress import Progress
from fixedpoint.registry import registry
from fixedpoint.tasks.task import Context, Result
from fixedpoint_diffusion import DDIMSchedule, Denoiser, ddim_problem, draw_noise
from fixedpoint_diffusion.models.choices import MixtureModel
from fixedpoint_diffusion.samplers.noise import row_seeds
from fixedpoint_diffusion.task import Sampling

TASK = Sampling(schedule=DDIMSchedule(clip_sample=False), num_inference_steps=30, batch=3)


def run(task: Sampling, solver: str, rtol: float = 1e-4) -> Result:
    return run_with(task, registry.create("solver", solver), rtol)


def run_with(task: Sampling, solver: fixedpoint.Solver, rtol: float = 1e-4) -> Result:
    return task.run(Context(solver=solver, termination=fixedpoint.Termination(rtol=rtol), seed=0))


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
    task = replace(TASK, model=MixtureModel(), dtype="float64")
    result = run(task, "picard")
    assert result.images is None
    assert result.forming is None
    assert task.drawing(task.problem(0)) is None  # so that nobody listens to the rounds


@pytest.mark.parametrize("window", [None, 9])
def test_step_errors_are_kept_row_by_row_as_the_solve_tells_them(window: int | None) -> None:
    solver = fixedpoint.ChainSolver(window=window)
    result = run_with(TASK, solver)
    told = fixedpoint.solve(TASK.problem(0), solver=solver, rtol=1e-4).extras["step_errors"]
    kept = result.trace["step_errors"]
    numbers = np.array(told.numbers)
    last = np.append(numbers[1:] != numbers[:-1], True)
    assert kept.dtype == np.float32
    np.testing.assert_array_equal(kept, np.stack([told.of_row(row)[last] for row in range(3)]))
    np.testing.assert_array_equal(result.trace["step_errors.rounds"], numbers[last])
    np.testing.assert_array_equal(result.trace["step_errors.steps"], np.arange(1, 31))
    width = window or 30
    for row in kept:
        known = ~np.isnan(row)
        assert set(known.sum(axis=1).tolist()) <= {0, width}
        for line in known[known.any(axis=1)]:
            first = int(np.flatnonzero(line)[0])
            assert line[first : first + width].all()
    if window is not None:
        assert np.isnan(kept[0, 0, width:]).all()
        assert np.isnan(kept[0, kept.shape[1] // 2, 0])


def test_long_chains_and_large_batches_are_thinned() -> None:
    task = replace(TASK, model=MixtureModel(dimension=2), num_inference_steps=300, batch=6, dtype="float64")
    result = run_with(task, fixedpoint.ChainSolver(window=1))
    assert result.rounds == 300
    assert result.trace["step_errors"].shape == (4, 150, 150)
    np.testing.assert_array_equal(result.trace["step_errors.rounds"], np.arange(2, 301, 2))
    np.testing.assert_array_equal(result.trace["step_errors.steps"], np.arange(2, 301, 2))


@pytest.mark.parametrize("solver", ["serial", "parareal", "deq-ddim"])
def test_solvers_that_tell_nothing_of_steps_leave_none(solver: str) -> None:
    assert set(run(TASK, solver).trace) == {"relative_error", "relative_error.rounds"}


@pytest.mark.parametrize("solver", ["serial", "picard", "deq-ddim", "windowed"])
def test_pictures_form_as_the_rounds_tell(solver: str) -> None:
    built = fixedpoint.ChainSolver(window=9) if solver == "windowed" else registry.create("solver", solver)
    result = run_with(TASK, built)
    told: dict[int, np.ndarray] = {}

    def listen(now: Progress) -> None:
        told.setdefault(now.round, now.latest[0].unflatten(0, (-1, 16, 16))[-1].clone().numpy())

    solution = fixedpoint.solve(TASK.problem(0), solver=built, rtol=1e-4, on_round=listen)
    forming = result.forming
    assert forming is not None
    assert 5 <= len(forming.rounds) <= 8
    assert forming.rounds[-1] == solution.rounds[0]
    for number, picture in zip(forming.rounds[:-1], forming.images.pixels, strict=False):
        np.testing.assert_array_equal(picture, told[number])
    np.testing.assert_array_equal(forming.images.pixels[-1], solution.fz[0, -1, 0].numpy())
    np.testing.assert_allclose(forming.images.pixels[-1], result.images.pixels[0], atol=1e-2)
    assert np.abs(forming.images.pixels[0] - result.images.pixels[0]).max() > 0.5


def test_parareal_tells_of_its_sweeps() -> None:
    """A sweep is many rounds, and the first has been over the whole chain already."""
    result = run(TASK, "parareal")
    forming = result.forming
    assert forming is not None
    away = np.abs(forming.images.pixels - result.images.pixels[0]).max(axis=(1, 2))
    assert len(away) >= 3
    assert (np.diff(forming.rounds) > 1).all()
    assert 0.1 > away[0] > 10 * away[-1]


def test_the_serial_pictures_are_the_states_of_the_chain() -> None:
    forming = run(TASK, "serial").forming
    states = fixedpoint.solve(TASK.problem(0), solver="serial").z[0, :, 0].numpy()
    np.testing.assert_array_equal(forming.images.pixels, states[forming.rounds - 1])


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
