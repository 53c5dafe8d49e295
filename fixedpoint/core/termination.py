"""Termination: when a row is done, and when going on is pointless."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated
from fixedpoint.core.options import OptionError, Options, option
from fixedpoint.core.status import Status
from fixedpoint.core.yardstick import Yardstick

__all__ = ["Judge", "Termination", "at_rounding_floor"]

# Rounding of f moves the residual by a few units in the last place; below this many the error is noise.
_FLOOR = 16.0
# Rounds without improvement after which a row whose error is at that floor is done for.
_FLOOR_PATIENCE = 5
# An error must fall by this factor to count as improved.
_IMPROVEMENT = 0.999


@dataclass(frozen=True)
class Termination(Options):
    """The stopping rule, judged per row on the problem itself, never on a relaxed step.

    A row converges when, in every one of its blocks, ``error <= atol + rtol * scale``. For plain problems
    ``error = ||f(z) - z||`` and ``scale = ||f(z)||``, of the whole row, or (``per``) of every tensor of the state or
    every entry by itself, for states that span magnitudes; a chain brings its own measure.
    """

    rtol: float = option(1e-6, ge=0.0, lt=1.0, help="relative tolerance")
    atol: float = option(0.0, ge=0.0, help="absolute tolerance; wanted where the solution may be zero")
    max_rounds: int | None = option(
        None, ge=1, help="limit on rounds; by default the solver's own bound (a chain: N + 1), else 1000"
    )
    norm: Literal["l2", "rms", "max"] = option("l2", help="norm of the residual")
    per: Literal["row", "leaf", "entry"] = option(
        "row", help="what is held against its tolerance: the norm of a whole row, of each tensor of it, or each entry"
    )
    relative_to: Literal["state", "start"] = option(
        "state", help="what rtol is relative to: the size of the state, or the first error"
    )
    patience: int = option(50, ge=1, help="rounds without any improvement of the error after which a row is stalled")
    divergence: float = option(1e8, gt=1.0, help="growth of the error over its first value that means divergence")

    def check(self) -> None:
        if self.per != "row" and self.relative_to == "start":
            raise OptionError("Termination", "per", f"must be 'row' where relative_to is 'start', got {self.per!r}")

    @property
    def yardstick(self) -> Yardstick:
        """What it measures in, and with which tolerances."""
        return Yardstick(self.norm, self.per, self.rtol, self.atol)


def at_rounding_floor(
    error: Float[Tensor, "B blocks"], scale: Float[Tensor, "B blocks"], eps: float
) -> Bool[Tensor, " B"]:
    """Whether all that is left of a row's error is rounding of a dtype with that ``eps``."""
    return (error <= _FLOOR * eps * scale).all(dim=1)


class Judge:
    """Applies a :class:`Termination` to the evaluated points of one solve, row by row, without leaving the device.

    ``lasting=True`` is for solvers that end by themselves after a known number of rounds (chains): there the
    error may grow first, so neither stall nor divergence is concluded from it. ``yardstick``: that of the evaluator,
    which has the tolerances of every tensor or entry where there are several; by default the termination's.
    """

    def __init__(
        self, termination: Termination, dtype: torch.dtype, lasting: bool = False, yardstick: Yardstick | None = None
    ) -> None:
        self.termination = termination
        self.yardstick = yardstick or termination.yardstick
        self.lasting = lasting
        self._eps = torch.finfo(dtype).eps
        self._first: Tensor | None = None
        self._best: Tensor | None = None
        self._waited: Tensor | None = None
        self._broken: Tensor | None = None

    def __call__(self, at: Evaluated) -> tuple[Int8[Tensor, " B"], Bool[Tensor, " B"]]:
        """The status of every row, and the rows to be rescued: not finite now, but they have a finite point."""
        stick = self.yardstick
        error = stick.progress(at.error, at.scale)
        measured = stick.merit(at.error, at.scale).unsqueeze(1) if stick.fine else at.error
        if self._first is None or self._best is None or self._waited is None or self._broken is None:
            self._first, self._best = measured, error
            self._waited = torch.zeros_like(error[:, 0])
            self._broken = torch.where(at.finite, 0.0, 2.0)  # a start that is not finite cannot be rescued
        improved = at.finite & stick.improved(error, self._best, _IMPROVEMENT)
        self._waited = torch.where(improved, 0.0, self._waited + 1.0)
        self._broken = torch.where(improved, 0.0, self._broken + (~at.finite).to(self._broken))
        self._best = torch.where(at.finite.unsqueeze(1), torch.minimum(error, self._best), self._best)

        status = torch.full_like(self._waited, Status.RUNNING, dtype=torch.int8)
        if not self.lasting:
            grown = at.finite & (measured > self.termination.divergence * self._first).any(dim=1)
            status = status.masked_fill(self._stalled(at), Status.STALLED).masked_fill(grown, Status.DIVERGED)
        lost = self._broken >= (1.0 if self.lasting else 2.0)
        status = status.masked_fill(lost, Status.NONFINITE).masked_fill(self.within(at), Status.CONVERGED)
        return status, ~at.finite & ~lost

    def tolerance(self, at: Evaluated, scale: Float[Tensor, "B n"] | None = None) -> Float[Tensor, "B m"]:
        """The error that is small enough; ``scale`` in place of the point's own where it is relative to the state."""
        own = at.scale if scale is None else scale
        if self.yardstick.fine:
            return self.yardstick.tolerance(own)
        start = self._first if self.termination.relative_to == "start" else None
        return self.termination.atol + self.termination.rtol * (own if start is None else start)

    def within(self, at: Evaluated) -> Bool[Tensor, " B"]:
        """Whether all blocks of a row are within the tolerance."""
        return at.finite & (at.error <= self.tolerance(at)).all(dim=1)

    def taken(self, take: Callable[[Any], Any]) -> Judge:
        """The judge of some of the rows, which ``take`` picks from all that it is given."""
        part = copy.copy(self)
        known = self._first, self._best, self._waited, self._broken
        part._first, part._best, part._waited, part._broken = take(known)
        return part

    def _stalled(self, at: Evaluated) -> Bool[Tensor, " B"]:
        assert self._waited is not None
        at_floor = at_rounding_floor(at.error, at.scale, self._eps)
        patience = self.termination.patience
        return at.finite & (self._waited >= torch.where(at_floor, min(_FLOOR_PATIENCE, patience), patience))
