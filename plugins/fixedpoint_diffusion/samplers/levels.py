"""The noise levels at which a sampler evaluates its network, in the coordinates in which the network sees its input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["NoiseLevels", "levels_of", "noise_levels"]

# Coefficients in float32 are off by up to 2e-4 where they are small differences (PNDM, and no signal at the start);
# levels of another kind are off by more than 0.05.
_AGREES = 1e-3


@dataclass(frozen=True, eq=False)
class NoiseLevels:
    """How much image and how much noise the network's inputs are taken to contain. All tables are float64, CPU.

    Attributes
    ----------
    signal, noise
        Shape ``(K,)``: the input of evaluation ``j`` is ``signal_j * clean + noise_j * n``, with ``n`` unit noise. This
        is what the scheduler assumes when it derives the clean image.
    clean_input, clean_output
        Shape ``(K,)``: the clean image that an output ``m_j`` implies at the input ``u_j`` is ``clean_input_j u_j +
        clean_output_j m_j``.
    """

    signal: Float[Tensor, " K"]
    noise: Float[Tensor, " K"]
    clean_input: Float[Tensor, " K"]
    clean_output: Float[Tensor, " K"]

    def clean_slopes(self, variance: float) -> Float[Tensor, " K"]:
        """The slope of the clean image in the input, for data from one Gaussian of variance ``v``; float64.

        It is ``alpha v / (alpha^2 v + sigma^2)`` at the levels ``alpha`` and ``sigma`` of signal and noise.

        Raises
        ------
        ValueError
            If ``variance`` is not positive.
        """
        if not variance > 0:
            raise ValueError(f"variance must be positive, got {variance}")
        return self.signal * variance / (self.signal**2 * variance + self.noise**2)

    def at(self, index: Int[Tensor, " n"]) -> NoiseLevels:
        """The levels of some of the evaluations."""
        return NoiseLevels(*(part[index] for part in (self.signal, self.noise, self.clean_input, self.clean_output)))


def noise_levels(
    scheduler: Any, timesteps: Tensor, inputs: Float[Tensor, "K+1 1+K+M"], clean: Sequence[Tensor | None]
) -> tuple[NoiseLevels | None, str]:
    """The levels that the scheduler's tables suggest and its steps confirm, if any; and what the network predicts.

    Schedulers keep their levels in several places and forms. Which of them holds is decided by identities, so that none
    is guessed:

    - A network whose outputs always imply the same clean image leads every sampler along mixtures of that image and of
      noise, in the proportions of the levels.
    - Where the steps of a scheduler lead to other timesteps than the next ones (DDIM, for numbers of steps that do not
      divide those of the training), the clean image that a step returns has to be the one that the levels imply.

    Parameters
    ----------
    scheduler
        A scheduler whose timesteps are set.
    timesteps
        Shape ``(K,)``.
    inputs
        The coefficients of the inputs and the sample.
    clean
        Those of the clean images that the steps return; None where a step returns none.
    """
    named = getattr(scheduler.config, "prediction_type", None)
    # Schedulers of flow matching predict the flow, and most have no setting that says so.
    predicted = "flow_prediction" if named is None else str(named)
    suggested = list(_suggested(scheduler, timesteps, predicted))
    for levels in suggested:
        if _leads_along(levels, inputs):
            return levels, predicted
    for levels in suggested:
        if predicted != "sample" and _implies(levels, inputs, clean):
            return levels, predicted
    return None, str(named or "")


def _suggested(scheduler: Any, timesteps: Tensor, predicted: str) -> Iterator[NoiseLevels]:
    count = len(timesteps)
    sigmas = _table(scheduler, "sigmas", count)
    if sigmas is not None:
        between = _table(scheduler, "sigmas_interpol", count)
        if between is not None:  # second order with evaluations in between: every other one
            mixed = torch.where(torch.arange(count, device="cpu") % 2 == 0, sigmas, between)
            yield from levels_of(1 / (1 + mixed**2).sqrt(), mixed / (1 + mixed**2).sqrt(), predicted)
        yield from levels_of(1 / (1 + sigmas**2).sqrt(), sigmas / (1 + sigmas**2).sqrt(), predicted)
        yield from levels_of(1 - sigmas, sigmas, predicted)
        data = getattr(scheduler.config, "sigma_data", None)
        if data is not None:
            yield _preconditioned(sigmas, float(data), predicted)
    shares = getattr(scheduler, "alphas_cumprod", None)
    if isinstance(shares, Tensor) and bool((timesteps >= 0).all() & (timesteps < len(shares)).all()):
        share = shares.double()[timesteps.long()]
        yield from levels_of(share.sqrt(), (1 - share).sqrt(), predicted)


def _table(scheduler: Any, name: str, count: int) -> Tensor | None:
    table = getattr(scheduler, name, None)
    if not isinstance(table, Tensor) or table.ndim != 1 or len(table) < count:
        return None
    return table.double()[:count]


def levels_of(signal: Float[Tensor, " K"], noise: Float[Tensor, " K"], predicted: str) -> Iterator[NoiseLevels]:
    """The levels with what outputs of a known kind imply; nothing for other kinds."""
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


def _leads_along(levels: NoiseLevels, inputs: Tensor) -> bool:
    count = len(levels.signal)
    starts, weights, noise = inputs.split((1, count, inputs.shape[1] - 1 - count), dim=1)
    # New noise has shares of its own, which are not compared.
    compared = slice(1) if bool((noise != 0).any()) else slice(None)
    expected = torch.stack([levels.signal, levels.noise], dim=1)
    # Each image as its shares of the clean image and of the noise in the start.
    start = expected[0] / starts[0]
    known = torch.tensor([1.0, 0.0], dtype=torch.float64, device="cpu")
    outputs = torch.zeros(count, 2, dtype=torch.float64, device="cpu")
    for j in range(count):
        reached = starts[j] * start + weights[j] @ outputs
        if not bool(((reached - expected[j])[compared].abs() <= _AGREES).all()):
            return False
        outputs[j] = (known - levels.clean_input[j] * expected[j]) / levels.clean_output[j]
    return bool(outputs.isfinite().all())


def _implies(levels: NoiseLevels, inputs: Tensor, clean: Sequence[Tensor | None]) -> bool:
    for j, returned in enumerate(clean):
        if returned is None:
            return False
        implied = levels.clean_input[j] * inputs[j]
        implied[1 + j] += levels.clean_output[j]
        if not bool((returned.flatten() - implied).abs().max() <= _AGREES * implied.abs().max()):
            return False
    return True
