"""Vector fields that run files can name: functions ``v(x, t)`` with options, and the centre of their starts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.options import OptionError, Options, option

__all__ = ["Decay", "Field", "Lorenz", "LotkaVolterra", "VanDerPol"]


class Field(Options, ABC):
    """An autonomous vector field with options.

    Fields compute elementwise, so that the value for a state is the same bit for bit whatever the batch.
    """

    @property
    @abstractmethod
    def centre(self) -> Float[Tensor, " d"]:
        """The point around which trajectories start, shape ``(d,)``, float64."""

    @abstractmethod
    def __call__(self, x: Float[Tensor, "P d"], t: Float[Tensor, " P"]) -> Float[Tensor, "P d"]:
        """``dx/dt``, of the shape of ``x``."""


@dataclass(frozen=True)
class Lorenz(Field):
    """Lorenz's convection model, which is chaotic at the default values (Lorenz 1963, eqs. 25 to 27)."""

    variant = "lorenz"

    sigma: float = option(10.0, ge=0.0, help="Prandtl number")
    rho: float = option(28.0, ge=0.0, help="Rayleigh number over its critical value")
    beta: float = option(8.0 / 3.0, gt=0.0, help="shape of the convection cells")

    @property
    def centre(self) -> Float[Tensor, " d"]:
        return torch.tensor([-8.0, -8.0, 27.0], dtype=torch.float64, device="cpu")

    def __call__(self, x: Float[Tensor, "P d"], t: Float[Tensor, " P"]) -> Float[Tensor, "P d"]:
        a, b, c = x.unbind(1)
        return torch.stack([self.sigma * (b - a), a * (self.rho - c) - b, a * b - self.beta * c], dim=1)


@dataclass(frozen=True)
class VanDerPol(Field):
    """Van der Pol's oscillator, which has a limit cycle, with fast jumps if mu is large (van der Pol 1926)."""

    variant = "van-der-pol"

    mu: float = option(2.0, ge=0.0, help="strength of the damping")

    @property
    def centre(self) -> Float[Tensor, " d"]:
        return torch.tensor([2.0, 0.0], dtype=torch.float64, device="cpu")

    def __call__(self, x: Float[Tensor, "P d"], t: Float[Tensor, " P"]) -> Float[Tensor, "P d"]:
        a, b = x.unbind(1)
        return torch.stack([b, self.mu * (1 - a * a) * b - a], dim=1)


@dataclass(frozen=True)
class LotkaVolterra(Field):
    """Predators and prey, with closed orbits (Lotka 1920) from which explicit Euler slowly spirals outwards."""

    variant = "lotka-volterra"

    growth: float = option(1.5, ge=0.0, help="growth rate of the prey without predators")
    predation: float = option(1.0, ge=0.0, help="loss of prey to a predator")
    gain: float = option(1.0, ge=0.0, help="gain of a predator from its prey")
    death: float = option(3.0, ge=0.0, help="death rate of predators without prey")

    @property
    def centre(self) -> Float[Tensor, " d"]:
        return torch.tensor([2.0, 1.0], dtype=torch.float64, device="cpu")

    def __call__(self, x: Float[Tensor, "P d"], t: Float[Tensor, " P"]) -> Float[Tensor, "P d"]:
        prey, predators = x.unbind(1)
        met = prey * predators
        return torch.stack([self.growth * prey - self.predation * met, self.gain * met - self.death * predators], dim=1)


@dataclass(frozen=True)
class Decay(Field):
    """``dx/dt = -lambda x`` with rates over several orders of magnitude.

    The states of the Euler method are ``(1 - h lambda)^i x_0``; they grow if ``h lambda > 2``.
    """

    variant = "decay"

    size: int = option(8, ge=1, help="number of unknowns")
    slowest: float = option(0.1, gt=0.0, help="smallest rate")
    fastest: float = option(50.0, gt=0.0, help="largest rate; others lie between, evenly in the logarithm")

    def check(self) -> None:
        if self.fastest < self.slowest:
            raise OptionError(
                type(self).__name__, "fastest", f"must be at least slowest = {self.slowest}, got {self.fastest}"
            )

    @property
    def rates(self) -> Float[Tensor, " d"]:
        """``lambda``, shape ``(d,)``, float64."""
        ends = torch.tensor([self.slowest, self.fastest], dtype=torch.float64, device="cpu").log10()
        return torch.logspace(float(ends[0]), float(ends[1]), self.size, dtype=torch.float64, device="cpu")

    @property
    def centre(self) -> Float[Tensor, " d"]:
        return torch.ones(self.size, dtype=torch.float64, device="cpu")

    def __call__(self, x: Float[Tensor, "P d"], t: Float[Tensor, " P"]) -> Float[Tensor, "P d"]:
        return -self.rates.to(x) * x
