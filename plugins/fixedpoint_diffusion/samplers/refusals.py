"""Which schedulers are probed; all others are refused before any work, with what to do."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fixedpoint_diffusion.recognition import is_pipeline

__all__ = ["check_count", "check_is_scheduler", "check_settings", "check_step", "check_timesteps"]

# The most steps of a sampler that is probed.
_MOST = 10_000
# Settings with which the clean image that a scheduler predicts is changed in a way that is not affine.
_CLIPPING = ("clip_sample", "clip_denoised", "thresholding")


def check_is_scheduler(given: Any) -> None:
    """Refuses what has no loop over timesteps."""
    name = type(given).__name__
    if isinstance(given, type):
        raise TypeError(f"a sampler requires a scheduler, got the class {given.__name__} itself; pass an instance")
    if is_pipeline(given):
        raise TypeError(f"a sampler requires a scheduler, got a whole {name}; pass pipeline.scheduler")
    lacking = [method for method in ("set_timesteps", "step") if not callable(getattr(given, method, None))]
    if lacking and isinstance(getattr(given, "config", None), Mapping):
        raise ValueError(f"{name} has no {lacking[0]}, so it has no loop over timesteps")
    if lacking or not isinstance(getattr(given, "config", None), Mapping):
        raise TypeError(f"a sampler requires a scheduler of diffusers, got {name}")


def check_settings(scheduler: Any) -> None:
    """Refuses settings of which it is known that they are not affine, by their names."""
    name, config = type(scheduler).__name__, scheduler.config
    # Only what the class itself has: from_config keeps the settings of the scheduler that a configuration came from.
    own = inspect.signature(type(scheduler).__init__).parameters
    for setting in _CLIPPING:
        if setting in own and getattr(config, setting, False):
            raise ValueError(
                f"{name} has {setting}=True: it changes the clean image that it predicts, and is no affine recurrence; "
                f"make it with {setting}=False, or sample with clipping by ddim_problem, which takes a DDIMScheduler"
            )
    variance = getattr(config, "variance_type", None)
    if variance is not None and "learned" in str(variance):
        raise ValueError(
            f"{name} has variance_type={variance!r}: the size of its noise depends on the output of the network, so "
            "that it is no affine recurrence; a fixed variance is"
        )


def check_step(scheduler: Any, step_kwargs: Mapping[str, Any]) -> None:
    """Refuses steps and arguments that the loop of a probe cannot supply."""
    name = type(scheduler).__name__
    if "prev_timestep" in inspect.signature(scheduler.step).parameters:
        raise ValueError(
            f"{name} is told by its pipelines where every step leads (prev_timestep); such a loop has no tables yet"
        )
    for key, value in step_kwargs.items():
        if isinstance(value, (Tensor, torch.Generator)):
            raise ValueError(
                f"step_kwargs may contain numbers and the like, got {key}, a {type(value).__name__}; noise is given to "
                "the run of the tables"
            )


def check_count(count: Any) -> None:
    """Refuses a number of steps that is none."""
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, numbers.Integral):
        raise ValueError(f"num_inference_steps must be an integer, got {count!r}")
    if count < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {count}")
    if int(count) > _MOST:
        raise ValueError(f"num_inference_steps must be at most {_MOST}, since the tables have its square, got {count}")


def check_timesteps(scheduler: Any, settings: Mapping[str, Any]) -> None:
    """Refuses arguments that the scheduler's ``set_timesteps`` does not take."""
    taken = inspect.signature(scheduler.set_timesteps).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values()):
        return
    for key in settings:
        if key not in taken:
            names = ", ".join(each for each in taken if each != "device")
            raise ValueError(f"{type(scheduler).__name__}.set_timesteps takes no {key}; it takes {names}")
