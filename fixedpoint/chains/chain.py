"""The ``Chain`` base class: a sequential computation that is defined by one method, ``step``.

A chain computes ``x_{i+1} = Phi_i(x_i)`` for ``i = 0 .. N-1`` from a given ``x_0``. The library treats ``Phi_i`` as
opaque: a step may clip, apply guidance or add noise that was drawn beforehand. ``fixedpoint.chains.problem`` turns the
states of a chain into one joint fixed point.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Chain"]


class Chain(ABC):
    """A sequential computation of ``length`` steps.

    Attributes
    ----------
    length
        ``N``, the number of steps; at least 1.
    """

    length: int

    @abstractmethod
    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """Evaluate ``Phi_i(x)`` for a batch of ``P`` pairs of a state and the index of its step.

        The value of a pair must not depend on the other pairs of the batch.

        Parameters
        ----------
        x
            Shape ``(P, *event)``: the states. The pairs come in any order, and an index may occur any number of times.
        index
            Shape ``(P,)``, int64: the index of each pair's step, from 0 to ``N - 1``.
        row
            Shape ``(P,)``, int64: the row of the batch that each pair belongs to. It selects the conditioning and the
            noise of the pair.

        Returns
        -------
        Float[Tensor, "P *event"]
            The next states, with the shape, dtype and device of ``x``.
        """
