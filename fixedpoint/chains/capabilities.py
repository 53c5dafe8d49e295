"""What a chain may know of the derivatives of its steps, and how to have them of any step that autograd can pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "CHAIN_ABILITIES",
    "HasCoefficients",
    "HasGaussianSlopes",
    "HasJacobians",
    "HasNoInverse",
    "HasSlopes",
    "step_jacobians",
    "step_slopes",
    "undeclared",
]


CHAIN_ABILITIES = frozenset({"coarse", "coefficients", "extension", "gaussian-slopes", "jacobians", "jumps", "slopes"})
"""Names in ``needs`` and ``provides`` of what a chain may know beyond its steps: each an ability that it declares,
``HasCoarse`` and so on."""


class HasCoefficients(ABC):
    """A chain each of whose steps has a known scalar slope in its own state: ``Phi_i(x) = A_i x + ...``."""

    @abstractmethod
    def coefficients(self) -> Float[Tensor, " N"] | None:
        """``A_0 .. A_{N-1}``, float64. ``A_0`` is never used (``x_0`` is given) and may be infinite.

        None where a chain that is made of another knows them only if that one does.
        """


class HasGaussianSlopes(ABC):
    """A chain that is affine, with known scalar slopes, where the data it was made for is one Gaussian."""

    @abstractmethod
    def gaussian_slopes(self, variance: float) -> Float[Tensor, " N"]:
        """``dPhi_i / dx`` for data of this variance in every unknown, float64; the first is never used.

        Parameters
        ----------
        variance
            Of the data about its mean, in the units of the states; positive.
        """


class HasNoInverse(ABC):
    """A chain whose steps may be ones that cannot be undone."""

    @abstractmethod
    def no_inverse(self) -> str | None:
        """Why there is no inverse, as the end of a sentence that says what to do; None where there is one."""


class HasSlopes(ABC):
    """A chain that knows how each unknown of a state moves its own successor, at any state."""

    @abstractmethod
    def slopes(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """The diagonal of ``dPhi_i / dx`` of every pair (arguments as of ``Chain.step``)."""


class HasJacobians(ABC):
    """A chain that knows the Jacobians of its steps, at any state."""

    @abstractmethod
    def jacobians(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P d d"]:
        """``dPhi_i / dx`` of every pair (arguments as of ``Chain.step``); ``d`` unknowns a state, flattened."""


def undeclared(chain: object, ability: type[ABC], otherwise: str) -> str:
    """The part of a sentence that says why a chain has not an ability: it has methods of these names, or ``otherwise``.

    Asked only after the ability was missed: what has the methods may well mean something else by them.
    """
    missing = [name for name in ability.__abstractmethods__ if not hasattr(type(chain), name)]
    return otherwise if missing else f"does not declare its own (its class must inherit from {ability.__name__})"


def step_jacobians(
    step: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Float[Tensor, "P *event"],
    index: Int[Tensor, " P"],
    row: Int[Tensor, " P"],
) -> Float[Tensor, "P d d"]:
    """The Jacobians of a step by autograd: the body of ``jacobians`` for a chain without a formula.

    Costs a step and ``d`` backward passes of it, batched over pairs and unknowns, and ``P d^2`` numbers: for states of
    few unknowns. Pairs must be independent of one another, as ``Chain.step`` has it.

    Parameters
    ----------
    step
        ``step(x, index, row)``, like ``Chain.step``; made of operations that torch.func can transform.
    x, index, row
        Where: as of ``Chain.step``.
    """
    value: Tensor
    value, pullback = torch.func.vjp(lambda state: step(state, index, row), x)  # type: ignore[misc]
    size = x[0].numel()
    units = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:])
    (rows,) = torch.func.vmap(pullback)(units.expand(size, *value.shape))
    jacobians: Tensor = rows.flatten(2).transpose(0, 1)
    return jacobians


def step_slopes(
    step: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Float[Tensor, "P *event"],
    index: Int[Tensor, " P"],
    row: Int[Tensor, " P"],
) -> Float[Tensor, "P *event"]:
    """The diagonals of :func:`step_jacobians`, at its cost; a formula of the chain's own is ``d`` times cheaper."""
    return step_jacobians(step, x, index, row).diagonal(dim1=1, dim2=2).reshape(x.shape)
