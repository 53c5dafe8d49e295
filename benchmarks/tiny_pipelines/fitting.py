"""The last layer of a random network, fitted so that sampling is not chaotic.

Noise that is predicted by random weights alone has nothing to do with the input. Samples are then larger than need be,
and chaotic where the scheduler clips: 50 steps of DDIM multiply a small change of the start by hundreds. Here the last
layer is the ridge regression, on what the random layers before it give, of the best prediction for data that are normal
with standard deviation ``s``, plus a part of its random weights, by which the prompt has its effect.

For ``x = a x_0 + b e`` the best predictions are ``E[x_0 | x] = a s^2 x / v`` and ``E[e | x] = b x / v`` where
``v = a^2 s^2 + b^2``. That of ``a e - b x_0`` follows from them.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["fit"]

_DEVIATION = 0.5  # s
_RANDOM = 0.3  # how much is kept of the random weights
_RIDGE = 1e-3
_CALLS = 24
_LAYERS = ("conv_out", "proj_out_2", "proj_out")


@torch.no_grad()
def fit(pipe: DiffusionPipeline, arguments: dict[str, Any]) -> DiffusionPipeline:
    """Fit the network of a pipeline that predicts noise or velocity, for the conditioning that ``arguments`` give."""
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    layer = next(getattr(network, name) for name in _LAYERS if hasattr(network, name))
    call = _first_call(pipe, network, arguments)
    name = "sample" if "sample" in call else "hidden_states"
    fitted = 3 if call[name].shape[1] == 3 else 4  # channels; the others are a mask, or predicted variances
    features, targets = [], []
    for number in range(_CALLS):
        timestep = (number * 999) // (_CALLS - 1)
        given = call[name].clone()
        given[:, :fitted], target = _example(pipe.scheduler, timestep, given[:, :fitted].shape)
        call.update({name: given, "timestep": torch.full((len(given),), timestep)})
        features.append(_rows(layer, _inputs(network, layer, call)))
        targets.append(_targets(layer, target))
    rows, wanted = torch.cat(features).double(), torch.cat(targets).double()
    moments = rows.T @ rows + _RIDGE * len(rows) * torch.eye(rows.shape[1], dtype=rows.dtype)
    solution = torch.linalg.solve(moments, rows.T @ wanted).T.float()
    outputs = _outputs(layer, fitted)
    layer.weight[outputs] = _RANDOM * layer.weight[outputs] + solution[:, :-1].reshape(layer.weight[outputs].shape)
    layer.bias[outputs] = _RANDOM * layer.bias[outputs] + solution[:, -1]
    return pipe


def _first_call(pipe: DiffusionPipeline, network: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """What the pipeline gives to its network, by name."""
    calls: list[dict[str, Any]] = []
    first = ("sample" if hasattr(pipe, "unet") else "hidden_states", "timestep")  # what is given without a name

    def note(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append({**dict(zip(first, given, strict=False)), **named})

    handle = network.register_forward_pre_hook(note, with_kwargs=True)
    pipe.set_progress_bar_config(disable=True)
    pipe(**arguments, num_inference_steps=4)
    handle.remove()
    return calls[0]


def _example(scheduler: Any, timestep: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Draw inputs at a timestep, and their best predictions."""
    a, b = float(scheduler.alphas_cumprod[timestep] ** 0.5), float((1 - scheduler.alphas_cumprod[timestep]) ** 0.5)
    variance = a**2 * _DEVIATION**2 + b**2
    x = variance**0.5 * torch.randn(shape)
    clean, noise = a * _DEVIATION**2 / variance * x, b / variance * x
    return x, a * noise - b * clean if scheduler.config.prediction_type == "v_prediction" else noise


def _inputs(network: nn.Module, layer: nn.Module, call: dict[str, Any]) -> Tensor:
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(**call)
    handle.remove()
    return seen[0]


def _rows(layer: nn.Linear | nn.Conv2d, inputs: Tensor) -> Tensor:
    """The features that each output of the layer is a combination of, and a one for the bias."""
    if isinstance(layer, nn.Conv2d):
        inputs = functional.unfold(inputs, 3, padding=1).transpose(1, 2)
    rows = inputs.flatten(0, 1)
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)


def _targets(layer: nn.Linear | nn.Conv2d, target: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return target.flatten(2).transpose(1, 2).flatten(0, 1)
    patches = target.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # images, channels, row, in row, column, in column
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(0, 2)


def _outputs(layer: nn.Linear | nn.Conv2d, channels: int) -> Tensor:
    """The outputs of the layer that are those channels: channels come last in the patches of a transformer."""
    if isinstance(layer, nn.Conv2d):
        return torch.arange(channels)
    return torch.arange(layer.out_features).unflatten(0, (4, -1))[:, :channels].flatten()
