"""Solution: what a solve returns."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.counts import Counts
from fixedpoint.core.layout import Layout
from fixedpoint.core.status import RAN_AWAY, ConvergenceError, Status, floor_sentence
from fixedpoint.core.termination import at_rounding_floor

__all__ = ["Claim", "Solution", "Trace"]

# Growth of a row's scale, beside an error that does not fall, that is told as running away.
_RAN = 10.0


@dataclass(frozen=True)
class Trace:
    """The error of every row whenever it was judged, NaN where a row had finished.

    Attributes
    ----------
    error, relative
        Shape ``(n, B)``, float64: the largest over the blocks, absolute and relative to the scale.
    rounds
        Shape ``(n,)``, int64: after how many rounds of the solve. Not every round need end with a point that is judged
        (Newton's method spends most of its own on a linear system), and some points are judged without another round.
    """

    error: NDArray[np.float64]
    relative: NDArray[np.float64]
    rounds: NDArray[np.int64]


@dataclass(frozen=True)
class Claim:
    """What a solver that owns its loop says of its own answer: ``solution.extras["claimed"]``, where there is one.

    It stands beside what was judged from outside, so that false claims can be counted:
    ``(claim.converged & ~solution.converged).sum()``.

    Attributes
    ----------
    converged
        Shape ``(B,)``: whether it holds the row for converged, to its own tolerance.
    residual
        Shape ``(B,)``, float64: the norm of the residual it reports; divided by that of the value if ``relative``.
    relative
        Whether residual and tolerance are relative to the size of ``f(z)``.
    tolerance
        What it was asked for, in its own terms.
    """

    converged: NDArray[np.bool_]
    residual: NDArray[np.float64]
    relative: bool
    tolerance: float


@dataclass(frozen=True)
class Solution:
    """The answer of a solve: the point that was judged, and what judging it said.

    Attributes
    ----------
    state, fstate
        Shape ``(B, D)``: the point, and ``f`` evaluated at that very point.
    error, scale
        Shape ``(B, m)``, float64: the measure of that point, with a column for every block, or (``Termination.per``)
        every tensor or entry.
    status
        Shape ``(B,)``: why each row stopped.
    rounds
        Shape ``(B,)``, int64: rounds each row was running.
    counts
        Rounds, calls and evaluations of the whole solve.
    trace
        Errors per round.
    solver
        The solver that found it.
    layout
        How the state corresponds to the user's value.
    extras
        What a solver or gradient estimator wants to hand on (an inverse estimate, an adjoint report, a
        :class:`Claim` of a solver that is judged from outside).
    notes
        Of some rows that did not converge: what there is to say of them in place of the sentence of their status.
    aux
        What the function returned beside its value at this very point, where it was solved with ``has_aux``.
    """

    state: Float[Tensor, "B D"]
    fstate: Float[Tensor, "B D"]
    error: Float[Tensor, "B blocks"]
    scale: Float[Tensor, "B blocks"]
    status: tuple[Status, ...]
    rounds: NDArray[np.int64]
    counts: Counts
    trace: Trace
    solver: Any
    layout: Layout
    extras: dict[str, Any] = field(default_factory=dict)
    notes: Mapping[int, str] = field(default_factory=dict)
    aux: Any = None

    @property
    def z(self) -> Any:
        """The point, in the structure of the start value (numpy in, numpy out)."""
        return self.layout.unpack(self.state)

    @property
    def fz(self) -> Any:
        """``f`` at that point, in the structure of the start value."""
        return self.layout.unpack(self.fstate)

    @property
    def evaluations(self) -> NDArray[np.int64]:
        """Shape ``(B,)``: evaluations each row asked for."""
        return self.counts.evaluations

    @property
    def relative_error(self) -> NDArray[np.float64]:
        """Shape ``(B,)``: error over scale, the largest over the columns."""
        ratio = np.asarray((self.error / self.scale).detach().cpu(), dtype=np.float64)
        worst: NDArray[np.float64] = np.nan_to_num(ratio, nan=0.0, posinf=np.inf).max(axis=1)
        return worst

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Shape ``(B,)``."""
        return np.array([status is Status.CONVERGED for status in self.status], dtype=np.bool_)

    @property
    def message(self) -> str:
        """One line per status and reason that occurred: how many rows, and what it means."""
        counted = Counter((status, self._sentence(row, status)) for row, status in enumerate(self.status))
        rows = len(self.status)
        lines = [f"{n} of {rows} rows {status.label}: {sentence}" for (status, sentence), n in sorted(counted.items())]
        return "\n".join(lines)

    def _sentence(self, row: int, status: Status) -> str:
        if row in self.notes and status is not Status.CONVERGED:
            return self.notes[row]
        if status is Status.STALLED and self._at_floor[row]:
            return floor_sentence(str(self.layout.dtype).removeprefix("torch."))
        if status in (Status.STALLED, Status.MAX_ROUNDS) and self._ran_away[row]:
            return RAN_AWAY
        return status.sentence

    @functools.cached_property
    def _at_floor(self) -> list[bool]:
        floor: list[bool] = at_rounding_floor(self.error, self.scale, torch.finfo(self.layout.dtype).eps).tolist()
        return floor

    @functools.cached_property
    def _ran_away(self) -> list[bool]:
        """Whether the scale of a row has grown tenfold while its error has not fallen to half of the largest one."""
        error, relative = self.trace.error, self.trace.relative
        with np.errstate(all="ignore"):
            scale = np.where(np.isfinite(error) & (relative > 0), error / relative, np.nan)
        told = np.isfinite(scale)
        ran = []
        for row in range(error.shape[1]):
            known = np.flatnonzero(told[:, row])
            grown = len(known) > 1 and scale[known[-1], row] > _RAN * scale[known[0], row]
            ran.append(bool(grown and 2 * error[known[-1], row] > error[known, row].max()))
        return ran

    def raise_for_status(self) -> Solution:
        """This solution if every row converged.

        Raises
        ------
        ConvergenceError
            Otherwise, with the message.
        """
        if not self.converged.all():
            raise ConvergenceError(self.message)
        return self

    def __repr__(self) -> str:
        labels = ", ".join(f"{count} {status.label}" for status, count in sorted(Counter(self.status).items()))
        return (
            f"Solution({labels}; {self.counts.rounds} rounds, {int(self.evaluations.sum())} evaluations, "
            f"relative error {self.relative_error.max(initial=0.0):.2g})"
        )
