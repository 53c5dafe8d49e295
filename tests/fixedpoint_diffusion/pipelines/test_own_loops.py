"""Loops of a user's own: changes in place, deep copies of the scheduler, steps taken twice."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from own_loops import STEPS, Own
from tiny_pipelines import pipeline
from torch import Tensor

import fixedpoint
from fixedpoint_diffusion import parallel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class ChangesOutput(Own):
    def after(self, sample, t):
        output = self.unet(sample, t).sample
        output *= 0.9
        return self.scheduler.step(output, t, sample).prev_sample


class ChangesSample(Own):
    def after(self, sample, t):
        sample[:, :, :2] = 0.3
        return self.scheduler.step(self.unet(sample, t).sample, t, sample).prev_sample


class KeepsOneBuffer(Own):
    def after(self, sample, t):
        moved = self.scheduler.step(self.unet(sample, t).sample, t, sample).prev_sample
        return sample.copy_(moved).clamp_(-2, 2)


class KeepsItsBuffer(Own):
    """What it gave to its scheduler and its network is overwritten afterwards, the sample by what was returned."""

    def after(self, sample, t):
        output = self.unet(sample, t).sample
        moved = self.scheduler.step(output, t, sample).prev_sample
        output.zero_()
        return sample.copy_(moved)


class CopiesItsScheduler(Own):
    """Every step by a scheduler without history."""

    def after(self, sample, t):
        scheduler = copy.deepcopy(self.scheduler)
        return scheduler.step(self.unet(sample, t).sample, t, sample).prev_sample


class SamplesByACopy(Own):
    def __call__(self, generator):
        own, self.scheduler = self.scheduler, copy.deepcopy(self.scheduler)
        try:
            return super().__call__(generator)
        finally:
            self.scheduler = own

    after = ChangesOutput.after


class PredictsAndCorrects(Own):
    """The second step of two begins where the first one did."""

    def after(self, sample, t):
        first = self.scheduler.step(self.unet(sample, t).sample, t, sample).prev_sample
        second = self.scheduler.step(self.unet(first, t).sample, t, sample).prev_sample
        return (first + second) / 2


def made(kind: Callable[..., Any], scheduler: Callable[..., Any]) -> Any:
    settings = {"clip_sample": False} if scheduler is DDIMScheduler else {}
    own = kind(pipeline("ddpm").unet, scheduler(**settings))
    own.set_progress_bar_config(disable=True)
    return own


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize(
    "kind",
    [ChangesOutput, ChangesSample, KeepsOneBuffer, KeepsItsBuffer, CopiesItsScheduler, SamplesByACopy],
    ids=lambda k: k.__name__,
)
def test_output_is_that_of_the_pipelines_own_call(kind, scheduler):
    pipe = made(kind, scheduler)
    with torch.no_grad():
        own = pipe(torch.Generator().manual_seed(3))[0]
    joint = parallel(pipe, solver="block-secant", rtol=1e-3)
    found = joint(torch.Generator().manual_seed(3))[0]
    assert joint.solution.converged.all()
    assert (found - own).norm() < 3e-3 * own.norm()
    serial = parallel(pipe, solver="serial")(torch.Generator().manual_seed(3))[0]
    assert torch.equal(serial, own)


def test_networks_that_are_given_earlier_states_are_refused():
    sampler = parallel(made(PredictsAndCorrects, DDIMScheduler), solver="block-secant")
    with pytest.raises(ValueError, match="mixes outputs or states of earlier steps into what it gives to its networks"):
        sampler(torch.Generator().manual_seed(3))


class ReusesOutputs(Own):
    """Calls its network again only where the sample has moved."""

    bound = 0.4

    def __call__(self, generator):
        self.seen: Tensor | None = None
        return super().__call__(generator)

    def after(self, sample, t):
        if self.seen is None or (sample - self.seen).norm() > self.bound * self.seen.norm():
            self.seen, self.output = sample, self.unet(sample, t).sample
        return self.scheduler.step(self.output, t, sample).prev_sample


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_calls_that_depend_on_the_images_are_refused(scheduler):
    pipe = made(ReusesOutputs, scheduler)
    calls = []
    handle = pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        pipe(torch.Generator().manual_seed(3))
    handle.remove()
    assert len(calls) < STEPS
    with pytest.raises(ValueError, match="images"):
        parallel(pipe, solver="block-secant")(torch.Generator().manual_seed(3))


class Grows(Own):
    def after(self, sample, t):
        moved = self.scheduler.step(self.unet(sample, t).sample, t, sample).prev_sample
        return moved if len(moved) > 2 else torch.cat([moved, -moved])


def test_samples_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"Grows gives samples of shape .2, .* to its scheduler, and later of .4, "):
        parallel(made(Grows, DDIMScheduler), solver="block-secant")(torch.Generator().manual_seed(3))


def test_method_that_replaces_the_step_is_taken():
    pipe = made(ChangesOutput, DDIMScheduler)

    def half(self: Any, model_output: Tensor, timestep: Any, sample: Tensor) -> Any:
        return DDIMScheduler.step(self, 0.5 * model_output, timestep, sample)

    pipe.scheduler.step = types.MethodType(half, pipe.scheduler)
    with torch.no_grad():
        own = pipe(torch.Generator().manual_seed(3))[0]
    for solver, most in (("serial", 0.0), ("block-secant", 3e-3)):
        found = parallel(pipe, solver=solver)(torch.Generator().manual_seed(3))[0]
        assert (found - own).norm() <= most * own.norm()


class HoldsBack(Own):
    """Reduces its predictions near some samples, which random outputs do not lead to."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.near: Tensor | None = None

    def after(self, sample, t):
        output = self.unet(sample, t).sample
        if self.near is not None and (sample - self.near).norm() < 0.5 * self.near.norm():
            output = 0.7 * output
        return self.scheduler.step(output, t, sample).prev_sample


@pytest.mark.parametrize("scheduler", [DDIMScheduler(clip_sample=False), DPMSolverMultistepScheduler()])
def test_a_branch_that_the_solution_takes_alone_is_told(scheduler: Any):
    pipe = HoldsBack(pipeline("ddpm").unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    solver = {"name": "chain", "accelerator": "block-secant"}
    (pipe.near,) = pipe(generator=torch.Generator().manual_seed(0))
    sampler = parallel(pipe, solver=solver)
    with pytest.warns(UserWarning, match="own code does otherwise with the solution.*predictions of step.*'serial'"):
        sampler(generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", ["steps", "predictions"])
def test_a_problem_is_the_same_whatever_is_drawn_after_it_was_made(form: str):
    pipe = made(ChangesSample, EulerAncestralDiscreteScheduler)
    sampler = parallel(pipe, form=form)
    found = []
    for more in (0, 1):
        generator = torch.Generator().manual_seed(3)
        problem = sampler.problem(generator)
        torch.randn(more, generator=generator)
        found.append(fixedpoint.solve(problem, solver="block-secant", rtol=1e-4))
    assert all(each.converged.all() for each in found)
    assert torch.equal(found[0].z, found[1].z)
