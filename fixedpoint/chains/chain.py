"""A chain: a sequential computation, written as one method.

``x_{i+1} = Phi_i(x_i)``, ``i = 0 .. N-1``, with ``x_0`` given. ``Phi_i`` is opaque: clipping, guidance, noise drawn
beforehand are all the step's own business. ``fixedpoint.chains.problem`` makes one joint fixed point of its states.
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
        ``N``, the number of steps.
    """

    length: int

    @abstractmethod
    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """``Phi_i(x)`` for a batch of pairs of a state and the index of its step.

        Parameters
        ----------
        x
            States, in any order.
        index
            Index ``0 .. N-1`` of each pair's step.
        row
            Which row of the batch each pair belongs to: selects its conditioning and its noise.
        """
