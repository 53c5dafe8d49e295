"""Extrapolates a solution from the two previous ones, as the start of the next solve.

An optimiser moves its point in small steps, mostly along one direction, and the solution of a solve at the point moves
with it. Let ``x`` be the previous point and ``d`` its last change, ``y`` the solution there and ``e`` its last change.
At a new point ``x'`` the solution is extrapolated to

    y + a e,    a = <x' - x, d> / <d, d>

with ``a`` limited to [-2, 2]. The error of this start is of second order in the step of the optimiser, while that of
``y`` is of first order.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.reduce import vecdot

__all__ = ["Secant", "at_rest"]

_FARTHEST = 2.0  # the limit of ``a``
_MOVE = "_move"


class Secant:
    """The line through the last two evaluations, and the position of a new point along it.

    Parameters
    ----------
    kept
        What :meth:`keep` returned at the previous evaluation; empty at the first one.
    point
        The new point, shape ``(B, *event)``.
    """

    def __init__(self, kept: Mapping[str, Tensor], point: Float[Tensor, "B *event"]) -> None:
        self._before, self._point = kept, point
        if kept:
            move, on = kept["point" + _MOVE].flatten(1), (point - kept["point"]).flatten(1)
            # Zero at the second evaluation and for a row that did not move: there the last solution is the start.
            length = vecdot(move, move)
            along = vecdot(on, move)
            far = torch.where(length > 0, along / length.clamp(min=torch.finfo(length.dtype).tiny), 0.0)
            self._far = far.clamp(-_FARTHEST, _FARTHEST)

    def expected(self, name: str) -> Float[Tensor, "B ..."] | None:
        """The extrapolated solution of that name; None at the first evaluation."""
        if name not in self._before:
            return None
        value, move = self._before[name], self._before[name + _MOVE]
        return torch.addcmul(value, self._far.to(value).view(-1, *[1] * (value.ndim - 1)), move)

    def keep(self, **solutions: Float[Tensor, "B ..."]) -> dict[str, Tensor]:
        """The tensors to pass to the next evaluation: point and solutions of this one, and their changes."""
        kept = {}
        for name, value in {"point": self._point, **solutions}.items():
            before = self._before.get(name)
            kept[name] = value
            kept[name + _MOVE] = torch.zeros_like(value) if before is None else value - before
        return kept


def at_rest(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was kept, with all changes set to zero: they mean nothing if the function changes between evaluations."""
    return {name: torch.zeros_like(value) if name.endswith(_MOVE) else value for name, value in kept.items()}
