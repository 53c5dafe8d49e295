"""The result of inverting a chain: ``Inversion``, with an ``InversionStatus`` for every row."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.counts import Counts
from fixedpoint.core.solution import Solution

__all__ = ["Inversion", "InversionStatus"]


class InversionStatus(enum.IntEnum):
    """How a row ended; ``status.sentence`` says what that means and what to try."""

    INVERTED = 0
    MISFIT = 1
    UNFINISHED = 2
    NOT_CONTRACTIVE = 3
    NONFINITE = 4

    @property
    def label(self) -> str:
        """The name used in tables and records, e.g. ``"not_contractive"``."""
        return self.name.lower()

    @property
    def sentence(self) -> str:
        """What happened, and what to try."""
        return _SENTENCES[self]


_SENTENCES = {
    InversionStatus.INVERTED: "the chain makes the end of it, to the tolerance",
    InversionStatus.MISFIT: (
        "what is left is left by the clean end, whose steps nearly project: the end is off what the chain can make, or "
        "they require more evaluations (clean_rounds, vectors) or another guess of how many they are (clean_end)"
    ),
    InversionStatus.UNFINISHED: (
        "the rounds ended before the states were found; allow more (max_rounds, clean_rounds), or a smaller rtol"
    ),
    InversionStatus.NOT_CONTRACTIVE: (
        "more rounds bring the states no nearer: the inverse of some steps does not contract; take less guidance, more "
        "steps, or another solver"
    ),
    InversionStatus.NONFINITE: "a step returned NaN or Inf",
}


@dataclass(frozen=True)
class Inversion:
    """The states of a chain that were found from its last one.

    Attributes
    ----------
    states
        ``x_0 .. x_{N-1}``, shape ``(B, N, *event)``.
    reconstruction
        Shape ``(B, *event)``: the last state of the chain when it is run from ``x_0``; NaN in rows where that failed.
    residuals
        Shape ``(B, N)``, float64: rms of ``Phi_i(x_i) - x_{i+1}``, in units of the states.
    misfit
        Shape ``(B,)``, float64: rms of the sum of ``Phi_i(x_i) - x_{i+1}`` over the clean end, in units of the states.
    round_trip
        Shape ``(B,)``, float64: rms of ``reconstruction - x_N``, in units of the states.
    tolerance
        The largest ``round_trip`` that counts as inverted.
    status
        One :class:`InversionStatus` per row.
    counts
        The rounds, calls and evaluations spent, including the round trip.
    stages
        Number of rounds of every stage, by its name.
    joint
        The solution of the joint part, with its trace; None if there was no joint part.
    """

    states: Float[Tensor, "B N *event"]
    reconstruction: Float[Tensor, "B *event"]
    residuals: Float[Tensor, "B N"]
    misfit: Float[Tensor, " B"]
    round_trip: Float[Tensor, " B"]
    tolerance: float
    status: tuple[InversionStatus, ...]
    counts: Counts
    stages: Mapping[str, int]
    joint: Solution | None

    @property
    def latents(self) -> Float[Tensor, "B *event"]:
        """``x_0``, the start of the chain."""
        return self.states[:, 0]

    @property
    def succeeded(self) -> NDArray[np.bool_]:
        """Shape ``(B,)``: True for rows whose round trip is within the tolerance."""
        return np.array([status is InversionStatus.INVERTED for status in self.status])

    @property
    def rounds(self) -> int:
        """Number of rounds, including those of the round trip."""
        return self.counts.rounds

    @property
    def evaluations(self) -> NDArray[np.int64]:
        """Shape ``(B,)``, int64: the number of evaluations of every row, including the round trip."""
        return self.counts.evaluations

    @property
    def sentences(self) -> tuple[str, ...]:
        """One text per row: how it ended, with its errors."""
        return tuple(self._sentence(row, status) for row, status in enumerate(self.status))

    @property
    def message(self) -> str:
        """One line per status that occurred, with the number of rows and its meaning."""
        counted = sorted(Counter(self.status).items())
        return "\n".join(f"{n} of {len(self.status)} rows {each.label}: {each.sentence}" for each, n in counted)

    def _sentence(self, row: int, status: InversionStatus) -> str:
        off = f"rms {float(self.round_trip[row]):.1e}"
        if status is InversionStatus.INVERTED:
            return f"inverted: {off}"
        worst = int(self.residuals[row].nan_to_num(nan=torch.inf).argmax())
        where = f"the clean end leaves {float(self.misfit[row]):.1e}, step {worst} {self.residuals[row, worst]:.1e}"
        return f"missed by {off}, {self.tolerance:g} wanted; {where}; {status.sentence}"

    def __repr__(self) -> str:
        labels = ", ".join(f"{count} {status.label}" for status, count in sorted(Counter(self.status).items()))
        median = float(self.round_trip.median())
        return f"Inversion({labels}; {self.rounds} rounds, round trip {median:.2g} in the median)"
