"""What a solve returns: :class:`Solution`, with its :class:`Trace`, and the :class:`Claim` of a wrapped solver."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from fixedpoint.core.statuses import Statuses
from fixedpoint.core.termination import at_rounding_floor
from fixedpoint.core.transfer import to_host

__all__ = ["Claim", "Solution", "Trace"]

# A row whose scale grew by more than this factor, while its error did not fall, is reported as running away.
_RAN = 10.0
# These statuses have more specific sentences for some rows.
_EXPLAINED = (Status.STALLED, Status.MAX_ROUNDS)


@dataclass(frozen=True)
class Trace:
    """The errors of every row at all judged points of a solve.

    Attributes
    ----------
    error, relative
        Shape ``(n, B)``, float64: the largest error over the blocks, absolute and relative to the scale. NaN where the
        row had finished.
    rounds
        Shape ``(n,)``, int64: the number of rounds after which each point was judged. Not every round ends with a
        judged point (Newton's method spends most of its rounds on a linear system), and some points are judged without
        another round.
    """

    error: NDArray[np.float64]
    relative: NDArray[np.float64]
    rounds: NDArray[np.int64]


@dataclass(frozen=True)
class Claim:
    """What a solver that runs its own loop reports about its answer, stored as ``solution.extras["claimed"]``.

    The library judges the answer independently, so that false claims can be counted:
    ``(claim.converged & ~solution.converged).sum()``.

    Attributes
    ----------
    converged
        Shape ``(B,)``, bool: whether the solver reports the row as converged, to its own tolerance.
    residual
        Shape ``(B,)``, float64: the norm of the residual that the solver reports, divided by the norm of ``f(z)`` if
        ``relative``.
    relative
        Whether residual and tolerance are relative to the norm of ``f(z)``.
    tolerance
        The tolerance that the solver was given, absolute or relative like ``residual``.
    """

    converged: NDArray[np.bool_]
    residual: NDArray[np.float64]
    relative: bool
    tolerance: float


@dataclass(frozen=True)
class Solution:
    """The answer of a solve: the judged point, a status for every row, the counts and the trace.

    Attributes
    ----------
    state, fstate
        Shape ``(B, D)``: the point, and ``f`` evaluated at exactly that point.
    error, scale
        Shape ``(B, m)``, float64: error and scale of that point, with a column for every block of a row or, depending
        on ``Termination.per``, for every tensor or entry.
    status
        ``B`` values: why each row stopped. An immutable sequence, which equals a tuple of the same statuses. It may be
        given as any sequence of statuses.
    rounds
        Shape ``(B,)``, int64: the number of rounds in which each row was running.
    counts
        Rounds, calls, evaluations and products of the whole solve.
    trace
        The errors at all judged points.
    solver
        The solver that found it.
    layout
        How the state corresponds to the user's value.
    extras
        Further results of the solver or the gradient estimator, by name: ``"inverse"`` (an inverse estimate),
        ``"adjoint"`` (an adjoint report), ``"claimed"`` (a :class:`Claim`) and others.
    notes
        Messages for single rows that did not converge, by row index; they replace the sentence of the status.
    aux
        The second item that the function returned at this point, where the problem was solved with ``has_aux``.
    sample_map
        The function that makes :attr:`samples` of the state; None where the problem has no samples.
    """

    state: Float[Tensor, "B D"]
    fstate: Float[Tensor, "B D"]
    error: Float[Tensor, "B blocks"]
    scale: Float[Tensor, "B blocks"]
    status: Sequence[Status]
    rounds: NDArray[np.int64]
    counts: Counts
    trace: Trace
    solver: Any
    layout: Layout
    extras: dict[str, Any] = field(default_factory=dict)
    notes: Mapping[int, str] = field(default_factory=dict)
    aux: Any = None
    sample_map: Callable[[Float[Tensor, "B D"]], Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.status, Statuses):
            object.__setattr__(self, "status", Statuses(self.status))  # the dataclass is frozen

    @property
    def z(self) -> Any:
        """The point, in the structure of the start (a numpy start gives numpy arrays)."""
        return self.layout.unpack(self.state)

    @property
    def fz(self) -> Any:
        """``f`` at that point, in the structure of the start."""
        return self.layout.unpack(self.fstate)

    @property
    def samples(self) -> Any:
        """The states of the sampler itself at the point, computed when they are asked for.

        For a scheduler of diffusers, the ``prev_sample`` of each of its ``K`` steps, shape ``(B, K, *event)``. ``z``
        are the inputs of the network instead, which some schedulers scale.

        Raises
        ------
        AttributeError
            If the problem is not that of a sampler.
        """
        if self.sample_map is None:
            raise AttributeError("the problem of this solution is not that of a sampler, so it has no samples; take z")
        return self.sample_map(self.state)

    @property
    def evaluations(self) -> NDArray[np.int64]:
        """Shape ``(B,)``, int64: evaluations that each row required while it was running."""
        return self.counts.evaluations

    @property
    def relative_error(self) -> NDArray[np.float64]:
        """Shape ``(B,)``, float64: error divided by scale, the largest over the columns.

        0 where both are 0, infinite where the error is NaN.
        """
        error, scale = (np.asarray(part.detach().cpu(), dtype=np.float64) for part in (self.error, self.scale))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(error == 0.0, 0.0, error / scale)
        worst: NDArray[np.float64] = np.nan_to_num(ratio, nan=np.inf, posinf=np.inf).max(axis=1)
        return worst

    @property
    def _statuses(self) -> Statuses:
        assert isinstance(self.status, Statuses)  # made so by `__post_init__`
        return self.status

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Shape ``(B,)``, bool: whether the status of the row is ``CONVERGED``."""
        converged: NDArray[np.bool_] = self._statuses.codes == Status.CONVERGED
        return converged

    @property
    def message(self) -> str:
        """One line for each status and reason that occurred: the number of rows, and what the status means."""
        counted: Counter[tuple[Status, str]] = Counter()
        rows = len(self.status)
        for status, number in self._statuses.present().items():
            if status is Status.CONVERGED or not (self.notes or status in _EXPLAINED):
                counted[status, status.sentence] = number
                continue
            for row in np.flatnonzero(self._statuses.codes == status).tolist():
                counted[status, self._sentence(row, status)] += 1
        lines = [f"{n} of {rows} rows {status.label}: {sentence}" for (status, sentence), n in sorted(counted.items())]
        return "\n".join(lines)

    def _sentence(self, row: int, status: Status) -> str:
        """Return the sentence for a row that did not converge: its note, or the most specific one that applies."""
        if row in self.notes:
            return self.notes[row]
        if status is Status.STALLED and self._at_floor[row]:
            return floor_sentence(str(self.layout.dtype).removeprefix("torch."))
        if status in (Status.STALLED, Status.MAX_ROUNDS) and self._ran_away[row]:
            return RAN_AWAY
        return status.sentence

    @functools.cached_property
    def _at_floor(self) -> NDArray[np.bool_]:
        """Whether the error of a row is at the rounding of the dtype."""
        error, scale = to_host(self.error, self.scale)
        floor: NDArray[np.bool_] = at_rounding_floor(error, scale, torch.finfo(self.layout.dtype).eps)
        return floor

    @functools.cached_property
    def _ran_away(self) -> NDArray[np.bool_]:
        """Whether the scale of a row has grown tenfold while its error has not fallen to half of the largest one."""
        error, relative = self.trace.error, self.trace.relative
        with np.errstate(all="ignore"):  # the trace stores no scale, only the two errors whose ratio it is
            scale = np.where(np.isfinite(error) & (relative > 0), error / relative, np.nan)
            told = np.isfinite(scale)
            if not told.any():
                return np.zeros(error.shape[1], dtype=np.bool_)
            rows = np.arange(error.shape[1])
            first, last = told.argmax(axis=0), len(told) - 1 - told[::-1].argmax(axis=0)
            grown = (told.sum(axis=0) > 1) & (scale[last, rows] > _RAN * scale[first, rows])
            ran: NDArray[np.bool_] = grown & (2 * error[last, rows] > np.where(told, error, 0.0).max(axis=0))
        return ran

    def raise_for_status(self) -> Solution:
        """Return this solution if every row converged.

        Raises
        ------
        ConvergenceError
            If any row did not converge, with :attr:`message`.
        """
        if not self.converged.all():
            raise ConvergenceError(self.message)
        return self

    def __repr__(self) -> str:
        labels = ", ".join(f"{count} {status.label}" for status, count in self._statuses.present().items())
        return (
            f"Solution({labels}; {self.counts.rounds} rounds, {int(self.evaluations.sum())} evaluations, "
            f"relative error {self.relative_error.max(initial=0.0):.2g})"
        )
