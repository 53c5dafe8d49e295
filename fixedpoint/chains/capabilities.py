"""Optional abilities of chains: derivatives of their steps, and functions that compute these by autograd."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "CHAIN_ABILITIES",
    "HasCoefficients",
    "HasGaussianSlopes",
    "HasJacobians",
    "HasNoInverse",
    "HasReferenceSlopes",
    "HasRepresentativeSteps",
    "HasSampleFactors",
    "HasSlopes",
    "step_jacobians",
    "step_slopes",
    "undeclared",
]


CHAIN_ABILITIES = frozenset({"coarse", "coefficients", "extension", "gaussian-slopes", "jacobians", "jumps", "slopes"})
"""The optional abilities of chains, as ``needs`` and ``provides`` name them. A chain declares each one by inheriting
from its class, for example ``HasCoarse`` for ``"coarse"``."""


class HasCoefficients(ABC):
    """A chain whose steps have the form ``Phi_i(x) = A_i x + ...`` with known scalar coefficients ``A_i``."""

    @abstractmethod
    def coefficients(self) -> Float[Tensor, " N"] | None:
        """Return ``A_0 .. A_{N-1}``, shape ``(N,)``, float64.

        ``A_0`` is never used, since ``x_0`` is given, and may be infinite. A chain that wraps another one returns None
        if the wrapped chain provides no coefficients.
        """


class HasGaussianSlopes(ABC):
    """A chain whose steps are affine, with known scalar slopes, when the data distribution is one Gaussian."""

    @abstractmethod
    def gaussian_slopes(self, variance: float) -> Float[Tensor, " N"]:
        """Return ``dPhi_i / dx`` for Gaussian data, shape ``(N,)``, float64; the first entry is never used.

        Parameters
        ----------
        variance
            Variance of every unknown of the data about its mean, in squared units of the states; positive.
        """


class HasReferenceSlopes(ABC):
    """A chain in whose coordinates a change is not carried on unchanged when nothing else is known of its steps."""

    @abstractmethod
    def reference_slopes(self) -> Float[Tensor, " N"]:
        """Return one number per step that stands for its slope, shape ``(N,)``, float64; the first is never used.

        The error of a trajectory is measured with them, and the preconditioner ``identity`` uses them. Without this
        ability they are 1.
        """


class HasRepresentativeSteps(ABC):
    """A chain some of whose steps depend on tensors that its first step does not depend on.

    A gradient needs to know beforehand which tensors it goes to. Without this ability they are those that the first
    step depends on, and a backward pass raises an error if another step depends on more.
    """

    @abstractmethod
    def representative_steps(self) -> Sequence[int]:
        """Return numbers of steps that together depend on every tensor that any step depends on, its state apart."""


class HasSampleFactors(ABC):
    """A chain whose states are those of a sampler, each divided by a number.

    ``solution.samples`` are then the sampler's own states.
    """

    @abstractmethod
    def sample_factors(self) -> Float[Tensor, " N"] | None:
        """Return the numbers, shape ``(N,)``, float64, on the CPU; None if they are not known."""


class HasNoInverse(ABC):
    """A chain that may have steps without an inverse."""

    @abstractmethod
    def no_inverse(self) -> str | None:
        """Return why the chain has no inverse and what to do about it, or None if it has one.

        The text completes the error message ``this chain has no inverse: ...``.
        """


class HasSlopes(ABC):
    """A chain that provides the diagonals of its steps' Jacobians at any state."""

    @abstractmethod
    def slopes(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """Return the diagonal of ``dPhi_i / dx`` for every pair, with the shape and dtype of ``x``.

        The arguments are those of ``Chain.step``.
        """


class HasJacobians(ABC):
    """A chain that provides the Jacobians of its steps at any state."""

    @abstractmethod
    def jacobians(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P d d"]:
        """Return ``dPhi_i / dx`` for every pair, shape ``(P, d, d)``, where ``d`` is the number of entries of a state.

        The arguments are those of ``Chain.step``; states are flattened.
        """


def undeclared(chain: object, ability: type[ABC], otherwise: str) -> str:
    """Return the part of an error message that says why a chain lacks an ability.

    If the chain's class has all methods of the ability without inheriting from it, the text says so; else it is
    ``otherwise``. Call this only after the ability was found missing: methods of the same names may be unrelated.
    """
    missing = [name for name in ability.__abstractmethods__ if not hasattr(type(chain), name)]
    return otherwise if missing else f"does not declare its own (its class must inherit from {ability.__name__})"


def step_jacobians(
    step: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Float[Tensor, "P *event"],
    index: Int[Tensor, " P"],
    row: Int[Tensor, " P"],
) -> Float[Tensor, "P d d"]:
    """Compute the Jacobians of a step by autograd; use it to write ``jacobians`` for a chain without a formula.

    The cost is one evaluation of the step and ``d`` backward passes of it, batched over pairs and unknowns. The result
    has ``P d^2`` entries, so this suits states of few unknowns. Pairs must be independent of one another, as
    ``Chain.step`` requires.

    Parameters
    ----------
    step
        ``step(x, index, row)``, like ``Chain.step``. It must consist of operations that ``torch.func`` can transform.
    x, index, row
        The pairs at which to differentiate, as for ``Chain.step``.

    Returns
    -------
    Float[Tensor, "P d d"]
        ``dPhi_i / dx``, with the dtype of ``x``.
    """
    value: Tensor
    value, pullback = torch.func.vjp(lambda state: step(state, index, row), x)  # type: ignore[misc]  # vjp is typed for has_aux=True as well, with three results
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
    """Return the diagonals of :func:`step_jacobians` at the same cost; a formula of your own is ``d`` times cheaper."""
    return step_jacobians(step, x, index, row).diagonal(dim1=1, dim2=2).reshape(x.shape)
