"""Records one evaluation of a map with autograd, and computes products with its Jacobian from the recorded graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from fixedpoint.core.compiling import uncompiled

__all__ = ["Map", "forward_products", "products", "recorded", "severed", "tangent_of", "watched", "without_tangents"]

Map = Callable[[Tensor], Tensor]
"""A function of states of shape ``(B, D)`` that returns states of the same shape."""


def recorded(f: Map, value: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
    """Return ``z``, equal to ``value``, and ``f(z)`` as recorded by autograd.

    ``f(z)`` depends on the tensors that ``f`` is closed over, and on ``z``. A cotangent that reaches ``z`` ends there
    and accumulates no gradient. If ``f(z)`` depends on nothing but ``z``, it is returned detached.
    """
    with torch.enable_grad(), uncompiled():
        z = severed(value)
        fz = f(z)
    return z, fz if _depends_on_more(fz, z) else fz.detach()


def watched(problem: Map, value: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
    """Return ``z``, equal to ``value``, and the recorded ``f(z)``, for callers that need only the Jacobian in ``z``.

    Raises
    ------
    ValueError
        If autograd does not see that ``f(z)`` depends on ``z``.
    """
    with torch.enable_grad(), uncompiled():
        z = severed(value)
        fz = problem(z)
    if not fz.requires_grad:
        raise ValueError("f(z) does not depend on z, or not in a way that autograd can see")
    return z, fz


def severed(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """A copy of ``z`` that requires a gradient, so that autograd records, but passes no cotangent on."""
    with torch.enable_grad():
        cut: Tensor = _Severed.apply(z.detach().requires_grad_())  # type: ignore[no-untyped-call]  # as torch leaves it
    return cut


def products(
    fz: Float[Tensor, "*shape"], z: Float[Tensor, "*shape"], v: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """The vector-Jacobian product ``J^T v`` of a recorded evaluation; zero if ``fz`` does not depend on ``z``."""
    # The graph is retained, since a solve makes many products of it.
    (product,) = torch.autograd.grad(fz, z, v, retain_graph=True, allow_unused=True, materialize_grads=True)
    return product


def forward_products(fz: Float[Tensor, "B D"], z: Float[Tensor, "B D"]) -> Map:
    """Return a function ``v -> J v``: ``J^T v`` is linear in ``v``, and a product with its transpose gives ``J v``."""
    with torch.enable_grad():
        v = torch.zeros_like(fz, requires_grad=True)
        (transposed,) = torch.autograd.grad(fz, z, v, create_graph=True, allow_unused=True, materialize_grads=True)

    def product(w: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        if not transposed.requires_grad:
            return torch.zeros_like(w)
        return products(transposed, v, w)

    return product


def tangent_of(tensor: Tensor) -> Tensor | None:
    """The tangent of a tensor in forward-mode differentiation; None if it has none."""
    tangent: Tensor | None = forward_ad.unpack_dual(tensor).tangent if forward_ad._current_level >= 0 else None
    return tangent


def without_tangents() -> Any:
    """A context in which forward-mode differentiation is off: results are constants with respect to it."""
    return forward_ad._set_fwd_grad_enabled(False)


def _depends_on_more(fz: Tensor, z: Tensor) -> bool:
    """Whether ``fz`` depends on a leaf other than the one behind ``z``."""
    # The walk stops at the node of z. The other ends of the graph are the accumulators of leaves, known by `variable`.
    seen: set[Any] = {None, z.grad_fn}
    nodes: list[Any] = [fz.grad_fn]
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        if hasattr(node, "variable"):
            return True
        seen.add(node)
        nodes.extend(earlier for earlier, _ in node.next_functions)
    return False


class _Severed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> None:
        return None
