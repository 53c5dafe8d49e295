r"""Preconditioners: guesses of how the steps of a chain pass a change of their state on.

One round evaluates the defects ``r_i = Phi_i(x_i) - x_{i+1}`` and, with a guess ``A_i`` of the slope of ``Phi_i``,
sweeps them along the chain: ``delta_{i+1} = r_i + A_i delta_i``, ``delta_0 = 0`` (see
``fixedpoint.chains.slope.linear``).

    zero         A = 0                    Jacobi: every step from its own input
    identity     A = 1                    ParaDiGMS (Shih et al. 2023)
    banded       A = 1, k steps far       after the order k of Tang et al. 2024 (see below)
    coefficient  A = the step's own       DEQ-DDIM (Pokle, Geng & Kolter 2022, eq. 9)
    gaussian     A = dPhi_i/dx for data that is one Gaussian: exact there
    diagonal     A = diag dPhi_i/dx       quasi-DEER (Gonzalez et al. 2024)
    jacobian     A = dPhi_i/dx            DEER, Newton's method (Lim et al. 2024)

All but the last two are known before the first round; derivatives are taken anew at the states of every round.

The order-k equations of Tang et al. (2024, "Accelerating parallel sampling of diffusion models", eq. 10) carry a defect
on over the next ``k - 1`` steps by the steps' own coefficients, and so lead from Jacobi to DEQ-DDIM. ``banded`` carries
it unchanged and leads from Jacobi to ParaDiGMS: it asks the chain for nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fixedpoint.chains.capabilities import HasCoefficients, undeclared
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.slope.linear import Band, LinearPart
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
    """Options that make the linear part of a chain."""

    scalar: ClassVar[bool] = True
    """Whether its linear part is one known slope a step."""

    full_jacobian: ClassVar[bool] = False
    """Whether it requires whole Jacobians, where it is made of derivatives."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What it needs of the chain (``fixedpoint.chains.capabilities.CHAIN_ABILITIES``)."""

    @abstractmethod
    def linear_part(self, problem: ChainProblem, like: Tensor) -> LinearPart | Band | None:
        """The linear part of a chain; None where it is made of the derivatives of every round.

        Parameters
        ----------
        problem
            The chain.
        like
            A tensor of the dtype and on the device of the defects to come.

        Raises
        ------
        AbilityError
            When the chain does not know what the linear part is made of.
        ValueError
            When what it knows is of another shape, or not finite.
        """


@dataclass(frozen=True)
class Zero(Preconditioner):
    """Jacobi: a defect changes the state it belongs to, and no other."""

    variant = "zero"

    def linear_part(self, problem: ChainProblem, like: Tensor) -> LinearPart:
        return _constant(0.0, problem, like)


@dataclass(frozen=True)
class Identity(Preconditioner):
    """Every step passes a change on as it is (ParaDiGMS, Shih et al. 2023)."""

    variant = "identity"

    def linear_part(self, problem: ChainProblem, like: Tensor) -> LinearPart:
        return _constant(1.0, problem, like)


@dataclass(frozen=True)
class Banded(Preconditioner):
    """Every step passes a change on as it is, but only so far (after Tang et al. 2024, their order k).

    Order 1 is ``zero``, an order of at least ``N`` is ``identity``.
    """

    variant = "banded"
    scalar = False

    order: int = option(ge=1, help="k: how many steps a defect is carried, its own included")

    def linear_part(self, problem: ChainProblem, like: Tensor) -> LinearPart | Band:
        whole = self.order >= problem.length
        return _constant(1.0, problem, like) if whole else Band(self.order, problem.length)


@dataclass(frozen=True)
class Coefficient(Preconditioner):
    """The coefficient of its own state in every step, where the chain knows it (Pokle, Geng & Kolter 2022, eq. 9)."""

    variant = "coefficient"
    needs = frozenset({"coefficients"})

    def linear_part(self, problem: ChainProblem, like: Tensor) -> LinearPart:
        slopes = problem.coefficients()
        if slopes is None:
            lacks = undeclared(problem.chain, HasCoefficients, "has none")
            raise AbilityError(
                f"preconditioner='coefficient' requires a chain that knows its coefficients, and this one {lacks}; "
                "take 'identity' or 'zero'"
            )
        return _known("coefficients", slopes, problem, like)


@dataclass(frozen=True)
class Gaussian(Preconditioner):
    """The slope that every step has for data that is one Gaussian, where the chain knows it.

    For such data the steps of a diffusion chain are affine and one sweep solves them; for other data the slope is right
    while a state is mostly noise. What counts is the variance about the data's own mean.
    """

    variant = "gaussian"
    needs = frozenset({"gaussian-slopes"})

    variance: float = option(
        0.25,
        gt=0.0,
        help="of one unknown of the data; default: of images scaled to [-1, 1], as Karras et al. 2022 have it "
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
    """The slopes that a chain knows, if they are numbers to go by."""
    if slopes.shape != (problem.length,):
        raise ValueError(f"{name} must return shape ({problem.length},), got {tuple(slopes.shape)}")
    slopes = slopes.double().to(like.device)
    if not bool(slopes[1:].isfinite().all()):
        raise ValueError(f"the chain's {name} must be finite, got {slopes.tolist()}")
    return LinearPart(slopes)
