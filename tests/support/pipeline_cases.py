"""Calls of pipelines by replay, compared with the pipelines' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from tiny_pipelines import arguments, distance, doubled, generators, images_of, pipeline

from fixedpoint.chains import BlockSecant, ChainSolver
from fixedpoint_diffusion import ParallelPipeline, parallel

__all__ = ["LIMIT", "assert_goes_in", "called", "jointly", "made"]

LIMIT = 3e-3  # three tolerances
LEVELS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def made(name: str, kind: str | None = None, **settings: Any) -> Any:
    """A tiny pipeline, with a scheduler of another class."""
    return pipeline(name, scheduler=None if kind is None else getattr(diffusers, kind)(**LEVELS, **settings))


def jointly(pipe: Any, **options: Any) -> ParallelPipeline:
    """A sampler that solves jointly whatever is faster."""
    return parallel(pipe, solver=ChainSolver(accelerator=BlockSecant()), **options)


def called(call: Callable[..., Any], name: str, *, steps: int | None = 8, **given: Any) -> Any:
    """Call a pipeline or a sampler with the arguments for a tiny pipeline; those that are None are left out.

    ``generator`` may be a function that makes them.
    """
    merged = {**arguments(name), "num_inference_steps": steps, "generator": generators, **given}
    if callable(merged["generator"]):
        merged["generator"] = merged["generator"]()
    return call(**{key: value for key, value in merged.items() if value is not None})


def assert_goes_in(make: Callable[[], Any], name: str, *, form: Any = None, steps: int | None = 8, **given: Any) -> str:
    """Check that a call comes out as the own: serially bit for bit, jointly to the limit; return the form."""
    own = images_of(called(make(), name, steps=steps, **given))
    serial = images_of(called(parallel(make(), solver="serial"), name, steps=steps, **given))
    assert torch.equal(serial, own)
    sampler = jointly(make(), form=form)
    off = distance(images_of(called(sampler, name, steps=steps, **given)), own)
    assert sampler.solution is not None
    assert all(sampler.solution.converged)
    if off > LIMIT:
        twice = doubled({**arguments(name), **given, "num_inference_steps": steps})
        moved = images_of(make()(**{**twice, "generator": generators(times=2)}))[: len(own)]
        # A pipeline of low precision rounds at every step: its own distance from float32 is another measure.
        exact = distance(own, images_of(called(make().to(torch.float32), name, steps=steps, **given)))
        assert off <= max(3 * distance(moved, own), 1.5 * exact)
    assert sampler.form is not None
    return sampler.form
