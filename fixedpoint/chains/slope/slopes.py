"""Slopes: the linear part of a window, known beforehand or made of derivatives as steps are evaluated."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.joint.buffers import Buffers
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.slope.linear import Band, Derivatives, LinearPart
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.shift import Shift

__all__ = ["Slopes"]


class Slopes:
    """The linear part of the window of every row.

    Derivatives are taken only of steps that were evaluated since, and only once the round goes on from there.

    Parameters
    ----------
    f
        Counts what derivatives cost.
    problem
        The chain.
    known
        The linear part, where it is known beforehand.
    full_jacobian
        Else, whether whole Jacobians are wanted, or diagonals.
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
        """Say which steps have been evaluated anew."""
        self._stale |= evaluated

    def slide(self, shift: Shift, stale: NDArray[np.bool_]) -> None:
        """Follow the window; ``stale`` is :attr:`stale`, shifted."""
        self._stale = stale
        if self._derivatives is not None:
            parted = self._derivatives.unflatten(0, stale.shape)
            self._derivatives = shift.of_blocks(parted).flatten(0, 1)

    @property
    def stale(self) -> NDArray[np.bool_]:
        """Shape ``(B, p)``: steps evaluated since their derivatives were taken."""
        return self._stale

    def at(
        self, buffers: Buffers, running: NDArray[np.bool_], later: NDArray[np.bool_]
    ) -> LinearPart | Band | Derivatives:
        """The linear part at the states where the steps were evaluated.

        Parameters
        ----------
        buffers
            The window.
        running
            Shape ``(B,)``: rows that are; the others' derivatives stay as they are.
        later
            Shape ``(B, p)``: steps whose derivatives are of use.
        """
        if self.known is not None:
            return self.known
        rows, slots = np.nonzero(self._stale & running[:, None] & later)
        self._stale[running] = False
        with torch.no_grad():
            x = buffers.before(rows, slots).detach().view(-1, *self.problem.x0.shape[1:])
            index = buffers.place(buffers.offset[rows] + slots)
            found = self.f.derivatives(self.problem, x, index, rows, full_jacobian=self.full_jacobian)
        if self._derivatives is None:
            self._derivatives = found.new_zeros(self._stale.size, *found.shape[1:])
        self._derivatives.index_copy_(0, buffers.place(rows * buffers.width + slots), found)
        return Derivatives(self._derivatives.unflatten(0, self._stale.shape))
