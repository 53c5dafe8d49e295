"""Deep equilibrium models: layers whose output is a fixed point, and what training them wants."""

from fixedpoint.layers.equilibrium import Equilibrium, EquilibriumLayer, EquilibriumWarning
from fixedpoint.layers.normalization import Bounded, spectral_normalized, weight_normalized
from fixedpoint.layers.penalty import jacobian_penalty
from fixedpoint.layers.spectral import SpectralRadius, spectral_radius
from fixedpoint.layers.statistics import Statistics
from fixedpoint.layers.warm import WarmStart

__all__ = [
    "Bounded",
    "Equilibrium",
    "EquilibriumLayer",
    "EquilibriumWarning",
    "SpectralRadius",
    "Statistics",
    "WarmStart",
    "jacobian_penalty",
    "spectral_normalized",
    "spectral_radius",
    "weight_normalized",
]
