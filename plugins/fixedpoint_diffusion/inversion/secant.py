"""Where a solution is to be expected, from the two before it.

An optimiser moves its point a little at a time, mostly on in one direction, and what is solved for at the point moves
along. With the point ``x`` of before and its last move ``d``, a solution ``y`` and its last move ``e``, at a new point
``x'`` the solution is expected at

    y + a e,    a = <x' - x, d> / <d, d>

with ``a`` held to [-2, 2]: a start that is wrong by the square of the move, where ``y`` itself is wrong by the move.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.reduce import vecdot

__all__ = ["Secant", "at_rest"]

_FARTHEST = 2.0
_MOVE = "_move"


class Secant:
    """The line through the last two evaluations, and a place on it.

    Parameters
    ----------
    kept
        What :meth:`keep` gave at the evaluation before; empty at the first.
    point
        Where the next one is, shape ``(B, *event)``.
    """

    def __init__(self, kept: Mapping[str, Tensor], point: Float[Tensor, "B *event"]) -> None:
        self._before, self._point = kept, point
        if kept:
            move, on = kept["point" + _MOVE].flatten(1), (point - kept["point"]).flatten(1)
            length = vecdot(move, move)
            along = vecdot(on, move)
            far = torch.where(length > 0, along / length.clamp(min=torch.finfo(length.dtype).tiny), 0.0)
            self._far = far.clamp(-_FARTHEST, _FARTHEST)

    def expected(self, name: str) -> Float[Tensor, "B ..."] | None:
        """What is to be expected of a solution; None at the first evaluation."""
        if name not in self._before:
            return None
        value, move = self._before[name], self._before[name + _MOVE]
        return torch.addcmul(value, self._far.to(value).view(-1, *[1] * (value.ndim - 1)), move)

    def keep(self, **solutions: Float[Tensor, "B ..."]) -> dict[str, Tensor]:
        """What the next evaluation needs to know, given the solutions of this one."""
        kept = {}
        for name, value in {"point": self._point, **solutions}.items():
            before = self._before.get(name)
            kept[name] = value
            kept[name + _MOVE] = torch.zeros_like(value) if before is None else value - before
        return kept


def at_rest(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is kept, but for the moves: where the function itself changes between evaluations they mean nothing."""
    return {name: torch.zeros_like(value) if name.endswith(_MOVE) else value for name, value in kept.items()}
