r"""Which timesteps a chain visits, and where each of its steps leads.

``scheduler.step`` of diffusers leads ``num_train_timesteps // num_inference_steps`` timesteps down, whatever comes next
in the list; that is what a number of steps means here, too. Timesteps that are given lead each to the next, and the
last one to the end, as in the DDIM paper (Song, Meng & Ermon 2021, section 4.2, appendix D.2).
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

from fixedpoint_diffusion.samplers.schedulers import AssignedSchedule, DDIMSchedule

__all__ = ["DEFAULT_STEPS", "Route", "Timesteps", "quadratic_timesteps", "route_of"]

Timesteps = Sequence[int] | NDArray[np.integer[Any]] | Tensor | Literal["quadratic"]

# As the pipelines of diffusers.
DEFAULT_STEPS = 50


@dataclass(frozen=True)
class Route:
    """The timesteps of a chain.

    Attributes
    ----------
    timesteps
        Where the model is evaluated, strictly decreasing.
    before
        Where each step leads; below 0: to the end of the schedule.
    note
        A sentence on what differs from what was asked for; empty where nothing does.
    """

    timesteps: tuple[int, ...]
    before: tuple[int, ...]
    note: str = ""

    def levels(self, schedule: DDIMSchedule) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """The shares of signal at every step and where it leads, float64."""
        return schedule.levels(self.tensor(), torch.tensor(self.before))

    def tensor(self) -> Int[Tensor, " N"]:
        """The timesteps, int64."""
        return torch.tensor(self.timesteps)

    def __len__(self) -> int:
        return len(self.timesteps)


def route_of(
    schedule: DDIMSchedule, num_inference_steps: int | None = None, timesteps: Timesteps | None = None
) -> Route:
    """The route that was asked for; what is asked for here goes before what a scheduler was set to.

    Parameters
    ----------
    schedule
        The schedule; one that was read from a scheduler after ``set_timesteps`` has a route of its own.
    num_inference_steps
        ``N`` timesteps in the schedule's spacing. Default: the schedule's own route, else 50.
    timesteps
        The timesteps themselves, strictly decreasing, or ``"quadratic"``: see :func:`quadratic_timesteps`.

    Raises
    ------
    ValueError
        For timesteps that are not strictly decreasing integers of the training, more steps than it has, and a number of
        steps that is not that of the timesteps.
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
    """Timesteps that lie the denser the less noise is left: ``floor(i^2 .8 T / (N - 1)^2)``, ``i = N-1 .. 0``.

    That is the ``quad`` spacing of the DDIM paper's code, which Pokle, Geng & Kolter (2022) sample with, too. Near the
    image, squares fall on the same integers: each is there once, so that of 50 steps 49 are left, and of 1000, 688.

    Parameters
    ----------
    num_inference_steps
        ``N``, at least 1 and at most ``num_train_timesteps``, which is ``T``.

    Raises
    ------
    ValueError
        For any other number.
    """
    count = _integer("num_inference_steps", num_inference_steps)
    if not 1 <= count <= num_train_timesteps:
        raise ValueError(
            f"num_inference_steps must be from 1 to num_train_timesteps = {num_train_timesteps}, got {count}"
        )
    squares = np.linspace(0, np.sqrt(num_train_timesteps * 0.8), count) ** 2
    if count == 1:  # one step, from the noisiest of them
        squares = np.array([num_train_timesteps * 0.8])
    return tuple(sorted({int(square) for square in squares}, reverse=True))


def _quadratic(count: int, total: int) -> Route:
    chosen = quadratic_timesteps(count, total)
    route = _joined(chosen)
    if len(chosen) == count:
        return route
    note = f"{count} steps of quadratic spacing are {len(chosen)} distinct timesteps; the chain has {len(chosen)} steps"
    return Route(route.timesteps, route.before, note)


def _stepped(timesteps: tuple[int, ...], stride: int) -> Route:
    return Route(timesteps, tuple(step - stride for step in timesteps))


def _joined(timesteps: tuple[int, ...]) -> Route:
    return Route(timesteps, (*timesteps[1:], -1))


def _integer(name: str, value: Any) -> int:
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}") from None
