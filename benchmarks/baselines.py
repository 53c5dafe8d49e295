"""ParaDiGMS and ParaTAA for one sample, as described in their papers; the baselines of this library's chain solvers.

They are written from the papers in plain torch, and use none of the library's solvers. Each is a generator that makes
one sequential round at a time (one batch of evaluations) and then yields the evaluations spent and the last state.
States are numbered along the chain: ``x_0`` is noise, ``x_N`` the image, step ``i`` leads from ``x_i`` to ``x_{i+1}``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fixedpoint_diffusion import DDIMChain


@dataclass(frozen=True)
class Round:
    """The state of a method after a round: the evaluations so far, and the current last state."""

    evaluations: int
    last: Tensor


class Seen(NamedTuple):
    """The window of a round, its states, and their residuals."""

    begin: int
    end: int
    x: Tensor
    residual: Tensor


def paradigms(
    chain: DDIMChain, x0: Tensor, row: int = 0, *, window: int | None = None, tolerance: float = 0.1
) -> Iterator[Round]:
    """ParaDiGMS (Shih et al. 2023, "Parallel sampling of diffusion models", algorithm 1).

    Picard iteration in a window: every state is the first one plus all changes up to it. The window slides to the
    first state whose mean squared change exceeds ``tolerance**2`` times the variance of the noise that a DDPM step
    from it adds, whatever eta. States that enter the window start from its last state.

    That test and the default of 0.1 are those of the authors' release (github.com/AndyShih12/paradigms,
    ``paradigms_forward`` in ``paradigms/stablediffusion_paradigms.py``, and ``main.py``, which passes 0.1 for every
    scheduler) and of diffusers' ``StableDiffusionParadigmsPipeline``. The default window of both has 10 steps.
    """
    variance = ddpm_variance(chain).to(x0.device)
    x = x0.expand(chain.length + 1, *x0.shape).clone()
    begin = evaluations = 0
    while begin < chain.length:
        end = min(begin + (window or chain.length), chain.length)
        change = stepped(chain, x, begin, end, row) - x[begin:end]
        evaluations += end - begin
        moved = x[begin] + change.cumsum(0)
        error = (moved[:-1] - x[begin + 1 : end]).flatten(1).double().square().mean(1)
        unfinished = (error > tolerance**2 * variance[begin + 1 : end]).nonzero().flatten().tolist()
        x[begin + 1 : end + 1] = moved
        x[end + 1 :] = moved[-1]
        begin += unfinished[0] + 1 if unfinished else end - begin
        yield Round(evaluations, x[-1].clone())


def parataa(
    chain: DDIMChain,
    x0: Tensor,
    row: int = 0,
    *,
    order: int | None = None,
    memory: int = 2,
    window: int | None = None,
    tolerance: float = 1e-3,
    ridge: float = 1e-3,
) -> Iterator[Round]:
    """ParaTAA (Tang et al. 2024, "Accelerating parallel sampling of diffusion models", algorithm 1).

    A state of the order-k equations follows from the state k steps before it, with the model's predictions on the way
    (eq. 10). Triangular Anderson acceleration gives every state weights from the residuals of the states up to it
    (section 3.2), ``memory`` counting the points combined (1: none). A state is finished when the root mean square of
    its first-order residual is at most ``tolerance`` times the noise that a DDPM step adds there; the first
    unfinished one takes the plain step. ``order``, ``memory``, ``window``, ``tolerance`` and the absolute ``ridge``
    default to those of the authors' release for 100 steps (order and window N).
    """
    length = chain.length
    noise, slope = ddpm_variance(chain).sqrt().to(x0.device), chain.coefficients()
    x = x0.expand(length + 1, *x0.shape).clone()
    points: list[Seen] = []
    begin = evaluations = 0
    while begin < length:
        end = min(begin + (window or length), length)
        defect = stepped(chain, x, begin, end, row) - x[begin + 1 : end + 1]
        evaluations += end - begin
        size = defect.flatten(1).double().square().mean(1).sqrt()
        beyond = (size > tolerance * noise[begin:end]).nonzero().flatten().tolist()
        first = beyond[0] if beyond else end - begin - 1
        residual = _of_order(order or length, slope[begin:end], defect)
        points = [*points, Seen(begin, end, x[begin + 1 : end + 1].clone(), residual)][-memory:]
        update = residual.clone()
        if len(points) > 1:
            update[first + 1 :] -= _mixed(points, begin, end, ridge)[first + 1 :]
        x[begin + 1 : end + 1] += update
        x[end + 1 :] = x[end]
        begin += first + 1
        yield Round(evaluations, x[-1].clone())


def stepped(chain: DDIMChain, x: Tensor, begin: int, end: int, row: int) -> Tensor:
    """The steps from the states ``begin .. end - 1``, in one batch (split as suits the device)."""
    index = torch.arange(begin, end, device=x.device)
    size = chain.denoiser.quick_batch(x.device) or len(index)
    rows = torch.full_like(index, row)
    parts = zip(x[begin:end].split(size), index.split(size), rows.split(size), strict=True)
    return torch.cat([chain.step(*part) for part in parts])


def ddpm_variance(chain: DDIMChain) -> Tensor:
    """The variance of the noise that a DDPM step adds from every state, whatever the eta of the chain; float64."""
    before, after = chain.schedule.signal(chain.length)
    return (1 - after) / (1 - before) * (1 - before / after)


def _of_order(order: int, slope: Tensor, defect: Tensor) -> Tensor:
    """Residuals of the order-k equations: every defect is carried by the slopes over the next ``order - 1`` steps."""
    carried = torch.eye(len(slope), dtype=torch.float64)
    for i in range(1, len(slope)):
        carried[i, :i] = slope[i] * carried[i - 1, :i]
    carried = carried.triu(1 - order)
    return (carried.to(defect) @ defect.flatten(1)).view_as(defect)


def _mixed(points: list[Seen], begin: int, end: int, ridge: float) -> Tensor:
    """The part that triangular Anderson acceleration subtracts from the plain update of the states of the window."""
    residual = points[-1].residual
    columns = [_difference(older, newer, begin, end) for older, newer in pairwise(points)]
    x, r = (torch.stack(parts).flatten(2) for parts in zip(*columns, strict=True))
    gram = torch.einsum("isd,jsd->sij", r, r).double().cumsum(0)
    aim = torch.einsum("isd,sd->si", r, residual.flatten(1)).double().cumsum(0)
    # A state that was not in the window yet has a zero column, so that the difference does not affect it.
    held = r.abs().amax(2).T > 0
    gram = torch.where(held.unsqueeze(1) & held.unsqueeze(2), gram, 0.0)
    aim = torch.where(held, aim, 0.0)
    weights = torch.linalg.solve(gram + ridge * torch.eye(len(r)).to(gram), aim).to(r)
    return torch.einsum("isd,si->sd", x + r, weights).view_as(residual)


def _difference(older: Seen, newer: Seen, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """The change of states and residuals between two points; zero for states that were not in both windows."""
    common = min(older.end, newer.end, end) - begin
    x, residual = newer.x.new_zeros(2, end - begin, *newer.x.shape[1:])
    for change, after, before in ((x, newer.x, older.x), (residual, newer.residual, older.residual)):
        if common > 0:
            change[:common] = after[begin - newer.begin :][:common] - before[begin - older.begin :][:common]
    return x, residual
