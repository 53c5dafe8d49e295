r"""Chandrasekhar's H-equation of radiative transfer.

    H(mu) = 1 / (1 - (c / 2) int_0^1 mu / (mu + nu) H(nu) dnu),     0 <= c <= 1

(Chandrasekhar 1960, "Radiative transfer", chapter V), discretised by the composite midpoint rule on
``mu_i = (i - 1/2) / n`` (Kelley 1995, "Iterative methods for linear and nonlinear equations", section 5.6, eqs. 5.21
and 5.22; Toth & Kelley 2015, "Convergence analysis for Anderson acceleration"). As ``c`` approaches 1, the Jacobian
``I - f'`` at the solution becomes singular, and plain iteration converges sublinearly.

On this grid the mean of the solution is known exactly. With ``s = mean(H)``, the symmetric part of the kernel,
``mu/(mu+nu) + nu/(mu+nu) = 1``, gives ``s = 1 + c s^2 / 4``, so ``s = 2 (1 - sqrt(1 - c)) / c``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.options import option
from fixedpoint_classic.newton import newton
from fixedpoint_classic.problem import ClassicProblem, ClassicTask, apply

__all__ = ["HEquation", "HEquationProblem"]


@dataclass(eq=False)
class HEquationProblem(ClassicProblem):
    """The H-equation for several ``c`` at once.

    Attributes
    ----------
    c
        The albedo of every row, shape ``(B, 1)``, in ``[0, 1]``.
    kernel
        ``mu_i / (mu_i + mu_j)``, shape ``(D, D)``.
    """

    c: Float[Tensor, "B 1"]
    kernel: Float[Tensor, "D D"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.start.shape[1]
        mu = (torch.arange(size, dtype=self.start.dtype, device=self.start.device) + 0.5) / size
        self.kernel = mu.unsqueeze(1) / (mu.unsqueeze(1) + mu)

    @property
    def mean(self) -> Float[Tensor, " B"]:
        """The exact mean of the solution on this grid, shape ``(B,)``, float64 (``1`` at ``c = 0``)."""
        c = self.c.squeeze(1).double()
        return 2 / (1 + (1 - c).sqrt())  # equals 2 (1 - sqrt(1 - c)) / c, without cancellation

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return 1 / (1 - self.c / 2 * (apply(self.kernel, z) / z.shape[1]))

    def jacobian(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D D"]:
        return (self(z).square() * self.c / (2 * z.shape[1])).unsqueeze(2) * self.kernel

    def reference(self) -> Float[Tensor, "B D"]:
        return newton(self, self.initial())

    def checks(self, z: Float[Tensor, "B D"]) -> dict[str, Float[Tensor, " B"]]:
        return {"mean_defect": (z.double().mean(1) - self.mean).abs() / self.mean}


@dataclass(frozen=True)
class HEquation(ClassicTask):
    """Chandrasekhar's H-equation on the midpoint grid, from the start 1; the seed changes nothing."""

    size: int = option(512, ge=1, help="n: points of the grid")
    c: tuple[float, ...] = option((0.99,), help="albedo of every row, from 0 to 1; hard towards 1")

    def check(self) -> None:
        if not self.c or not all(0 <= value <= 1 for value in self.c):
            raise self.refuse("c", f"must be one or more numbers from 0 to 1, got {self.c}")

    def build(self, seed: int) -> HEquationProblem:
        c = torch.tensor(self.c, dtype=torch.float64, device="cpu").unsqueeze(1)
        return HEquationProblem(torch.ones(len(self.c), self.size, dtype=torch.float64, device="cpu"), c)
