"""What replays keep, what a call shows, and parts that are reached under other names."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from own_loops import STEPS, Own
from pipeline_cases import called, jointly, made
from tiny_pipelines import distance, images_of, pipeline
from torch import Tensor

from fixedpoint import solve
from fixedpoint_diffusion import parallel
from fixedpoint_diffusion.pipelines.passes import Pass

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("form", ["affine", "tables", "steps", "predictions"])
def test_nothing_of_a_replay_waits_for_the_garbage_collector(form, monkeypatch):
    passes: list[weakref.ref[Any]] = []
    begin = Pass.__init__

    def noted(self: Any, *args: Any, **given: Any) -> None:
        begin(self, *args, **given)
        passes.append(weakref.ref(self))

    monkeypatch.setattr(Pass, "__init__", noted)
    sampler = jointly(made("sd1", "DDIMScheduler", clip_sample=False), form=form)
    gc.collect()
    gc.disable()
    try:
        called(sampler, "sd1")
        assert len(passes) > 5
        assert [each for each in passes if each() is not None] == []
    finally:
        gc.enable()


@pytest.mark.parametrize("form", ["affine", "tables", "steps", "predictions"])
def test_problem_holds_no_numbers_of_the_passes_that_made_it(form):
    sampler = jointly(made("sd1", "DDIMScheduler", clip_sample=False), form=form)
    problem = called(sampler.problem, "sd1", steps=20)
    loop = sampler._known[problem.chain].loop
    own = [step.prediction for step in loop.steps] + [step.sample for step in loop.steps]
    assert all(each.device.type == "meta" for each in own)
    assert all(call.arguments == {} for step in loop.steps for call in step.calls)
    assert all(call.rows == 2 * loop.layout.count for step in loop.steps for call in step.calls)


@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_steps_are_left_out_where_calls_alone_are_recorded(scheduler):
    """Inputs of Euler's are scaled by the scheduler's count, which goes on without steps."""
    sampler = jointly(made("sd1", scheduler), form="predictions")
    assert sampler._known[called(sampler.problem, "sd1").chain].loop.skips


class AsksTwice(Own):
    """Guidance by two calls; steps are taken with noise near some samples, which random outputs do not lead to."""

    near: Tensor | None = None

    def after(self, sample, t):
        close = self.near is not None and (sample - self.near).norm() < 0.5 * self.near.norm()
        return self.scheduler.step(self.predicted(sample, t), t, sample, eta=1.0 if close else 0.0).prev_sample

    def predicted(self, sample: Tensor, t: Tensor) -> Tensor:
        return 1.5 * self.unet(sample, t).sample - 0.5 * self.unet(0.9 * sample, t).sample


class AsksWithAnAnswer(AsksTwice):
    """The second call is given what the first one returned."""

    both = False

    def predicted(self, sample, t):
        first = self.unet(sample, t).sample
        output = self.unet(sample + 0.1 * first, t).sample
        return output + 0.1 * first if self.both else output


def own_loop(kind: type[Own]) -> Any:
    pipe = kind(pipeline("ddpm").unet, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("kind", [AsksTwice, AsksWithAnAnswer])
def test_a_branch_is_told_where_steps_have_several_calls(kind):
    pipe = own_loop(kind)
    with torch.no_grad():
        (own,) = pipe(generator=torch.Generator().manual_seed(0))
    joint = jointly(pipe)(generator=torch.Generator().manual_seed(0))[0]  # without a warning: these are errors
    assert distance(joint, own) < 3e-3
    pipe.near = own
    with pytest.warns(UserWarning, match="own code does otherwise with the solution.*samples of step.*'serial'"):
        jointly(pipe)(generator=torch.Generator().manual_seed(0))


def test_no_branch_is_told_where_outputs_are_arguments_and_predictions():
    pipe = own_loop(AsksWithAnAnswer)
    pipe.both = True
    with torch.no_grad():
        (own,) = pipe(generator=torch.Generator().manual_seed(0))
    assert distance(jointly(pipe)(generator=torch.Generator().manual_seed(0))[0], own) < 3e-3


@pytest.mark.parametrize(
    ("kind", "both", "feeding"),
    [(AsksTwice, False, []), (AsksWithAnAnswer, False, range(STEPS)), (AsksWithAnAnswer, True, None)],
)
def test_outputs_that_are_arguments_alone_are_not_held(kind, both, feeding):
    pipe = own_loop(kind)
    pipe.both = both
    sampler = jointly(pipe)
    problem = sampler.problem(generator=torch.Generator().manual_seed(0))
    loop = sampler._known[problem.chain].loop
    assert loop.feeding == (None if feeding is None else {(step, 0) for step in feeding})
    sampler.finish(problem, solve(problem, solver="block-secant"))
    places = {place for _, place, *_ in loop.latest.outputs}
    assert places == (set() if feeding is None else {1} if feeding else {0, 1})


class ByAnotherName(Own):
    """Has its scheduler under a second name, too."""

    def after(self, sample, t):
        return self.steps_by.step(self.unet(sample, t).sample, t, sample).prev_sample


def test_scheduler_under_a_second_name():
    pipe = own_loop(ByAnotherName)
    pipe.steps_by = scheduler = pipe.scheduler
    with torch.no_grad():
        (own,) = pipe(generator=torch.Generator().manual_seed(0))
    assert distance(jointly(pipe)(generator=torch.Generator().manual_seed(0))[0], own) < 3e-3
    assert torch.equal(parallel(pipe, solver="serial")(generator=torch.Generator().manual_seed(0))[0], own)
    assert pipe.steps_by is pipe.scheduler is scheduler


class Holder:
    """Another component."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler


class ByAnotherObject(Own):
    """Reaches its scheduler through another component."""

    def __call__(self, generator):
        self.other.scheduler.set_timesteps(8)
        return super().__call__(generator)

    def after(self, sample, t):
        return self.other.scheduler.step(self.unet(sample, t).sample, t, sample).prev_sample


def test_scheduler_of_another_object_is_refused():
    pipe = own_loop(ByAnotherObject)
    pipe.other = Holder(pipe.scheduler)
    said = "ByAnotherObject took no step of the scheduler in its attribute scheduler, so .* let it use self.scheduler"
    with pytest.raises(ValueError, match=said):
        jointly(pipe)(generator=torch.Generator().manual_seed(0))


class KeepsItsNetwork(Own):
    def after(self, sample, t):
        self.last = self.unet
        return self.scheduler.step(self.unet(sample, t).sample, t, sample).prev_sample


def test_part_that_a_pipeline_keeps_under_a_new_name_is_its_own():
    pipe = own_loop(KeepsItsNetwork)
    jointly(pipe)(generator=torch.Generator().manual_seed(0))
    assert type(pipe.last) is type(pipe.unet)
    assert pipe.last is pipe.unet


def test_bar_is_shown_where_the_own_loop_shows_one(capfd):
    pipe = made("sd1", "DDIMScheduler")
    for call in (pipe, parallel(pipe, solver="serial"), jointly(pipe)):
        pipe.set_progress_bar_config(disable=False)
        called(call, "sd1", steps=3)
        assert "/3" in capfd.readouterr().err
        pipe.set_progress_bar_config(disable=True)
        called(call, "sd1", steps=3)
        assert capfd.readouterr().err == ""
    without = own_loop(AsksTwice)
    without.set_progress_bar_config(disable=False)
    jointly(without)(generator=torch.Generator().manual_seed(0))
    assert capfd.readouterr().err == ""


def test_serial_solution_has_a_row_for_every_image():
    pipe = made("dit", "DDIMScheduler", clip_sample=False)
    serial, joint = parallel(pipe, solver="serial"), jointly(pipe)
    count = len(images_of(called(serial, "dit", steps=3)))
    called(joint, "dit", steps=3)
    assert serial.solution is not None
    assert joint.solution is not None
    assert len(serial.solution.converged) == len(joint.solution.converged) == count
    assert serial.solution.z.shape == joint.solution.z.shape
