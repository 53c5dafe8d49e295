"""Chains: ``Chain``, which is defined by one method ``step``, and ``AffineChain``, whose steps have a memory.

A chain computes ``x_{i+1} = Phi_i(x_i)`` for ``i = 0 .. N-1`` from a given ``x_0``. The library treats ``Phi_i`` as
opaque: a step may clip, apply guidance or add noise that was drawn beforehand.

An affine chain evaluates ``K`` predictions ``p_j = P_j(u_j)``, and the next input is a known combination of the last
``q`` inputs and predictions. Multistep methods have this form.

``fixedpoint.chains.problem`` turns the states of a chain into one joint fixed point.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.recurrence.affine import Affine

__all__ = ["AffineChain", "Chain"]


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


class AffineChain(ABC):
    """A computation of ``K`` predictions that are joined by an affine recurrence with a memory.

    With ``u_0`` given, ``u_{j+1} = sum_{i<q} (a_ji u_{j-i} + b_ji p_{j-i}) + c_j`` where ``p_j = P_j(u_j)``. The states
    of its joint problem are ``u_1 .. u_K``. For ``q = 1`` a :class:`Chain` does the same and can do more: shorter
    chains, inversion and parareal require steps without memory.

    Attributes
    ----------
    length
        ``K``, the number of predictions; at least 1.
    recurrence
        The coefficients ``a`` and ``b``.
    """

    length: int
    recurrence: Affine

    @abstractmethod
    def predict(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """Evaluate ``P_j(u_j)`` for a batch of ``P`` pairs of an input and the index of its prediction.

        The arguments and the result are as for :meth:`Chain.step`.
        """

    @abstractmethod
    def reference_slopes(self) -> Float[Tensor, " K"]:
        """Return one number per prediction that stands for its slope where nothing else is known, float64.

        They say how a change of an input is carried along the chain, in the error of a trajectory and in the sweep of
        its defects; those of networks for Gaussian data of variance 1 are a good choice. Zero keeps predictions as they
        are.
        """

    def constants(self, index: Int[Tensor, " P"], row: Int[Tensor, " P"]) -> Float[Tensor, "P *event"] | None:
        """Return ``c_j`` for pairs of a prediction's index and a row, such as noise; None if there are none."""
        return None
