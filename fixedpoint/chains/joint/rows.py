"""Keeps track of the rows of a joint solve: which are running, how the others ended, and their errors per round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.joint.window import HostMask, Window
from fixedpoint.chains.step_errors import StepErrors
from fixedpoint.core.evaluator import Evaluated
from fixedpoint.core.point import Numbers, Point
from fixedpoint.core.progress import Progress
from fixedpoint.core.status import Status
from fixedpoint.core.statuses import Statuses
from fixedpoint.core.transfer import to_device

__all__ = ["Report", "Rows"]


@dataclass(eq=False)
class Report:
    """What a round found: the status of every row and the condition of every state in the window.

    Attributes
    ----------
    status
        Shape ``(B,)``, int8: the status code of every row, judged by its window alone. A row whose window has not
        reached the end of the chain is not done even if this says converged.
    errors
        Shape ``(B, p)``: the change implied at every state, relative to the state's norm; 0 at final states.
    quiet
        Shape ``(B, p)``: True where that change is within the slack, so that the state may keep its value.
    finite_value
        Shape ``(B, p)``: True where the value that the recurrence gives to the state is finite.
    finite_defect
        Shape ``(B, p)``: True where this value and its defect are finite, and for final states.
    latest
        Shape ``(B, d)``, on the device: the value of the last state in the window.
    changes
        Shape ``(B, p, d)``, on the device: the change implied at every state; None once it is of no further use.
    """

    status: NDArray[np.int8]
    errors: NDArray[np.float64]
    quiet: HostMask
    finite_value: HostMask
    finite_defect: HostMask
    latest: Float[Tensor, "B d"]
    changes: Float[Tensor, "B p d"] | None


class Rows:
    """State of every row of a joint solve. All of it is on the host, except the measure that rows ended with.

    Parameters
    ----------
    exact
        Shape ``(B,)``: how many states of each row are final.
    length
        ``N``, the number of steps.
    begun
        Rounds spent before the first one of the engine, on the start.
    """

    def __init__(self, exact: NDArray[np.int64], length: int, begun: int) -> None:
        self.exact = exact
        self.length = length
        self.final_error = np.zeros(len(exact))
        """Shape ``(B,)``: the largest relative change that was implied at final states and not applied."""
        self.running = np.ones(len(exact), dtype=np.bool_)
        self.rounds = np.zeros(len(exact), dtype=np.int64)
        self._codes = np.full(len(exact), Status.RUNNING, dtype=np.int8)
        self._latest = np.full(len(exact), begun, dtype=np.int64)
        self._kept: Numbers | None = None
        self._errors: list[NDArray[np.float32]] = []
        self._offsets: list[NDArray[np.int64]] = []
        self._numbers: list[int] = []

    @property
    def status(self) -> Statuses:
        """The status of every row."""
        return Statuses(self._codes)

    @property
    def step_errors(self) -> StepErrors:
        """The errors of every state after every round so far."""
        return StepErrors(tuple(self._errors), tuple(self._offsets), self.length, tuple(self._numbers))

    def stepped(self, rows: NDArray[np.int64], round: int) -> None:
        """Record that these rows take steps in round ``round``."""
        self._latest[rows] = round

    def settle(self, report: Report, at: Evaluated, window: Window, round: int, *, over: bool) -> None:
        """Update the status of the running rows after ``round`` rounds; with ``over`` the limit ends all of them."""
        codes = report.status.copy()
        codes[(codes == Status.CONVERGED) & self._short(window)] = Status.RUNNING
        codes[(codes == Status.RUNNING) & (over | (self.exact == self.length))] = Status.MAX_ROUNDS
        self.rounds[self.running] = self._latest[self.running]
        self._codes[self.running] = codes[self.running]
        self._keep(at)
        with np.errstate(over="ignore"):  # errors beyond the range of float32 become Inf
            self._errors.append(np.where(self.running[:, None], report.errors, np.nan).astype(np.float32))
        self._offsets.append(window.offset)
        self._numbers.append(round)
        self.running = self._codes == Status.RUNNING

    def answer(self, states: Float[Tensor, "B n d"], values: Float[Tensor, "B n d"], window: Window) -> Point:
        """Return these states with the measure each row ended with.

        The error is infinite where the window never reached the last state of the chain.
        """
        assert self._kept is not None  # at least one round was judged
        error = np.where(self._short(window)[:, None], np.inf, self._kept.error)
        device = states.device
        return Point(
            states.flatten(1), values.flatten(1), to_device(error, device), to_device(self._kept.scale, device)
        )

    def progress(self, evaluations: NDArray[np.int64], last: Float[Tensor, "B d"]) -> Progress:
        """Return the progress of the solve for a callback."""
        known = self._errors[-1][~np.isnan(self._errors[-1])]
        error = float(known.max()) if len(known) else 0.0
        return Progress(self._numbers[-1], int(self.running.sum()), error, evaluations.copy(), last)

    def _short(self, window: Window) -> NDArray[np.bool_]:
        """Return the rows whose window has not reached the end of the chain."""
        short: NDArray[np.bool_] = window.offset + window.width < self.length
        return short

    def _keep(self, at: Evaluated) -> None:
        assert at.numbers is not None  # it was judged
        self._kept = at.numbers if self._kept is None else at.numbers.where(self.running, self._kept)
