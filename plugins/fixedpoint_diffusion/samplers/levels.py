"""The noise levels at which a sampler evaluates its network, in the coordinates in which the network sees its input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["NoiseLevels", "noise_levels"]

# Coefficients in float32 are off by up to 2e-4 where they are small differences (PNDM, and no signal at the start);
# levels of another kind are off by more than 0.05.
_AGREES = 1e-3


@dataclass(frozen=True, eq=False)
class NoiseLevels:
    """How much image and how much noise the inputs of the network contain. All tables are float64, CPU.

    Attributes
    ----------
    signal, noise
        Shape ``(K,)``: the input of evaluation ``j`` is ``signal_j * clean + noise_j * n``, with ``n`` unit noise.
    clean_input, clean_output
        Shape ``(K,)``: the clean image that an output ``m_j`` implies at the input ``u_j`` is ``clean_input_j u_j +
        clean_output_j m_j``.
    """

    signal: Float[Tensor, " K"]
    noise: Float[Tensor, " K"]
    clean_input: Float[Tensor, " K"]
    clean_output: Float[Tensor, " K"]


def noise_levels(
    scheduler: Any,
    timesteps: Tensor,
    starts: Float[Tensor, " K+1"],
    weights: Float[Tensor, "K+1 K"],
    deterministic: bool,
) -> tuple[NoiseLevels | None, str]:
    """The levels that the scheduler's tables suggest, and that its recurrence confirms; and what the network predicts.

    A network that always returns what the same clean image implies leads every sampler along images of that clean image
    and of noise in the proportions of the levels. This identity of the recurrence decides among the places where
    schedulers keep their levels, so that none is guessed.
    """
    named = getattr(scheduler.config, "prediction_type", None)
    # Schedulers of flow matching predict the flow, and most have no setting that says so.
    predicted = "flow_prediction" if named is None else str(named)
    for levels in _suggested(scheduler, timesteps, predicted):
        if _confirmed(levels, starts, weights, deterministic):
            return levels, predicted
    return None, str(named or "")


def _suggested(scheduler: Any, timesteps: Tensor, predicted: str) -> Iterator[NoiseLevels]:
    count = len(timesteps)
    sigmas = _table(scheduler, "sigmas", count)
    if sigmas is not None:
        between = _table(scheduler, "sigmas_interpol", count)
        if between is not None:  # second order with evaluations in between: every other one
            mixed = torch.where(torch.arange(count) % 2 == 0, sigmas, between)
            yield from _of(1 / (1 + mixed**2).sqrt(), mixed / (1 + mixed**2).sqrt(), predicted)
        yield from _of(1 / (1 + sigmas**2).sqrt(), sigmas / (1 + sigmas**2).sqrt(), predicted)
        yield from _of(1 - sigmas, sigmas, predicted)
        data = getattr(scheduler.config, "sigma_data", None)
        if data is not None:
            yield _preconditioned(sigmas, float(data), predicted)
    shares = getattr(scheduler, "alphas_cumprod", None)
    if isinstance(shares, Tensor) and bool((timesteps >= 0).all() & (timesteps < len(shares)).all()):
        share = shares.double()[timesteps.long()]
        yield from _of(share.sqrt(), (1 - share).sqrt(), predicted)


def _table(scheduler: Any, name: str, count: int) -> Tensor | None:
    table = getattr(scheduler, name, None)
    if not isinstance(table, Tensor) or table.ndim != 1 or len(table) < count:
        return None
    return table.double()[:count]


def _of(signal: Tensor, noise: Tensor, predicted: str) -> Iterator[NoiseLevels]:
    one, zero = torch.ones_like(signal), torch.zeros_like(signal)
    known = {
        "epsilon": (1 / signal, -noise / signal),
        "sample": (zero, one),
        "v_prediction": (signal, -noise),  # where signal^2 + noise^2 = 1
        "flow_prediction": (one, -noise),  # where signal + noise = 1
    }
    if predicted in known:
        yield NoiseLevels(signal, noise, *known[predicted])


def _preconditioned(sigmas: Tensor, data: float, predicted: str) -> NoiseLevels:
    """Karras et al. (2022), table 1: both the input and the output of the network have unit variance."""
    total = (sigmas**2 + data**2).sqrt()
    keep = data**2 / total  # c_skip, at inputs that are divided by total
    out = sigmas * data / total
    return NoiseLevels(1 / total, sigmas / total, keep, -out if predicted == "v_prediction" else out)


def _confirmed(levels: NoiseLevels, starts: Tensor, weights: Tensor, deterministic: bool) -> bool:
    expected = torch.stack([levels.signal, levels.noise], dim=1)
    start = expected[0] / starts[0]
    # Each image as its shares of the clean image and of the noise in the start.
    clean = torch.tensor([1.0, 0.0], dtype=torch.float64)
    count = weights.shape[1]
    outputs = torch.zeros(count, 2, dtype=torch.float64)
    compared = slice(None) if deterministic else slice(1)  # new noise has shares of its own
    for j in range(count):
        reached = starts[j] * start + weights[j] @ outputs
        if not bool(((reached - expected[j])[compared].abs() <= _AGREES).all()):
            return False
        outputs[j] = (clean - levels.clean_input[j] * expected[j]) / levels.clean_output[j]
    return bool(outputs.isfinite().all())
