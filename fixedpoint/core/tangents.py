"""Jacobian-vector products of a problem in forward mode, and the order in which the ways to compute them are tried."""

from __future__ import annotations

import enum
import functools
import warnings

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from fixedpoint.core.problem import HasExactResidual, HasProduct, Problem

__all__ = ["Way", "tangent", "tangents"]


class Way(enum.IntEnum):
    """How products are computed, from the way that is tried first to the last."""

    TRANSFORM = 0
    """By ``torch.func``. It raises for what it cannot trace: numpy, or writes into memory that the function keeps."""
    DUAL = 1
    """By dual numbers, which support functions that write into memory they keep."""
    DIFFERENCE = 2
    """By differences of values."""

    def after(self, error: Exception) -> Way:
        """Return the way to try after this one has failed with ``error``."""
        wrote = "mutate a captured Tensor" in str(error)  # torch has no dedicated exception for it
        return Way.DUAL if self is Way.TRANSFORM and wrote else Way.DIFFERENCE


def tangent(
    problem: Problem, z: Float[Tensor, "B D"], v: Float[Tensor, "B D"], way: Way, strict: bool
) -> Float[Tensor, "B D"]:
    """Return ``J v`` at ``z``, computed by the problem itself (``HasProduct``) or in forward mode.

    Parameters
    ----------
    problem
        The problem.
    z, v
        The point and the vector, shape ``(B, D)``.
    way
        ``TRANSFORM`` or ``DUAL``.
    strict
        Whether to raise if forward mode finds no dependence of the value on ``z``, as where the value was computed on
        the host. Otherwise the product is zero.

    Raises
    ------
    RuntimeError, NotImplementedError
        If forward mode fails this way.
    """
    if isinstance(problem, HasProduct):
        return problem.product(z, v)
    z, v = z.detach(), v.detach()
    if way is Way.TRANSFORM:
        _prepare_forward_mode()
        transformed: Tensor = torch.func.jvp(problem, (z,), (v,), strict=strict)[1]
        return transformed
    with forward_ad._set_fwd_grad_enabled(True), forward_ad.dual_level():
        found: Tensor | None = forward_ad.unpack_dual(problem(forward_ad.make_dual(z, v))).tangent
    if found is None and strict:
        raise NotImplementedError("f(z) does not depend on z in a way that forward mode can see")
    return torch.zeros_like(z) if found is None else found


def tangents(problem: Problem, z: Float[Tensor, "B D"], strict: bool) -> Float[Tensor, "B D D"]:
    """Return the Jacobian of ``f(z) - z`` of every row, by one call of the problem with all unit vectors at once.

    Parameters
    ----------
    problem
        The problem, whose rows are independent.
    z
        The point, shape ``(B, D)``.
    strict
        As for :func:`tangent`.

    Raises
    ------
    RuntimeError, NotImplementedError
        If an operation has no forward mode, or cannot be batched.
    """
    _prepare_forward_mode()
    z = z.detach()
    units = torch.eye(z.shape[1], dtype=z.dtype, device=z.device).unsqueeze(1).repeat(1, len(z), 1)

    exact = isinstance(problem, HasExactResidual)

    def column(v: Tensor) -> Tensor:
        function = problem.residual if isinstance(problem, HasExactResidual) else problem
        transformed: Tensor = torch.func.jvp(function, (z,), (v,), strict=strict)[1]
        return transformed if exact else transformed - v

    columns: Tensor = torch.func.vmap(column)(units)  # (D, B, D), the unknown first
    return columns.permute(1, 2, 0).contiguous()


@functools.cache
def _prepare_forward_mode() -> None:
    """Make torch load its forward mode, whose first use issues a deprecation warning of torch's own code."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):  # versions of torch differ
            warnings.simplefilter("ignore", category)
        torch.func.jvp(torch.sin, (torch.zeros(1, device="cpu"),), (torch.zeros(1, device="cpu"),))
