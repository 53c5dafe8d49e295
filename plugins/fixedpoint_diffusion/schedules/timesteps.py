r"""Determines the timesteps of a chain, and where each of its steps leads.

Given a number of steps, each step leads ``num_train_timesteps // num_inference_steps`` timesteps down, even if the next
timestep of the list is another one; ``scheduler.step`` of diffusers does the same. Given a list of timesteps, each
leads to the next and the last to the end of the schedule, as in the DDIM paper (Song, Meng & Ermon 2021, section 4.2,
appendix D.2).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint_diffusion.schedules.schedulers import AssignedSchedule, DDIMSchedule

__all__ = ["DEFAULT_STEPS", "Route", "Timesteps", "quadratic_timesteps", "route_of"]

Timesteps = Sequence[int] | NDArray[np.integer[Any]] | Tensor | Literal["quadratic"]

# The default of the pipelines of diffusers.
DEFAULT_STEPS = 50


@dataclass(frozen=True)
class Route:
    """The timesteps of a chain.

    Attributes
    ----------
    timesteps
        The training timesteps at which the model is evaluated, strictly decreasing.
    before
        The timestep that each step leads to; a value below 0 stands for the end of the schedule.
    note
        A sentence on how the route differs from the request; empty if it does not.
    """

    timesteps: tuple[int, ...]
    before: tuple[int, ...]
    note: str = ""

    def levels(self, schedule: DDIMSchedule) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """The share of signal at the timestep of every step, and at the timestep that the step leads to; float64."""
        return schedule.levels(self.tensor(), torch.tensor(self.before, device="cpu"))

    def tensor(self) -> Int[Tensor, " N"]:
        """The timesteps, int64."""
        return torch.tensor(self.timesteps, device="cpu")

    def __len__(self) -> int:
        return len(self.timesteps)


def route_of(
    schedule: DDIMSchedule, num_inference_steps: int | None = None, timesteps: Timesteps | None = None
) -> Route:
    """The requested route. The arguments take precedence over timesteps that were set on a scheduler.

    Parameters
    ----------
    schedule
        The schedule. If it was read from a scheduler after ``set_timesteps``, it has a route of its own.
    num_inference_steps
        ``N``, the number of timesteps, spaced as the schedule says. Default: the schedule's own route, else 50.
    timesteps
        The timesteps, strictly decreasing, or ``"quadratic"``: see :func:`quadratic_timesteps`.

    Raises
    ------
    ValueError
        If the timesteps are not strictly decreasing training timesteps, if there are more steps than training
        timesteps, or if both arguments are given and disagree.
    """
    count = None if num_inference_steps is None else _integer("num_inference_steps", num_inference_steps)
    if timesteps is None:
        if count is None and isinstance(schedule, AssignedSchedule):
            return _stepped(schedule.route(), schedule.stride)
        count = DEFAULT_STEPS if count is None else count
        return _stepped(tuple(schedule.timesteps(count).tolist()), schedule.num_train_timesteps // count)
    if isinstance(timesteps, str):
        if timesteps != "quadratic":
            raise ValueError(f"timesteps must be a list of integers or 'quadratic', got {timesteps!r}")
        return _quadratic(DEFAULT_STEPS if count is None else count, schedule.num_train_timesteps)
    chosen = schedule.checked_timesteps(timesteps)
    if count not in (None, len(chosen)):
        raise ValueError(
            f"num_inference_steps = {count} does not go with {len(chosen)} timesteps; leave out one or the other"
        )
    return _joined(chosen)


def quadratic_timesteps(num_inference_steps: int, num_train_timesteps: int = 1000) -> tuple[int, ...]:
    """Timesteps that lie denser where less noise is left: ``floor(i^2 .8 T / (N - 1)^2)``, ``i = N-1 .. 0``.

    This is the ``quad`` spacing of the code of the DDIM paper, which Pokle, Geng & Kolter (2022) also use. Near the
    image, several squares round down to the same integer, which is returned once: N = 50 gives 49 timesteps, N = 1000
    gives 688.

    Parameters
    ----------
    num_inference_steps
        ``N``, from 1 to ``num_train_timesteps``.
    num_train_timesteps
        ``T``, the number of training timesteps.

    Returns
    -------
    tuple of int
        Strictly decreasing; at most ``N`` timesteps.

    Raises
    ------
    ValueError
        If ``num_inference_steps`` is not an integer in that range.
    """
    count = _integer("num_inference_steps", num_inference_steps)
    if not 1 <= count <= num_train_timesteps:
        raise ValueError(
            f"num_inference_steps must be from 1 to num_train_timesteps = {num_train_timesteps}, got {count}"
        )
    squares = np.linspace(0, np.sqrt(num_train_timesteps * 0.8), count) ** 2
    if count == 1:  # linspace would give 0, a timestep with hardly any noise; the noisiest one is used instead
        squares = np.array([num_train_timesteps * 0.8])
    return tuple(sorted({int(square) for square in squares}, reverse=True))


def _quadratic(count: int, total: int) -> Route:
    """The route of quadratic spacing, with a note if it has fewer steps than ``count``."""
    chosen = quadratic_timesteps(count, total)
    route = _joined(chosen)
    if len(chosen) == count:
        return route
    note = f"{count} steps of quadratic spacing are {len(chosen)} distinct timesteps; the chain has {len(chosen)} steps"
    return Route(route.timesteps, route.before, note)


def _stepped(timesteps: tuple[int, ...], stride: int) -> Route:
    """The route on which each step leads ``stride`` timesteps down."""
    return Route(timesteps, tuple(step - stride for step in timesteps))


def _joined(timesteps: tuple[int, ...]) -> Route:
    """The route on which each step leads to the next timestep, and the last one to the end of the schedule."""
    return Route(timesteps, (*timesteps[1:], -1))


def _integer(name: str, value: Any) -> int:
    """The value as an ``int``; floats and booleans raise a ``ValueError``."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}") from None
