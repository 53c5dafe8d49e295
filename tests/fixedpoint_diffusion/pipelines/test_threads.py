"""One pipeline serves one call at a time: samplers of two threads take turns, anything else is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pipeline_cases import called, jointly, made
from tiny_pipelines import distance, images_of

from fixedpoint_diffusion import parallel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What calls in threads of their own return or raise."""
    results: list[Any] = [None] * len(calls)

    def run(number: int) -> None:
        try:
            results[number] = calls[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("second", ["joint", pytest.param("serial", marks=pytest.mark.slow)])
def test_two_samplers_of_one_pipeline(second):
    pipe = made("sd1", "EulerAncestralDiscreteScheduler")
    given: list[dict[str, Any]] = [{"prompt": ["a cat", "a dog"], "steps": 8}, {"guidance_scale": 3.0, "steps": 7}]
    own = [images_of(called(pipe, "sd1", **each)) for each in given]
    samplers = (
        jointly(pipe),
        jointly(pipe, form="predictions") if second == "joint" else parallel(pipe, solver="serial"),
    )
    parts = dict(pipe.components)
    first, other = together(*(lambda n=n: images_of(called(samplers[n], "sd1", **given[n])) for n in (0, 1)))
    assert distance(first, own[0]) < 3e-3
    assert distance(other, own[1]) < 3e-3
    assert all(getattr(pipe, name) is part for name, part in parts.items())


def test_own_call_in_the_middle_of_a_replay_is_refused():
    pipe = made("sd1", "EulerDiscreteScheduler")
    errors: list[Any] = []

    def calls(given: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 2 and not errors:
            errors.extend(together(lambda: called(pipe, "sd1", steps=3)))
        return tensors

    with pytest.raises(RuntimeError, match="another thread called StableDiffusionPipeline in the middle"):
        called(jointly(pipe), "sd1", callback_on_step_end=calls)
    assert isinstance(errors[0], RuntimeError)
    assert "is being sampled jointly in another thread; a pipeline serves one call at a time" in str(errors[0])
    assert images_of(called(pipe, "sd1")).isfinite().all()


def test_parts_can_be_used_by_another_thread_meanwhile():
    pipe = made("sd1")
    latents = torch.ones(1, 4, 8, 8)
    wanted = pipe.vae.decode(latents).sample
    found: list[Any] = []

    def decodes(given: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if not found:
            found.extend(together(lambda: pipe.vae.decode(latents).sample))
        return tensors

    own = images_of(called(made("sd1"), "sd1"))
    assert distance(images_of(called(jointly(pipe), "sd1", callback_on_step_end=decodes)), own) < 3e-3
    assert torch.equal(found[0], wanted)


@pytest.mark.parametrize("solver", ["joint", "serial"])
def test_sampler_in_a_callback_of_its_own_pipeline_is_refused(solver):
    pipe = made("sd1")
    sampler = jointly(pipe) if solver == "joint" else parallel(pipe, solver="serial")

    def calls(given: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        called(jointly(pipe), "sd1")
        return tensors

    with pytest.raises(RuntimeError, match="in the middle of a joint call; a callback cannot sample it jointly again"):
        called(sampler, "sd1", callback_on_step_end=calls)
    assert images_of(called(sampler, "sd1")).isfinite().all()


@pytest.mark.slow
def test_sampler_of_another_pipeline_in_a_callback():
    other = jointly(made("flux"))

    def calls(given: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        mean = images_of(called(other, "flux", steps=2)).mean() if index == 1 else 0.0
        return {"latents": tensors["latents"] + mean}

    own = images_of(called(made("sd1"), "sd1", callback_on_step_end=calls))
    assert distance(images_of(called(jointly(made("sd1")), "sd1", callback_on_step_end=calls)), own) < 3e-3
