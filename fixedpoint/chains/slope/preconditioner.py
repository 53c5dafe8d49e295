r"""Preconditioners: models of how the steps of a chain pass on a change of their input.

One round evaluates the defects ``r_i = Phi_i(x_i) - x_{i+1}`` and, with a model ``A_i`` of the slope of ``Phi_i``,
sweeps them along the chain: ``delta_{i+1} = r_i + A_i delta_i``, ``delta_0 = 0`` (see
``fixedpoint.chains.recurrence.linear``). For a chain with a memory, ``A_i`` models the slope of the prediction, and the
recurrence carries the changes on; there ``identity`` means the reference slopes that the chain names, and what is
defined by slopes of whole steps (``zero``, ``banded``, ``coefficient``) is refused.

    zero         A = 0                    Jacobi: every step from its own input
    identity     A = 1                    ParaDiGMS (Shih et al. 2023)
    banded       A = 1, k steps far       after the order k of Tang et al. 2024 (see below)
    coefficient  A = the step's own       DEQ-DDIM (Pokle, Geng & Kolter 2022, eq. 9)
    gaussian     A = dPhi_i/dx for data that is one Gaussian: exact there
    diagonal     A = diag dPhi_i/dx       quasi-DEER (Gonzalez et al. 2024)
    jacobian     A = dPhi_i/dx            DEER, Newton's method (Lim et al. 2024)

The slopes of all but the last two are known before the first round. The derivatives of the last two are recomputed at
the states of every round.

The order-k equations of Tang et al. (2024, "Accelerating parallel sampling of diffusion models", eq. 10) carry a defect
on over the next ``k - 1`` steps with the steps' own coefficients, and so lead from Jacobi to DEQ-DDIM. ``banded``
carries it on unchanged and leads from Jacobi to ParaDiGMS; it requires no ability of the chain.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fixedpoint.chains.capabilities import HasCoefficients, undeclared
from fixedpoint.chains.problem import ChainProblem, require_memoryless
from fixedpoint.chains.recurrence.linear import Band, LinearPart
from fixedpoint.core.options import Options, option
from fixedpoint.core.problem import AbilityError

__all__ = [
    "AnyPreconditioner",
    "Banded",
    "Coefficient",
    "Diagonal",
    "Gaussian",
    "Identity",
    "Jacobian",
    "Preconditioner",
    "Zero",
]


class Preconditioner(Options, ABC):
    """Base class of the options that make the linear part of a chain."""

    scalar: ClassVar[bool] = True
    """Whether the linear part has one known number as the slope of each step."""

    full_jacobian: ClassVar[bool] = False
    """Whether the derivatives it is made of are Jacobians, not diagonals."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Abilities that the chain must have (``fixedpoint.chains.capabilities.CHAIN_ABILITIES``)."""

    @abstractmethod
    def linear_part(self, problem: ChainProblem, like: Tensor) -> LinearPart | Band | None:
        """Return the linear part of a chain, or None if it is made of derivatives at every round.

        Parameters
        ----------
        problem
            The chain.
        like
            A tensor with the dtype and device of the defects.

        Raises
        ------
        AbilityError
            When the chain lacks the ability that the linear part requires.
        ValueError
            When the chain returns slopes of a wrong shape, or slopes that are not finite.
        """


@dataclass(frozen=True)
class Zero(Preconditioner):
    """Jacobi: a defect changes the state it belongs to, and no other."""

    variant = "zero"

    def linear_part(self, problem: ChainProblem, like: Tensor) -> LinearPart:
        require_memoryless(problem, "preconditioner='zero'")
        return _constant(0.0, problem, like)


@dataclass(frozen=True)
class Identity(Preconditioner):
    """Every step passes a change on unchanged (ParaDiGMS, Shih et al. 2023), or by the reference slopes of the chain.

    A chain has reference slopes where its coordinates are not those in which a change is passed on unchanged.
    """

    variant = "identity"

    def linear_part(self, problem: ChainProblem, like: Tensor) -> LinearPart:
        return problem.reference


@dataclass(frozen=True)
class Banded(Preconditioner):
    """A change is passed on unchanged over a limited number of steps (after Tang et al. 2024, their order k).

    Order 1 equals ``zero``; an order of at least ``N`` equals ``identity``.
    """

    variant = "banded"
    scalar = False

    order: int = option(ge=1, help="k: how many steps a defect is carried, its own included")

    def linear_part(self, problem: ChainProblem, like: Tensor) -> LinearPart | Band:
        require_memoryless(problem, "preconditioner='banded'")
        whole = self.order >= problem.length
        return _constant(1.0, problem, like) if whole else Band(self.order, problem.length)


@dataclass(frozen=True)
class Coefficient(Preconditioner):
    """Every step's known coefficient of its own state (Pokle, Geng & Kolter 2022, eq. 9)."""

    variant = "coefficient"
    needs = frozenset({"coefficients"})

    def linear_part(self, problem: ChainProblem, like: Tensor) -> LinearPart:
        require_memoryless(problem, "preconditioner='coefficient'")
        slopes = problem.coefficients()
        if slopes is None:
            lacks = undeclared(problem.chain, HasCoefficients, "has none")
            raise AbilityError(
                f"preconditioner='coefficient' requires a chain that knows its coefficients, and this one {lacks}; "
                "take 'identity'"
            )
        return _known("coefficients", slopes, problem, like)


@dataclass(frozen=True)
class Gaussian(Preconditioner):
    """The known slope that every step would have if the data distribution were one Gaussian.

    For such data the steps of a diffusion chain are affine, and one sweep solves them. For other data the slope is
    accurate while a state is mostly noise. The relevant variance is the one about the mean of the data.
    """

    variant = "gaussian"
    needs = frozenset({"gaussian-slopes"})

    variance: float = option(
        0.25,
        gt=0.0,
        help="variance of every unknown of the data; default: that of images scaled to [-1, 1] in Karras et al. 2022 "
        "(sigma_data = 0.5)",
    )

    def linear_part(self, problem: ChainProblem, like: Tensor) -> LinearPart:
        return _known("gaussian_slopes", problem.gaussian_slopes(self.variance), problem, like)


@dataclass(frozen=True)
class Diagonal(Preconditioner):
    """The diagonals of the Jacobians at the states of the round (quasi-DEER, Gonzalez et al. 2024)."""

    variant = "diagonal"
    needs = frozenset({"slopes"})
    scalar = False

    def linear_part(self, problem: ChainProblem, like: Tensor) -> None:
        return None


@dataclass(frozen=True)
class Jacobian(Preconditioner):
    """The Jacobians at the states of the round: Newton's method (DEER, Lim et al. 2024)."""

    variant = "jacobian"
    needs = frozenset({"jacobians"})
    scalar = False
    full_jacobian = True

    def linear_part(self, problem: ChainProblem, like: Tensor) -> None:
        return None


AnyPreconditioner = Zero | Identity | Banded | Coefficient | Gaussian | Diagonal | Jacobian
"""The preconditioners that a chain solver takes."""


def _constant(slope: float, problem: ChainProblem, like: Tensor) -> LinearPart:
    return LinearPart(torch.full((problem.length,), slope, dtype=torch.float64, device=like.device))


def _known(name: str, slopes: Tensor, problem: ChainProblem, like: Tensor) -> LinearPart:
    """Check the slopes that a chain returned and make the linear part of them."""
    if slopes.shape != (problem.length,):
        raise ValueError(f"{name} must return shape ({problem.length},), got {tuple(slopes.shape)}")
    slopes = slopes.double().to(like.device)
    # The first slope multiplies the change of x_0, which is given, so it may be anything.
    if not bool(slopes[1:].isfinite().all()):
        raise ValueError(f"the chain's {name} must be finite, got {slopes.tolist()}")
    return LinearPart(slopes, problem.recurrence)
