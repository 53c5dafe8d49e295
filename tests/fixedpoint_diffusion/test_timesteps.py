"""Timesteps of one's own: DDIM from each to the next, as a loop written by hand; the quadratic ones of the authors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from draws import examples
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.core.options import OptionError
from fixedpoint_diffusion import DDIMChain, DDIMSchedule, ddim_problem, draw_noise, invert, quadratic_timesteps
from fixedpoint_diffusion.models.choices import MixtureModel
from fixedpoint_diffusion.task import Sampling

PLAIN = DDIMSchedule(clip_sample=False)
MIXTURE = MixtureModel(dimension=6)


def by_hand(
    schedule: DDIMSchedule, timesteps: list[int], x: torch.Tensor, eta: float, noise: torch.Tensor | None
) -> torch.Tensor:
    """Song, Meng & Ermon (2021), eqs. 12 and 16, over a list: in float64, one step after another."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float32)
    table = torch.cumprod(1 - betas, 0).double()
    end = 1.0 if schedule.set_alpha_to_one else float(table[0])
    model = MIXTURE.denoiser(schedule)
    row = torch.arange(len(x))
    for i, t in enumerate(timesteps):
        ab = float(table[t])
        after = float(table[timesteps[i + 1]]) if i + 1 < len(timesteps) else end
        predicted = model.predict(x, torch.full((len(x),), t), row)
        if schedule.prediction_type == "epsilon":
            image, eps = (x - (1 - ab) ** 0.5 * predicted) / ab**0.5, predicted
        else:
            image = ab**0.5 * x - (1 - ab) ** 0.5 * predicted
            eps = ab**0.5 * predicted + (1 - ab) ** 0.5 * x
        sigma = eta * ((1 - after) / (1 - ab) * (1 - ab / after)) ** 0.5
        x = after**0.5 * image + (1 - after - sigma**2) ** 0.5 * eps
        if noise is not None:
            x = x + sigma * noise[:, i]
    return x


@examples(10, 25)
@given(
    timesteps=st.lists(st.integers(0, 999), min_size=1, max_size=12, unique=True),
    eta=st.sampled_from([0.0, 0.5, 1.0]),
    prediction=st.sampled_from(["epsilon", "v_prediction"]),
    to_one=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_each_step_leads_to_the_next_timestep(
    timesteps: list[int], eta: float, prediction: Any, to_one: bool, seed: int
) -> None:
    timesteps = sorted(timesteps, reverse=True)
    schedule = DDIMSchedule(clip_sample=False, prediction_type=prediction, set_alpha_to_one=to_one)
    x_T, noise = draw_noise([seed, seed + 1], (6,), len(timesteps) if eta else 0, dtype=torch.float64)
    problem = ddim_problem(MIXTURE.denoiser(schedule), schedule, x_T, timesteps=timesteps, eta=eta, noise=noise)
    assert problem.length == len(timesteps)
    expected = by_hand(schedule, timesteps, x_T, eta, noise)
    for solver in ("serial", "picard"):
        found = fixedpoint.solve(problem, solver=solver, rtol=1e-11).z[:, -1]
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("count", [5, 10, 50])
def test_given_timesteps_of_equal_distance_are_the_schedulers_own(count: int) -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(count)
    model = MIXTURE.denoiser(PLAIN)
    x_T, _ = draw_noise([0], (6,), dtype=torch.float64)
    given_ones = ddim_problem(model, PLAIN, x_T, timesteps=scheduler.timesteps)
    laid_out = ddim_problem(model, scheduler, x_T)
    assert torch.equal(fixedpoint.solve(given_ones, solver="serial").z, fixedpoint.solve(laid_out, solver="serial").z)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda steps: np.array(steps, dtype=np.uint16)])
def test_every_list_of_integers_is_one(kind: Any) -> None:
    chain = DDIMChain(lambda x, _: x, PLAIN, timesteps=kind([900, 20, 3]))
    assert chain.route.timesteps == (900, 20, 3)
    assert chain.timesteps.tolist() == [900, 20, 3]


@pytest.mark.parametrize(("count", "left"), [(1, 1), (2, 2), (25, 25), (50, 49), (100, 96), (1000, 688)])
def test_quadratic_timesteps_are_the_authors_without_repeats(count: int, left: int) -> None:
    found = quadratic_timesteps(count)
    assert len(found) == left
    if count > 1:  # one step of theirs would start at timestep 0, where there is no noise
        theirs = [int(s) for s in np.linspace(0, np.sqrt(1000 * 0.8), count) ** 2]
        assert list(found) == sorted(set(theirs), reverse=True)
    x = torch.zeros(1, 6)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        problem = ddim_problem(MIXTURE.denoiser(PLAIN), PLAIN, x, num_inference_steps=count, timesteps="quadratic")
    assert problem.length == left
    expected = [] if left == count else [f"{count} steps of quadratic spacing are {left} distinct timesteps"]
    assert [str(each.message).partition(";")[0] for each in said] == expected


def test_a_joint_solve_and_an_inversion_of_quadratic_steps() -> None:
    model = MIXTURE.denoiser(PLAIN)
    x_T, _ = draw_noise([0, 1], (6,), dtype=torch.float64)
    steps = quadratic_timesteps(25)
    problem = ddim_problem(model, PLAIN, x_T, timesteps=steps)
    images = by_hand(PLAIN, list(steps), x_T, 0.0, None)
    solution = fixedpoint.solve(problem, solver="anderson", rtol=1e-9)
    assert solution.rounds.max() <= 25
    torch.testing.assert_close(solution.z[:, -1], images, rtol=1e-6, atol=1e-7)
    found = invert(model, PLAIN, images, timesteps=steps)
    assert found.residuals.shape == (2, 25)
    again = by_hand(PLAIN, list(steps), found.latents, 0.0, None)
    torch.testing.assert_close(again, images, rtol=0, atol=1e-2)


def test_a_task_has_them_and_says_which_are_left_out() -> None:
    task = Sampling(model=MIXTURE, schedule=PLAIN, timesteps=[900, 300, 20], batch=2, dtype="float64")
    assert task.problem(0).length == 3
    x_T = task.problem(0).x0
    found = fixedpoint.solve(task.problem(0), solver="serial").z[:, -1]
    torch.testing.assert_close(found, by_hand(PLAIN, [900, 300, 20], x_T, 0.0, None), rtol=1e-7, atol=1e-8)
    assert task.notes() == ()
    fewer = Sampling(model=MIXTURE, timesteps="quadratic", eta=1.0, batch=2)
    assert fewer.problem(0).length == 49
    assert fewer.notes() == (
        "timesteps: 50 steps of quadratic spacing are 49 distinct timesteps; the chain has 49 steps",
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"timesteps": [3, 2, 2]}, "strictly decreasing, got 2 before 2; leave out what is there twice"),
        ({"timesteps": [1, 2, 3]}, "got 1 before 2; a chain goes from noise to image, so reverse them"),
        ({"timesteps": [9, 2, 3]}, "got 2 before 3; sort them, from noise to image"),
        ({"timesteps": [1000, 2]}, "from 0 to num_train_timesteps - 1 = 999, got 1000"),
        ({"timesteps": [5, -1]}, "from 0 to num_train_timesteps - 1 = 999, got -1"),
        ({"timesteps": []}, r"must be a list of integers, from noise to image, got \[\]"),
        ({"timesteps": [5.0, 1.0]}, r"must be a list of integers, from noise to image, got \[5.0, 1.0\]"),
        ({"timesteps": torch.tensor([[5, 1]])}, "must be a list of integers"),
        ({"timesteps": [True, False]}, "must be a list of integers"),
        ({"timesteps": 10}, "must be a list of integers, from noise to image, got 10"),
        ({"timesteps": "cubic"}, "a list of integers or 'quadratic', got 'cubic'"),
        ({"timesteps": [5, 1], "num_inference_steps": 3}, "num_inference_steps = 3 does not go with 2 timesteps"),
        ({"timesteps": "quadratic", "num_inference_steps": 1001}, "from 1 to num_train_timesteps = 1000, got 1001"),
        ({"num_inference_steps": 10.0}, "num_inference_steps must be an integer, got 10.0"),
        ({"num_inference_steps": True}, "num_inference_steps must be an integer, got True"),
    ],
)
def test_what_is_no_chain_is_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ddim_problem(lambda x, _: x, PLAIN, torch.zeros(1, 3), **arguments)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"timesteps": [1, 2]}, "timesteps cannot be had: timesteps must be strictly decreasing"),
        ({"timesteps": [2, 1], "num_inference_steps": 3}, "timesteps cannot be had: num_inference_steps = 3 does not"),
        ({"timesteps": "cubic"}, "timesteps must be a list of an integer or one of 'quadratic' or nothing"),
        ({"num_inference_steps": 1001}, "num_inference_steps cannot be had: .* got 1001"),
    ],
)
def test_a_task_refuses_before_it_is_run(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        Sampling(model=MIXTURE, **options)


def test_a_tasks_schedule_has_no_timesteps_beside_the_tasks() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(OptionError, match="schedule comes with timesteps of its own; give those to the task"):
        Sampling(model=MIXTURE, schedule=DDIMSchedule.from_scheduler(scheduler))
