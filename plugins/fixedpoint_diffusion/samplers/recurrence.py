r"""What a sampler does between two evaluations of its network, as tables of numbers.

A sampler evaluates its network ``K`` times. Let ``u_j`` be the input of evaluation ``j = 0 .. K-1``, as the network
sees it, ``m_j`` its raw output, ``x_0`` unit noise, and ``n_k`` the draws of noise in their order. For every explicit
sampler

    u_j = L_j x_0 + sum_{i<j} B_ji m_i + sum_k Z_jk n_k,    and u_K is the sample.

``K`` need not be the number of steps (Heun evaluates ``2 N - 1`` times), and timesteps may repeat. Evaluations are
therefore numbered, and never identified by their timestep.

The same recurrence has a short form where a sampler remembers only its last ``q`` evaluations,

    u_{j+1} = sum_{i<q} (a_ji u_{j-i} + b_ji m_{j-i}) + sum_k c_jk n_k,

where ``k`` runs over the draws that no earlier input contains. Earlier noise is inherited through the inputs alone.
``q`` counts pairs, the current one included: 1 for DDIM and Euler, 2 for DPM-Solver++ 2M and Heun, 4 for LMS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from fixedpoint.chains.recurrence.local import LONGEST, local_coefficients
from fixedpoint_diffusion.samplers.levels import NoiseLevels

__all__ = ["AffineRows", "LocalForm", "SamplerTables", "local_form", "serial_run"]

# The relative residual below which a local form holds; the schedulers' own float32 coefficients are no better.
CLOSES = 1e-7


@dataclass(frozen=True, eq=False)
class AffineRows:
    """Images that depend affinely on the start, the outputs of the network and the noise. All tables are float64, CPU.

    Attributes
    ----------
    starts
        Shape ``(R,)``: the coefficient of the unit noise ``x_0`` in each of ``R`` images.
    weights
        Shape ``(R, K)``: the coefficients of the network's raw outputs.
    noise
        Shape ``(R, M)``: the coefficients of the draws of noise, in the order in which the scheduler draws them.
    """

    starts: Float[Tensor, " R"]
    weights: Float[Tensor, "R K"]
    noise: Float[Tensor, "R M"]

    @cached_property
    def joined(self) -> Float[Tensor, "R 1+K+M"]:
        """The three tables next to one another."""
        return torch.cat([self.starts.unsqueeze(1), self.weights, self.noise], dim=1)


@dataclass(frozen=True, eq=False)
class SamplerTables(AffineRows):
    """One sampler in ``K + 1`` rows, the inputs ``u_0 .. u_{K-1}`` of its network and the sample ``u_K``.

    :func:`~fixedpoint_diffusion.sampler_tables` finds it. ``weights`` is strictly lower triangular.

    Attributes
    ----------
    states
        The scheduler's own states after each of its ``K`` steps (``prev_sample``): ``K`` rows, the last of which is the
        sample. They differ from the inputs by what ``scale_model_input`` does.
    timesteps
        Shape ``(K,)``: the timestep of each evaluation, in the scheduler's own dtype; values may repeat.
    draws
        For each of the ``M`` draws of noise, the evaluation in whose step the scheduler makes it; not decreasing. A
        draw that the scheduler makes and does not use has a column of zeros.
    init_noise_sigma
        By how much the scheduler scales unit noise for its first state. ``starts`` contains this factor already.
    prediction_type
        What the raw outputs predict, as the scheduler's configuration calls it. Without such a setting:
        ``"flow_prediction"`` where the levels confirm it, else empty.
    levels
        The noise levels of the evaluations; None where they cannot be told.
    scheduler
        The name of the scheduler's class.
    """

    states: AffineRows
    timesteps: Shaped[Tensor, " K"]
    draws: tuple[int, ...]
    init_noise_sigma: float
    prediction_type: str
    levels: NoiseLevels | None
    scheduler: str

    @property
    def evaluations(self) -> int:
        """``K``: how often the network is evaluated."""
        return self.weights.shape[1]

    @property
    def stochastic(self) -> bool:
        """Whether the sample depends on the draws of noise."""
        return bool((self.noise != 0).any())

    @property
    def draws_per_step(self) -> tuple[int, ...]:
        """The number of draws in each of the ``K`` steps."""
        return tuple(self.draws.count(j) for j in range(self.evaluations))

    @cached_property
    def state_factors(self) -> Float[Tensor, " K"] | None:
        """The numbers by which the inputs ``u_1 .. u_K`` have to be multiplied to give the scheduler's own states.

        ``scale_model_input`` divides by them. None where it does anything else.
        """
        own, seen = self.states.joined, self.joined[1:]
        factors = (own * seen).sum(1) / seen.square().sum(1)
        off = (own - factors.unsqueeze(1) * seen).abs().amax(1)
        return factors if bool((off <= CLOSES * own.abs().amax(1)).all()) else None

    @cached_property
    def local(self) -> LocalForm | None:
        """The local form with the shortest history, from 1 to 4 pairs; None where none of them holds."""
        return next((form for q in range(1, LONGEST + 1) if (form := local_form(self, q)) is not None), None)

    @property
    def history(self) -> int | None:
        """``q``: how many pairs of input and output the next input is made of; None where more than 4 are needed."""
        return None if self.local is None else self.local.history


@dataclass(frozen=True, eq=False)
class LocalForm:
    """The recurrence from the last ``q`` pairs of input and output. All tables are float64, CPU.

    Attributes
    ----------
    inputs, outputs
        Shape ``(K, q)``: row ``j`` contains ``a_ji`` and ``b_ji``, the coefficients of ``u_{j-i}`` and ``m_{j-i}`` in
        ``u_{j+1}``; zero where ``i > j``.
    noise
        Shape ``(K, M)``: the coefficients of the draws of noise that no earlier input contains.
    """

    inputs: Float[Tensor, "K q"]
    outputs: Float[Tensor, "K q"]
    noise: Float[Tensor, "K M"]

    @property
    def history(self) -> int:
        """``q``: the number of pairs."""
        return self.inputs.shape[1]


def local_form(tables: SamplerTables, q: int) -> LocalForm | None:
    """The recurrence from the last ``q`` pairs of input and output, by least squares; None where it does not hold.

    Parameters
    ----------
    tables
        The tables of the sampler.
    q
        The number of pairs, at least 1: the current one and ``q - 1`` before it.

    Returns
    -------
    LocalForm or None
        None where an input ``u_{j+1}`` has a residual of more than 1e-7, relative to its largest coefficient.

    Raises
    ------
    ValueError
        If ``q`` is less than 1.
    """
    if q < 1:
        raise ValueError(f"q must be at least 1, got {q}")
    found = local_coefficients(tables.joined, tables.evaluations, q, CLOSES)
    return None if found is None else LocalForm(*found)


def serial_run(
    tables: SamplerTables,
    predict: Callable[[Tensor, int], Tensor],
    x_0: Float[Tensor, "B *event"],
    noise: Float[Tensor, "B M *event"] | None = None,
) -> Float[Tensor, "B K *event"]:
    """The sampler, one evaluation after another: by its local form where it has one, else from the dense tables.

    All sums are elementwise, so that the bits of a row do not depend on the batch.

    Parameters
    ----------
    tables
        The tables of the sampler.
    predict
        A function ``g(u, j)`` of the inputs ``(B, *event)`` of evaluation ``j``, which returns the network's raw
        outputs, of the same shape. ``tables.timesteps[j]`` is the timestep.
    x_0
        Unit noise; the tables contain ``init_noise_sigma``.
    noise
        Unit noise for each draw; required where the sample depends on it.

    Returns
    -------
    Tensor
        The inputs ``u_1 .. u_K`` in the dtype of ``x_0``; the last one is the sample.

    Raises
    ------
    ValueError
        If ``noise`` is missing or has another shape.
    """
    count, draws = tables.noise.shape[0] - 1, tables.noise.shape[1]
    wanted = (len(x_0), draws, *x_0.shape[1:])
    if noise is None and tables.stochastic:
        raise ValueError(f"the sampler is stochastic: noise must have shape {wanted}")
    if noise is not None and noise.shape != wanted:
        raise ValueError(f"noise must have shape {wanted}, one image for each draw, got {tuple(noise.shape)}")
    drawn = () if noise is None else tuple(noise.to(x_0).unbind(1))
    form = tables.local
    reached, answers = [float(tables.starts[0]) * x_0], list[Tensor]()
    for j in range(count):
        answers.append(predict(reached[j], j))
        if form is None:
            terms = [(float(tables.starts[j + 1]), x_0), *zip(tables.weights[j + 1].tolist(), answers, strict=False)]
            terms += zip(tables.noise[j + 1].tolist(), drawn, strict=False)
        else:
            terms = [*zip(form.inputs[j].tolist(), reached[::-1], strict=False)]
            terms += zip(form.outputs[j].tolist(), answers[::-1], strict=False)
            terms += zip(form.noise[j].tolist(), drawn, strict=False)
        reached.append(_combined(terms, x_0))
    return torch.stack(reached[1:], dim=1)


def _combined(terms: list[tuple[float, Tensor]], like: Tensor) -> Tensor:
    total = torch.zeros_like(like)
    for coefficient, image in terms:
        # Left out rather than multiplied by 0, so that an image that is not finite reaches only what depends on it.
        if coefficient != 0:
            total = total + coefficient * image
    return total
