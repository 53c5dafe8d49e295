"""After a call a pipeline is as after its own call, whatever was raised, and nothing of ours remains in it."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_cases import called, jointly, made
from tiny_pipelines import distance, generators, images_of
from torch import Tensor, nn

import fixedpoint
from fixedpoint_diffusion import parallel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SAMPLERS = {
    "serial": lambda pipe: parallel(pipe, solver="serial"),
    "joint": jointly,
    "tables": lambda pipe: jointly(pipe, form="tables"),
    "steps": lambda pipe: jointly(pipe, form="steps"),
    "predictions": lambda pipe: jointly(pipe, form="predictions"),
}


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


FEW = (slow("serial"), "joint", slow("predictions"))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    states = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    yield
    torch.random.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


def reseeded() -> None:
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)


def global_states() -> tuple[Any, ...]:
    return torch.random.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def described(value: Any) -> Any:
    """What is compared of an attribute. Of images that a scheduler remembers it is the shape: they are dropped."""
    if isinstance(value, Tensor):
        return (value.dtype, value.shape) if value.ndim > 2 else (value.dtype, value.tolist())
    if isinstance(value, (list, tuple)):
        return [described(each) for each in value]
    if isinstance(value, dict):
        return {key: described(each) for key, each in value.items()}
    return type(value) if isinstance(value, nn.Module) or hasattr(value, "config") else repr(value)


def state_of(pipe: Any) -> dict[str, Any]:
    scheduler = {name: described(value) for name, value in vars(pipe.scheduler).items()}
    return {**{name: described(value) for name, value in vars(pipe).items()}, "scheduler's": scheduler}


def of_ours(pipe: Any) -> list[str]:
    """The attributes of a pipeline, its scheduler and the modules of its networks that are objects of this package."""
    holders = [pipe, pipe.scheduler]
    for part in vars(pipe).values():
        if isinstance(part, nn.Module):
            holders += list(part.modules())
    return [
        name
        for holder in holders
        for name, value in vars(holder).items()
        if f"{type(value).__module__} {getattr(value, '__module__', '')}".count("fixedpoint")
    ]


def assert_untouched(pipe: Any, parts: dict[str, Any]) -> None:
    assert of_ours(pipe) == []
    for name, part in parts.items():
        assert getattr(pipe, name) is part


@pytest.mark.parametrize("kind", ["EulerAncestralDiscreteScheduler", slow("EulerDiscreteScheduler")])
@pytest.mark.parametrize("sampler", [slow(each) if each == "tables" else each for each in SAMPLERS])
def test_attributes_counters_and_generators(sampler, kind):
    own, other = made("sd1", kind), made("sd1", kind)
    parts = dict(other.components)
    given = generators(), generators()
    called(own, "sd1", generator=given[0])
    expected = state_of(own), global_states()
    reseeded()
    called(SAMPLERS[sampler](other), "sd1", generator=given[1])
    assert state_of(other) == expected[0]
    assert global_states() == expected[1]
    assert [each.get_state().tolist() for each in given[1]] == [each.get_state().tolist() for each in given[0]]
    assert_untouched(other, parts)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        slow("sd1", "PNDMScheduler"),
        slow("sd1", "DPMSolverMultistepScheduler"),
        ("sd1", "UniPCMultistepScheduler"),
        slow("sd1", "HeunDiscreteScheduler"),
        ("flux", None),
        slow("sd3", None),
        ("img2img", None),
        slow("ddpm", None),
        slow("controlnet", None),
    ],
)
def test_of_other_pipelines_and_schedulers(name, kind):
    own, other = made(name, kind), made(name, kind)
    called(own, name, generator=None)  # torch's own is drawn from
    expected = state_of(own), global_states()
    reseeded()
    called(jointly(other), name, generator=None)
    assert state_of(other) == expected[0]
    assert global_states() == expected[1]
    assert of_ours(other) == []


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("error", [slow(StoppedError), KeyboardInterrupt])
@pytest.mark.parametrize("sampler", ["serial", "joint", slow("predictions")])
def test_callback_that_raises(sampler, error):
    def stops(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 3:
            pipe.noted = 5
            raise error
        return tensors

    kind = "EulerAncestralDiscreteScheduler"
    own, other = made("sd1", kind), made("sd1", kind)
    parts, given = dict(other.components), (generators(), generators())
    with pytest.raises(error):
        called(own, "sd1", callback_on_step_end=stops, generator=given[0])
    expected = state_of(own), global_states()
    reseeded()
    with pytest.raises(error):
        called(SAMPLERS[sampler](other), "sd1", callback_on_step_end=stops, generator=given[1])
    assert state_of(other) == expected[0]
    assert global_states() == expected[1]
    assert [each.get_state().tolist() for each in given[1]] == [each.get_state().tolist() for each in given[0]]
    assert_untouched(other, parts)
    again = called(jointly(other), "sd1", generator=generators())
    assert distance(images_of(again), images_of(called(made("sd1", kind), "sd1"))) < 3e-3


@pytest.mark.parametrize("sampler", FEW)
@pytest.mark.parametrize("number", [slow(0), 4])
def test_network_that_raises(sampler, number):
    pipe = made("sd1", "EulerAncestralDiscreteScheduler")
    calls: list[int] = []

    def fails(module: nn.Module, given: Any) -> None:
        calls.append(1)
        if len(calls) > number:
            raise StoppedError

    handle = pipe.unet.register_forward_pre_hook(fails)
    parts, before, states = dict(pipe.components), state_of(pipe), global_states()
    given = generators()
    drawn = [each.get_state() for each in given]
    with pytest.raises(StoppedError):
        called(SAMPLERS[sampler](pipe), "sd1", generator=given)
    assert_untouched(pipe, parts)
    assert global_states() == states
    if sampler != "serial" and number > 0:  # between two replays all is as before the call
        assert state_of(pipe) == before
        assert all(torch.equal(each.get_state(), state) for each, state in zip(given, drawn, strict=True))
    handle.remove()
    assert images_of(called(SAMPLERS[sampler](pipe), "sd1")).isfinite().all()


@pytest.mark.parametrize("form", ["affine", "predictions"])
def test_problem_leaves_everything_as_it_was(form):
    pipe = made("sd1", "EulerAncestralDiscreteScheduler")
    called(pipe, "sd1", guidance_scale=3.0)
    before, states, attributes = state_of(pipe), global_states(), dict(vars(pipe))
    given = generators()
    sampler = jointly(pipe, form=form)
    problem = called(sampler.problem, "sd1", generator=given, num_images_per_prompt=1)
    with torch.no_grad():
        solution = fixedpoint.solve(problem, solver="chain", rtol=1e-3)
    assert vars(pipe) == attributes
    assert (state_of(pipe), global_states()) == (before, states)
    assert [each.get_state().tolist() for each in given] == [each.get_state().tolist() for each in generators()]
    called_again = sampler.finish(problem, solution)
    assert [each.get_state().tolist() for each in given] != [each.get_state().tolist() for each in generators()]
    assert images_of(called_again).shape == (2, 4, 8, 8)


def test_copies_and_pickles_afterwards():
    pipe = made("sd1")
    first = images_of(called(jointly(pipe), "sd1"))
    for other in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        other.set_progress_bar_config(disable=True)
        assert of_ours(other) == []
        assert torch.equal(images_of(called(jointly(other), "sd1")), first)


@pytest.mark.parametrize("sampler", FEW)
def test_what_a_callback_sees_of_the_pipeline(sampler):
    pipe = made("sd1")
    kinds = {name: type(part) for name, part in pipe.components.items()}
    sizes = [value.shape for value in pipe.unet.parameters()]
    seen: list[int] = []

    def looks(given: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert given is pipe
        assert {name: part.__class__ for name, part in given.components.items()} == kinds
        assert all(isinstance(given.components[name], kind) for name, kind in kinds.items())
        assert hasattr(given.unet, "config")
        assert not hasattr(given.unet, "no such attribute")
        assert given.unet.config.in_channels == 4
        assert [value.shape for value in given.unet.parameters()] == sizes
        assert given.to("cpu") is given
        assert given.device.type == "cpu"
        assert given.scheduler.config.num_train_timesteps == 1000
        seen.append(index)
        return tensors

    called(SAMPLERS[sampler](pipe), "sd1", callback_on_step_end=looks)
    assert seen[-8:] == list(range(8))


def test_steps_that_a_callback_sees_last_are_those_of_the_solution():
    states: list[Tensor] = []

    def notes(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        states.append(tensors["latents"].clone())
        return tensors

    called(made("sd1"), "sd1", callback_on_step_end=notes)
    own = torch.stack(states)
    states.clear()
    called(jointly(made("sd1")), "sd1", callback_on_step_end=notes)
    assert torch.linalg.vector_norm(torch.stack(states[-8:]) - own) < 3e-3 * torch.linalg.vector_norm(own)
