r"""The adjoint of a chain: a chain itself, run backwards along a trajectory.

For a loss ``L`` of the states of ``x_{i+1} = Phi_i(x_i)``, with ``g_i`` its direct derivative by ``x_i``,

    lambda_N = g_N,    lambda_i = (dPhi_i/dx)^T lambda_{i+1} + g_i,    dL/dx_0 = lambda_0
    dL/dtheta = sum_i lambda_{i+1}^T dPhi_i/dtheta

(Pontryagin's adjoint states, or backpropagation.) The trajectory is known, so that all products of a round are made in
one batch, and whatever solves chains solves this one: exactly, in at most ``N`` rounds, in far fewer to a tolerance.

A product takes its step once more under autograd and drops it afterwards: memory is that of the states and of one
micro-batch of steps, whatever the length. A serial backward pass holds the activations of all ``N``.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.capabilities import HasCoefficients, HasGaussianSlopes
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.gradients.ambient import Ambient
from fixedpoint.gradients.boundary import Boundary, Edge
from fixedpoint.gradients.recorded import products, severed

__all__ = ["AdjointChain", "recorded_steps"]


class AdjointChain(Chain, HasCoefficients, HasGaussianSlopes):
    """From the cotangent of the last state to that of the start: state ``j`` is ``lambda_{N-j}``.

    Parameters
    ----------
    problem
        The chain that was solved, with its rows and micro-batches.
    states
        Its states, shape ``(B, N, *event)``.
    direct
        ``g_1 .. g_N``, of the same shape; None where the loss is of the last state alone.
    """

    def __init__(
        self, problem: ChainProblem, states: Float[Tensor, "B N *event"], direct: Float[Tensor, "B N *event"] | None
    ) -> None:
        self.problem, self.direct = problem, direct
        self.length = problem.length
        self.inputs = torch.cat([problem.x0.detach().unsqueeze(1), states[:, :-1]], dim=1)
        self.ambient = Ambient.of(states)

    def coefficients(self) -> Float[Tensor, " N"] | None:
        """The coefficients of the chain, from its end; None where it knows none."""
        known = self.problem.coefficients()
        return None if known is None else known.flip(0)

    def gaussian_slopes(self, variance: float) -> Float[Tensor, " N"]:
        """The slopes of the chain's steps for Gaussian data, from its end.

        Raises
        ------
        AbilityError
            Where the chain does not know them.
        """
        return self.problem.gaussian_slopes(variance).flip(0)

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """``(dPhi_i/dx)^T x + g_i`` with ``i = N - 1 - index``, of every pair."""
        at = self.length - 1 - index
        with torch.enable_grad(), self.ambient:
            z = severed(self.inputs[row, at])
            value = self.problem.pairs(z, at, row)
        pulled = products(value, z, x)
        if self.direct is None:
            return pulled
        earlier = self.direct[row, (at - 1).clamp(min=0)]
        return pulled + torch.where((at > 0).view(-1, *[1] * (x.ndim - 1)), earlier, 0.0)

    def gathered(self, cotangents: Float[Tensor, "B N *event"], edge: Edge) -> tuple[Tensor | None, ...]:
        """``sum_i lambda_{i+1}^T dPhi_i/dtheta``, micro-batch by micro-batch.

        Parameters
        ----------
        cotangents
            ``lambda_1 .. lambda_N``.
        edge
            The ``theta``, by the nodes that made them.

        Raises
        ------
        RuntimeError
            Where a step depends on more.
        """
        rows, outside = len(self.inputs), tuple(edge.values())
        index = torch.arange(self.length, device=cotangents.device).repeat(rows)
        row = torch.arange(rows, device=cotangents.device).repeat_interleave(self.length)
        size = self.problem.max_batch or len(index)
        totals: list[Tensor | None] = [None] * len(outside)
        for at, of in zip(index.split(size), row.split(size), strict=True):
            value, found = self._recorded(at, of)
            if found is None or not found.keys() <= edge.keys():
                raise RuntimeError(
                    "steps of this chain depend on tensors that its first one does not; their gradient would be lost"
                )
            if value.requires_grad:
                parts = torch.autograd.grad(value, outside, cotangents[of, at], allow_unused=True)
                totals = [_sum(*pair) for pair in zip(totals, parts, strict=True)]
        return tuple(totals)

    def _recorded(self, index: Int[Tensor, " P"], row: Int[Tensor, " P"]) -> tuple[Tensor, Edge | None]:
        """Steps along the trajectory, and what they depend on beside their states."""
        return recorded_steps(self.problem, self.inputs[row, index], index, row, self.ambient)


def recorded_steps(
    problem: ChainProblem,
    x: Float[Tensor, "P *event"],
    index: Int[Tensor, " P"],
    row: Int[Tensor, " P"],
    ambient: Ambient,
) -> tuple[Float[Tensor, "P *event"], Edge | None]:
    """Steps of a chain as autograd records them, and what they depend on beside ``x``; None where that is hidden."""
    z = severed(x)
    with torch.enable_grad(), ambient, Boundary(z) as boundary:
        value = problem.pairs(z, index, row)
    return value, boundary.edge(value, z)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other
