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
    """The chain from the cotangent of the last state to the cotangent of the start: state ``j`` is ``lambda_{N-j}``.

    Parameters
    ----------
    problem
        The chain that was solved. Its rows and ``max_batch`` are used here, too.
    states
        ``x_1 .. x_N``, shape ``(B, N, *event)``.
    direct
        ``g_1 .. g_N``, shape ``(B, N, *event)``; None if the loss depends on the last state only.
    """

    def __init__(
        self, problem: ChainProblem, states: Float[Tensor, "B N *event"], direct: Float[Tensor, "B N *event"] | None
    ) -> None:
        self.problem, self.direct = problem, direct
        self.length = problem.length
        self.inputs = torch.cat([problem.x0.detach().unsqueeze(1), states[:, :-1]], dim=1)
        self.ambient = Ambient.of(states)

    def coefficients(self) -> Float[Tensor, " N"] | None:
        """Return the coefficients of the chain in reverse order, or None if it provides none."""
        known = self.problem.coefficients()
        return None if known is None else known.flip(0)

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
        if self.direct is None:
            return pulled
        # g_0 is not part of ``direct``: the cotangent of the start is added by autograd, outside of the chain.
        earlier = self.direct[row, (at - 1).clamp(min=0)]
        return pulled + torch.where((at > 0).view(-1, *[1] * (x.ndim - 1)), earlier, 0.0)

    def gathered(self, cotangents: Float[Tensor, "B N *event"], edge: Edge) -> tuple[Tensor | None, ...]:
        """Return ``sum_i lambda_{i+1}^T dPhi_i/dtheta``, computed one micro-batch at a time.

        Parameters
        ----------
        cotangents
            ``lambda_1 .. lambda_N``, shape ``(B, N, *event)``.
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
        """Record steps along the trajectory; see :func:`recorded_steps`."""
        return recorded_steps(self.problem, self.inputs[row, index], index, row, self.ambient)


def recorded_steps(
    problem: ChainProblem,
    x: Float[Tensor, "P *event"],
    index: Int[Tensor, " P"],
    row: Int[Tensor, " P"],
    ambient: Ambient,
) -> tuple[Float[Tensor, "P *event"], Edge | None]:
    """Evaluate steps under autograd; return their values and the tensors they depend on in addition to ``x``.

    In place of these tensors None is returned if they cannot be determined.
    """
    z = severed(x)
    with torch.enable_grad(), ambient, Boundary(z) as boundary:
        value = problem.pairs(z, index, row)
    return value, boundary.edge(value, z)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other
