r"""The adjoint of a chain, which is itself a chain that runs backwards along a trajectory.

For a loss ``L`` of the states of ``x_{i+1} = Phi_i(x_i)``, with direct derivative ``g_i`` with respect to ``x_i``,

    lambda_N = g_N,    lambda_i = (dPhi_i/dx)^T lambda_{i+1} + g_i,    dL/dx_0 = lambda_0
    dL/dtheta = sum_i lambda_{i+1}^T dPhi_i/dtheta

(Pontryagin's adjoint states, or backpropagation.) The trajectory is known, so all products of a round are computed in
one batch, and any solver of chains solves the adjoint chain: exactly in at most ``N`` rounds, and to a tolerance in far
fewer.

A product evaluates its step once more under autograd and discards the graph afterwards. The memory is that of the
states and of one micro-batch of steps, whatever the length; a serial backward pass holds the activations of all ``N``
steps.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.adjoint.recording import Gradients, recorded_steps, times_rows
from fixedpoint.chains.capabilities import HasCoefficients, HasGaussianSlopes, HasReferenceSlopes
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.gradients.ambient import Ambient
from fixedpoint.gradients.boundary import Edge
from fixedpoint.gradients.recorded import products, severed

__all__ = ["AdjointChain"]


class AdjointChain(Chain, HasCoefficients, HasGaussianSlopes, HasReferenceSlopes):
    """The chain from the cotangent of the last state to the cotangent of the start: state ``j`` is ``lambda_{N-j}``.

    Parameters
    ----------
    problem
        The chain that was solved. Its rows and ``max_batch`` are used here, too.
    states
        ``x_1 .. x_N``, shape ``(B, N, *event)``.
    last
        ``g_N``, which is ``lambda_N``, the start of this chain; shape ``(B, *event)``.
    earlier
        ``g_1 .. g_{N-1}``, shape ``(B, N-1, *event)``; None if the loss depends on the last state only.
    """

    def __init__(
        self,
        problem: ChainProblem,
        states: Float[Tensor, "B N *event"],
        last: Float[Tensor, "B *event"],
        earlier: Float[Tensor, "B m *event"] | None = None,
    ) -> None:
        self.problem, self.start, self.earlier = problem, last, earlier
        self.length = problem.length
        self.inputs = torch.cat([problem.x0.detach().unsqueeze(1), states[:, :-1]], dim=1)
        self.ambient = Ambient.of(states)

    def coefficients(self) -> Float[Tensor, " N"] | None:
        """Return the coefficients of the chain in reverse order, or None if it provides none."""
        known = self.problem.coefficients()
        return None if known is None else known.flip(0)

    def reference_slopes(self) -> Float[Tensor, " N"]:
        """Return those of the chain in reverse order."""
        return self.problem.reference.slopes.flip(0)

    def gaussian_slopes(self, variance: float) -> Float[Tensor, " N"]:
        """Return the slopes of the chain's steps for Gaussian data, in reverse order.

        Raises
        ------
        AbilityError
            When the chain does not provide them.
        """
        return self.problem.gaussian_slopes(variance).flip(0)

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """Return ``(dPhi_i/dx)^T x + g_i`` with ``i = N - 1 - index``, for every pair."""
        at = self.length - 1 - index
        with torch.enable_grad(), self.ambient:
            z = severed(self.inputs[row, at])
            value = self.problem.pairs(z, at, row)
        pulled = products(value, z, x)
        if self.earlier is None:
            return pulled
        # g_0 is not part of ``earlier``: the cotangent of the start is added by autograd, outside of the chain.
        earlier = self.earlier[row, (at - 1).clamp(min=0)]
        return pulled + torch.where((at > 0).view(-1, *[1] * (x.ndim - 1)), earlier, 0.0)

    def scaled(self, factors: Float[Tensor, " B"]) -> AdjointChain:
        """Return the adjoint chain of a loss that is ``factors`` times as large, one number per row."""
        other = copy.copy(self)
        other.start = times_rows(self.start, factors)
        other.earlier = None if self.earlier is None else times_rows(self.earlier, factors)
        return other

    def of_start(self, found: Float[Tensor, "B N *event"]) -> Float[Tensor, "B *event"]:
        """Return ``dL/dx_0``, which is ``lambda_0``, of the states of this chain."""
        return found[:, -1]

    def gathered(self, found: Float[Tensor, "B N *event"], edge: Edge) -> tuple[Tensor | None, ...]:
        """Return ``sum_i lambda_{i+1}^T dPhi_i/dtheta``, computed one micro-batch at a time.

        Parameters
        ----------
        found
            The states of this chain, shape ``(B, N, *event)``.
        edge
            The tensors ``theta``, by the autograd nodes that made them.

        Returns
        -------
        tuple
            One gradient per tensor in ``edge``; None where no step depends on it.

        Raises
        ------
        RuntimeError
            When a step depends on a tensor that is not in ``edge``.
        """
        rows, totals = len(self.inputs), Gradients(edge)
        index = torch.arange(self.length, device=found.device).repeat(rows)
        row = torch.arange(rows, device=found.device).repeat_interleave(self.length)
        size = self.problem.max_batch or len(index)
        # lambda_1 .. lambda_N: the first state of this chain is that before the last.
        cotangents = torch.cat([found[:, :-1].flip(1), self.start.unsqueeze(1)], dim=1)
        for at, of in zip(index.split(size), row.split(size), strict=True):
            _, value, known = recorded_steps(self.problem, self.inputs[of, at], at, of, self.ambient)
            totals.add(value, known, cotangents[of, at])
        return totals.found
