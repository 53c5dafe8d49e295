"""``Slopes``: the linear part of a window, known before the first round or made of derivatives in every round."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.calls import evaluate_derivatives
from fixedpoint.chains.joint.shift import Shift
from fixedpoint.chains.joint.window import Window
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.recurrence.linear import Band, Derivatives, LinearPart
from fixedpoint.core.evaluator import Evaluator

__all__ = ["Slopes"]


class Slopes:
    """Provides the linear part of the window of every row.

    Derivatives are recomputed only for steps that were evaluated since the last time, and only if the solve continues
    from there.

    Parameters
    ----------
    f
        The evaluator, which counts the derivatives.
    problem
        The chain.
    known
        The linear part if it is known before the first round; None if it is made of derivatives.
    full_jacobian
        Whether these derivatives are Jacobians, not diagonals.
    width
        ``p``, the number of steps in the window.
    """

    def __init__(
        self, f: Evaluator, problem: ChainProblem, known: LinearPart | Band | None, *, full_jacobian: bool, width: int
    ) -> None:
        self.f = f
        self.problem = problem
        self.known = known
        self.full_jacobian = full_jacobian
        self._stale = np.zeros((len(problem.x0), width), dtype=np.bool_)
        self._derivatives: Tensor | None = None

    def note(self, evaluated: NDArray[np.bool_]) -> None:
        """Record which steps have been evaluated; ``evaluated`` has shape ``(B, p)``."""
        self._stale |= evaluated

    def slide(self, shift: Shift, stale: NDArray[np.bool_]) -> None:
        """Move the derivatives along with the window; ``stale`` is :attr:`stale`, already shifted."""
        self._stale = stale
        if self._derivatives is not None:
            parted = self._derivatives.unflatten(0, stale.shape)
            self._derivatives = shift.of_blocks(parted).flatten(0, 1)

    @property
    def stale(self) -> NDArray[np.bool_]:
        """Shape ``(B, p)``: True for steps that were evaluated after their derivatives were taken."""
        return self._stale

    def at(
        self, window: Window, running: NDArray[np.bool_], later: NDArray[np.bool_]
    ) -> LinearPart | Band | Derivatives:
        """Return the linear part at the states where the steps were last evaluated.

        Parameters
        ----------
        window
            The window.
        running
            Shape ``(B,)``: True for rows that are running; derivatives of the other rows are not updated.
        later
            Shape ``(B, p)``: True for steps whose derivatives are used.
        """
        if self.known is not None:
            return self.known
        rows, slots = np.nonzero(self._stale & running[:, None] & later)
        self._stale[running] = False
        # Derivatives count as constants: they do not change the fixed point.
        with torch.no_grad():
            x = window.inputs(rows, slots).detach().view(-1, *self.problem.x0.shape[1:])
            index = window.place(window.offset[rows] + slots)
            found = evaluate_derivatives(self.f, self.problem, x, index, rows, full_jacobian=self.full_jacobian)
        if self._derivatives is None:
            self._derivatives = found.new_zeros(self._stale.size, *found.shape[1:])
        self._derivatives.index_copy_(0, window.place(rows * window.width + slots), found)
        return Derivatives(self._derivatives.unflatten(0, self._stale.shape), self.problem.recurrence)
