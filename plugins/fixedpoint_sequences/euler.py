r"""An explicit Euler solve as a chain.

    x_{i+1} = x_i + h_i v(x_i, t_i),    h_i = t_{i+1} - t_i

for ``dx/dt = v(x, t)`` (Euler 1768; Hairer, Norsett & Wanner 1993, "Solving ordinary differential equations I", section
I.7). The fixed point is the Euler solve, its error of discretisation included: parallel in time, not more accurate.
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
    """The steps of the explicit Euler method.

    Knows its ``slopes`` and ``jacobians`` by autograd, at ``d`` backward passes of the field.

    Parameters
    ----------
    field
        ``v(x, t)`` of states ``(P, *event)`` and times ``(P,)`` returns ``dx/dt``, shape ``(P, *event)``, each pair on
        its own.
    times
        Shape ``(N + 1,)``: the grid ``t_0 .. t_N``, rising or falling, not necessarily even; kept in float64.

    Raises
    ------
    TypeError, ValueError
        For a field that cannot be called, and times that are not a grid.
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
        """One Euler step of every pair."""
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
        """State ``target`` as one Euler step from state ``index``: with the velocity that made ``value`` of it.

        A step of no length has none: then it is ``value``.

        Parameters
        ----------
        x, value
            States and what their steps made of them; of one shape and dtype.
        index
            Of each pair's step, 0 to ``N - 1``.
        target
            Number of the state jumped to, ``index + 1`` to ``N``; not checked.
        row
            Not used.

        Raises
        ------
        ValueError
            For a ``value`` of another shape or dtype than ``x``.
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
    """All steps of an explicit Euler solve as one fixed point.

    Parameters
    ----------
    field, times
        As for :class:`EulerChain`.
    x0
        Shape ``(B, *event)``: the states at ``t_0``.
    max_batch
        Evaluate the field at most at this many states at once.

    Returns
    -------
    ChainProblem
        For ``fixedpoint.solve``; ``solution.z``, shape ``(B, N, *event)``, are the states at ``t_1 .. t_N``.
    """
    return ChainProblem(EulerChain(field, times), x0, max_batch=max_batch)
