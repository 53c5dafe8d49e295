"""Chains: ``Chain``, defined by one method ``step``, and ``PredictionChain``, whose steps have a memory.

A chain computes ``x_{i+1} = Phi_i(x_i)`` for ``i = 0 .. N-1`` from a given ``x_0``. The library treats ``Phi_i`` as
opaque: a step may clip, apply guidance or add noise that was drawn beforehand.

Where a step depends on more than the state before it, the chain is one of predictions: ``K`` evaluations
``p_j = P_j(u_j)``, joined by a recurrence that gives the next input from the start and the earlier predictions. In an
affine chain it is a known combination of the last ``q`` inputs and predictions; multistep methods have this form.

``fixedpoint.chains.problem`` turns the states of a chain into one joint fixed point.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.recurrence.affine import Affine
from fixedpoint.chains.recurrence.recurrence import Recurrence

__all__ = ["AffineChain", "Chain", "PredictionChain"]


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


class PredictionChain(ABC):
    """A computation of ``K`` predictions ``p_j = P_j(u_j)`` that are joined by a recurrence.

    The recurrence gives every input from the start ``u_0`` and the predictions before it. The states of the joint
    problem are ``u_1 .. u_K``; the last one is the result.

    Attributes
    ----------
    length
        ``K``, the number of predictions; at least 1.
    recurrence
        The recurrence.
    """

    length: int
    recurrence: Recurrence

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
        """Return what is added to ``u_{j+1}`` for pairs of a prediction's index ``j`` and a row, such as noise.

        None if there is nothing to add.
        """
        return None


class AffineChain(PredictionChain):
    """A chain of predictions whose next input is a known combination of the last inputs and predictions.

    ``u_{j+1} = sum_{i<q} (a_ji u_{j-i} + b_ji p_{j-i}) + c_j``. For ``q = 1`` a :class:`Chain` does the same and can do
    more: shorter chains, inversion and parareal require steps without memory.

    Attributes
    ----------
    recurrence
        The coefficients ``a`` and ``b``.
    """

    recurrence: Affine
