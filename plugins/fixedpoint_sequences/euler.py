r"""An explicit Euler solve as a chain.

    x_{i+1} = x_i + h_i v(x_i, t_i),    h_i = t_{i+1} - t_i

for ``dx/dt = v(x, t)`` (Euler 1768; Hairer, Norsett & Wanner 1993, "Solving ordinary differential equations I", section
I.7). The fixed point is the result of the Euler method, including its discretisation error: it is computed in parallel
in time, and it is not more accurate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.capabilities import HasJacobians, HasSlopes, step_jacobians, step_slopes
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.coarse import HasExtension
from fixedpoint.chains.problem import ChainProblem

__all__ = ["EulerChain", "VectorField", "euler_problem"]

VectorField = Callable[[Tensor, Tensor], Tensor]


class EulerChain(Chain, HasSlopes, HasJacobians, HasExtension):
    """A chain of explicit Euler steps.

    Its ``slopes`` and ``jacobians`` are computed by autograd, with one backward pass of the field for each of the ``d``
    unknowns.

    Parameters
    ----------
    field
        A function ``v(x, t)`` of states of shape ``(P, *event)`` and times of shape ``(P,)`` that returns ``dx/dt``,
        shape ``(P, *event)``. The value for a pair must not depend on the other pairs.
    times
        The grid ``t_0 .. t_N``, shape ``(N + 1,)``, increasing or decreasing, not necessarily uniform; stored in
        float64.

    Raises
    ------
    TypeError
        If ``field`` is not callable.
    ValueError
        If ``times`` is not finite or has another shape.
    """

    def __init__(self, field: VectorField, times: Float[Tensor, " N+1"]) -> None:
        if not callable(field):
            raise TypeError(f"field must be a function field(x, t), got {type(field).__name__}")
        if times.ndim != 1 or len(times) < 2 or not bool(times.isfinite().all()):
            raise ValueError(f"times must be finite, of shape (N + 1,) with N at least 1, got {times}")
        self.field = field
        self.times = times.double()
        self.length = len(times) - 1

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """One Euler step of every pair of state and step."""
        # Lengths are differenced in float64 and rounded once to the dtype of the states.
        lengths = self.times.diff().to(x)[index].view(-1, *[1] * (x.ndim - 1))
        velocity = self.field(x, self.times.to(x)[index])
        if velocity.shape != x.shape:
            raise ValueError(f"a field must return shape {tuple(x.shape)}, got {tuple(velocity.shape)}")
        return x + lengths * velocity

    def extend(
        self,
        x: Float[Tensor, "P *event"],
        value: Float[Tensor, "P *event"],
        index: Int[Tensor, " P"],
        target: Int[Tensor, " P"],
        row: Int[Tensor, " P"],
    ) -> Float[Tensor, "P *event"]:
        """State ``target`` by one long Euler step from state ``index``, with the velocity of the step to ``value``.

        A step of length zero does not determine a velocity; the result is then ``value``.

        Parameters
        ----------
        x, value
            The states and the results of their steps, shape ``(P, *event)``, of the same dtype.
        index
            Number of the step of each pair, 0 to ``N - 1``.
        target
            Number of the state to jump to, ``index + 1`` to ``N``; not checked.
        row
            Ignored.

        Raises
        ------
        ValueError
            If ``value`` has another shape or dtype than ``x``.
        """
        if value.shape != x.shape or value.dtype != x.dtype:
            raise ValueError(
                f"value must have shape {tuple(x.shape)}, {x.dtype} like x, got {tuple(value.shape)}, {value.dtype}"
            )
        times = self.times.to(x.device)
        length, reach = times.diff()[index], times[target] - times[index]
        share = torch.where(length == 0, 1.0, reach / torch.where(length == 0, 1.0, length))
        return x + share.to(x).view(-1, *[1] * (x.ndim - 1)) * (value - x)

    def slopes(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """``1 + h_i diag(dv/dx)``."""
        return step_slopes(self.step, x, index, row)

    def jacobians(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P d d"]:
        """``I + h_i dv/dx``."""
        return step_jacobians(self.step, x, index, row)


def euler_problem(
    field: VectorField,
    times: Float[Tensor, " N+1"],
    x0: Float[Tensor, "B *event"],
    *,
    max_batch: int | None = None,
) -> ChainProblem:
    """The problem whose solution is the trajectory of an explicit Euler solve.

    Parameters
    ----------
    field, times
        As for :class:`EulerChain`.
    x0
        The states at ``t_0``, shape ``(B, *event)``, of a floating-point dtype.
    max_batch
        Largest number of states in one call of the field. Default: no limit.

    Returns
    -------
    ChainProblem
        For ``fixedpoint.solve``; ``solution.z`` holds the states at ``t_1 .. t_N``, shape ``(B, N, *event)``.

    Raises
    ------
    TypeError, ValueError
        As for :class:`EulerChain`, and for an ``x0`` that is not of a floating-point dtype.
    """
    return ChainProblem(EulerChain(field, times), x0, max_batch=max_batch)
