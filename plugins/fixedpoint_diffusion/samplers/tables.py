"""Coefficients that express DDIM steps by the state and the prediction of the model, for every prediction type."""

from __future__ import annotations

import torch
from torch import Tensor

from fixedpoint_diffusion.samplers.jumps import StepCoefficients
from fixedpoint_diffusion.schedules.schedule import PredictionType

__all__ = ["coefficient_tables"]


def coefficient_tables(steps: StepCoefficients, prediction_type: PredictionType) -> dict[str, Tensor]:
    """The coefficients of every step by name, each of shape ``(N,)``, float64.

    For a prediction ``g``, ``image_x x + image_out g`` is the clean image and ``noise_x x + noise_out g`` the noise;
    ``keep x + gain g + sigma n`` is the step. ``root_signal`` and ``root_noise`` are ``sqrt(ab)`` and ``sqrt(1 - ab)``;
    ``x0_weight``, ``direction`` and ``sigma`` are those of ``StepCoefficients``.
    """
    a, s = steps.signal.sqrt(), (1 - steps.signal).sqrt()
    one, zero = torch.ones_like(a), torch.zeros_like(a)
    if prediction_type == "epsilon":
        image_x, image_out, noise_x, noise_out = 1 / a, -s / a, zero, one
    elif prediction_type == "sample":
        image_x, image_out, noise_x, noise_out = zero, one, 1 / s, -a / s
    else:  # v_prediction
        image_x, image_out, noise_x, noise_out = a, -s, s, a
    return {
        "keep": steps.x0_weight * image_x + steps.direction * noise_x,
        "gain": steps.x0_weight * image_out + steps.direction * noise_out,
        "sigma": steps.sigma,
        "image_x": image_x,
        "image_out": image_out,
        "noise_x": noise_x,
        "noise_out": noise_out,
        "root_signal": a,
        "root_noise": s,
        "x0_weight": steps.x0_weight,
        "direction": steps.direction,
    }
