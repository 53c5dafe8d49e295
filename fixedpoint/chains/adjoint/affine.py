r"""The adjoint of a chain with a memory, which is itself such a chain that runs backwards along a trajectory.

With the dense tables of the recurrence, ``u_j = L_j u_0 + sum_{i<j} B_ji p_i + ...``, and ``g_j`` the direct derivative
of the loss with respect to ``u_j``,

    gamma_K = g_K,    gamma_k = g_k + J_k^T mu_k,    J_k = dP_k/du
    mu_j = sum_{k>j} B_kj gamma_k,    dL/du_0 = sum_k L_k gamma_k

``gamma_k`` is what reaches input ``k`` from the loss and by its own prediction, ``mu_j`` is the cotangent of prediction
``j``. These are ``K`` predictions ``gamma_{K-1} .. gamma_0`` at the inputs ``mu_{K-1} .. mu_0``, joined by the tables
transposed and in reverse order: an affine chain, whose result is ``dL/du_0``. Its history is found anew, since the
transposed tables need not close with as many pairs.

The constants ``c_j`` of the recurrence have the cotangents of the states that they are added to, all later states
included: ``lambda_k = gamma_k + sum_i a_{k+i,i} lambda_{k+i+1}`` is that of ``c_{k-1}``.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.adjoint.recording import Gradients, recorded_constants, recorded_steps, times_rows
from fixedpoint.chains.capabilities import HasGaussianSlopes
from fixedpoint.chains.chain import AffineChain
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.recurrence.affine import Affine
from fixedpoint.chains.recurrence.local import shortest
from fixedpoint.gradients.ambient import Ambient
from fixedpoint.gradients.boundary import Edge
from fixedpoint.gradients.recorded import products, severed

__all__ = ["AffineAdjointChain"]

# The least share that the last prediction has in the result, relative to the largest of any prediction and the start.
_LEAST = 1e-6


class AffineAdjointChain(AffineChain, HasGaussianSlopes):
    """The chain from the cotangent of the last prediction to that of the start: state ``j`` is ``mu_{K-1-j}``.

    Parameters
    ----------
    problem
        The chain that was solved. Its rows and ``max_batch`` are used here, too.
    states
        ``u_1 .. u_K``, shape ``(B, K, *event)``.
    last
        ``g_K``, shape ``(B, *event)``.
    earlier
        ``g_1 .. g_{K-1}``, shape ``(B, K-1, *event)``; None if the loss depends on the last state only.
    """

    def __init__(
        self,
        problem: ChainProblem,
        states: Float[Tensor, "B K *event"],
        last: Float[Tensor, "B *event"],
        earlier: Float[Tensor, "B m *event"] | None = None,
    ) -> None:
        recurrence = problem.recurrence
        assert isinstance(recurrence, Affine)
        # Coefficients of the transposed recurrence may cancel, which half precision has no digits for.
        self.problem, self.last = problem, widened(last)
        self.earlier = None if earlier is None else widened(earlier)
        starts, weights, self._skipped = transposed(*recurrence.tables())
        self.length = problem.length + self._skipped
        self.inputs = torch.cat([problem.x0.detach().unsqueeze(1), states[:, :-1]], dim=1)
        self.ambient = Ambient.of(states)
        self.recurrence = shortest(starts, weights)
        self._first = float(starts[0])

    @property
    def start(self) -> Float[Tensor, "B *event"]:
        """``mu_{K-1}``, the input of the first prediction of this chain."""
        return self._first * self.last

    def reference_slopes(self) -> Float[Tensor, " k"]:
        """Return those of the predictions in reverse order."""
        return self._reversed(self.problem.reference.slopes)

    def gaussian_slopes(self, variance: float) -> Float[Tensor, " k"]:
        """Return the slopes of the predictions for Gaussian data, in reverse order.

        Raises
        ------
        AbilityError
            When the chain does not provide them.
        """
        return self._reversed(self.problem.gaussian_slopes(variance))

    def predict(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """Return ``gamma_k = g_k + (dP_k/du)^T x`` with ``k = K - 1 - index``, for every pair."""
        last = self.problem.length - 1
        at = last - (index - self._skipped)
        skipped = (at > last).view(-1, *[1] * (x.ndim - 1))
        at = at.clamp(max=last)
        with torch.enable_grad(), self.ambient:
            z = severed(self.inputs[row, at])
            value = self.problem.pairs(z, at, row)
        pulled = products(value, z, x.to(z.dtype)).to(x.dtype)
        pulled = torch.where(skipped, 0.0, pulled) if self._skipped else pulled
        if self.earlier is None:
            return pulled
        # g_0 is not part of ``earlier``: the cotangent of the start is added by autograd, outside of the chain.
        earlier = self.earlier[row, (at - 1).clamp(min=0)]
        return pulled + torch.where((at > 0).view(-1, *[1] * (x.ndim - 1)) & ~skipped, earlier, 0.0)

    def scaled(self, factors: Float[Tensor, " B"]) -> AffineAdjointChain:
        """Return the adjoint chain of a loss that is ``factors`` times as large, one number per row."""
        other = copy.copy(self)
        other.last = times_rows(self.last, factors)
        other.earlier = None if self.earlier is None else times_rows(self.earlier, factors)
        return other

    def of_start(self, found: Float[Tensor, "B k *event"]) -> Float[Tensor, "B *event"]:
        """Return ``dL/du_0`` of the states of this chain."""
        return found[:, -1].to(self.inputs.dtype)

    def gathered(self, found: Float[Tensor, "B k *event"], edge: Edge) -> tuple[Tensor | None, ...]:
        """Return ``sum_j mu_j^T dP_j/dtheta + sum_j lambda_{j+1}^T dc_j/dtheta``, one micro-batch at a time.

        Parameters
        ----------
        found
            The states of this chain, shape ``(B, K, *event)``.
        edge
            The tensors ``theta``, by the autograd nodes that made them.

        Returns
        -------
        tuple
            One gradient per tensor in ``edge``; None where neither predictions nor constants depend on it.

        Raises
        ------
        RuntimeError
            When a prediction depends on a tensor that is not in ``edge``.
        """
        # mu_0 .. mu_{K-1}: the first input of this chain, then its states but the last.
        cotangents = torch.cat([self.start.unsqueeze(1), found[:, :-1]], dim=1)[:, self._skipped :].flip(1)
        cotangents = cotangents.to(self.inputs.dtype)
        rows, totals = len(self.inputs), Gradients(edge)
        index = torch.arange(self.problem.length, device=cotangents.device).repeat(rows)
        row = torch.arange(rows, device=cotangents.device).repeat_interleave(self.problem.length)
        size = self.problem.max_batch or len(index)
        # gamma_0 .. gamma_K, of which the pulled parts are added below.
        zero = torch.zeros_like(self.inputs, dtype=self.last.dtype)
        earlier = zero if self.earlier is None else torch.cat([zero[:, :1], self.earlier], dim=1)
        outer = torch.cat([earlier, self.last.unsqueeze(1)], dim=1)
        for at, of in zip(index.split(size), row.split(size), strict=True):
            z, value, known = recorded_steps(self.problem, self.inputs[of, at], at, of, self.ambient)
            pulled = totals.add(value, known, cotangents[of, at], z)
            if pulled is not None:
                outer[of, at] += pulled
        constants, known = recorded_constants(self.problem, index, row, self.ambient)
        if constants is not None:
            totals.add(constants, known, self._of_constants(outer)[row, index].to(constants.dtype))
        return totals.found

    def _of_constants(self, outer: Float[Tensor, "B M *event"]) -> Float[Tensor, "B K *event"]:
        """Return ``lambda_1 .. lambda_K`` of ``gamma_0 .. gamma_K``."""
        recurrence = self.problem.recurrence
        assert isinstance(recurrence, Affine)
        table = recurrence.inputs.tolist()
        total = list(outer.unbind(1))
        count = self.problem.length
        for k in range(count - 1, 0, -1):
            for i in range(min(recurrence.history, count - k)):
                if table[k + i][i] != 0.0:
                    total[k] = total[k] + table[k + i][i] * total[k + i + 1]
        return torch.stack(total[1:], dim=1)

    def _reversed(self, slopes: Float[Tensor, " K"]) -> Float[Tensor, " k"]:
        """Return the slopes in reverse order; a prediction that is skipped has none."""
        return torch.cat([slopes.new_zeros(self._skipped), slopes.flip(0)])


def widened(states: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return states in float32 or wider."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def transposed(
    starts: Float[Tensor, " M"], weights: Float[Tensor, "M K"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, "m k"], int]:
    """Return the tables of the adjoint chain, transposed and in reverse order, and how many predictions it adds.

    Its first input ``mu_{K-1}`` is a multiple of ``gamma_K``. Where the result hardly depends on the last prediction,
    that says too little of ``gamma_K``: then the chain starts from ``gamma_K`` itself, with a prediction of zero.
    """
    joined = torch.cat([starts.unsqueeze(1), weights], dim=1)
    # Rows u_0, p_0 .. p_{K-1} and columns u_0 .. u_K, both reversed.
    joined = joined.T.flip(0, 1)
    starts, weights = joined[:, 0], joined[:, 1:]
    if abs(float(starts[0])) > _LEAST * float(starts.abs().max()):
        return starts, weights, 0
    ahead = torch.zeros(1 + len(weights), 1 + weights.shape[1], dtype=weights.dtype, device="cpu")
    ahead[1:, 1:] = weights
    return torch.cat([torch.ones_like(starts[:1]), starts]), ahead, 1
