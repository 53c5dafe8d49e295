"""Whether a scheduler has the noise levels and the prediction type with which a model was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["other_than_trained"]

# What is compared is in float32; schedulers also keep the last level of zero terminal SNR at 2^-24.
_SAME = 1e-6


def other_than_trained(scheduler: Any, own: Any) -> str:
    """Why a model cannot be sampled by a scheduler, as the end of a sentence; empty where it can.

    The spacing of the steps is free. Noise levels are compared where both schedulers derive them from the variances of
    a training (``alphas_cumprod``). Schedulers of flow matching and of EDM have levels of another kind, and go only
    with one another.

    Parameters
    ----------
    scheduler, own
        The scheduler, and that of the model; both of diffusers.
    """
    kind, other = _kind(own), _kind(scheduler)
    if kind != other:
        return f"must have {kind}, as the model's own {type(own).__name__}; {type(scheduler).__name__} has {other}"
    wanted, got = _predicts(own), _predicts(scheduler)
    if wanted != got:
        return f"must have the model's own prediction_type {wanted!r}, got {got!r}"
    if kind == _OF_TRAINING and not _same(scheduler.alphas_cumprod, own.alphas_cumprod):
        return "must have the noise levels the model was trained with (num_train_timesteps, betas)"
    data, trained = (scheduler.config.get("sigma_data"), own.config.get("sigma_data"))
    if data != trained:
        return f"must have the model's own sigma_data {trained!r}, got {data!r}"
    return ""


_OF_TRAINING = "noise levels of a training in steps (betas)"
_OF_FLOWS = "noise levels of flow matching"
_OF_SIGMAS = "noise levels given as sigmas"


def _kind(scheduler: Any) -> str:
    config: Mapping[str, Any] = scheduler.config
    if config.get("use_flow_sigmas") or "Flow" in type(scheduler).__name__:
        return _OF_FLOWS
    return _OF_TRAINING if isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor) else _OF_SIGMAS


def _predicts(scheduler: Any) -> str:
    """What the network predicts; most schedulers of flow matching have no setting that says so."""
    return str(scheduler.config.get("prediction_type", "flow_prediction" if _kind(scheduler) == _OF_FLOWS else ""))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=0.0, atol=_SAME)
