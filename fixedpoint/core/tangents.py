"""Products of the Jacobian of a problem with a vector, in forward mode: which way there is, and which is next."""

from __future__ import annotations

import enum
import functools
import warnings

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from fixedpoint.core.problem import HasProduct, Problem

__all__ = ["Way", "tangent"]


class Way(enum.IntEnum):
    """How products are made, from the first way that is tried to the last."""

    TRANSFORM = 0
    """By ``torch.func``, which refuses what it cannot see through: numpy, memory that the function writes into."""
    DUAL = 1
    """By dual numbers, which go through memory that a function keeps and fills anew."""
    DIFFERENCE = 2
    """By differences of values."""

    def after(self, error: Exception) -> Way:
        """The way to try after this one has failed."""
        wrote = "mutate a captured Tensor" in str(error)  # torch has no exception of its own for that
        return Way.DUAL if self is Way.TRANSFORM and wrote else Way.DIFFERENCE


def tangent(
    problem: Problem, z: Float[Tensor, "B D"], v: Float[Tensor, "B D"], way: Way, strict: bool
) -> Float[Tensor, "B D"]:
    """``J v`` at ``z``, as the problem makes it or in forward mode.

    Parameters
    ----------
    strict
        Refuse a value that does not depend on ``z`` in a way that forward mode sees, as one that was worked out on the
        host; else its product is zero.

    Raises
    ------
    RuntimeError, NotImplementedError
        Where there is no forward mode that way.
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


@functools.cache
def _prepare_forward_mode() -> None:
    """Have torch load what forward mode needs: at its first use it warns of a deprecation within itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.zeros(1),))
