"""Deep equilibrium models: layers whose output is a fixed point, and what training them requires."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fixedpoint._lazy import exported

if TYPE_CHECKING:
    from fixedpoint.layers.equilibrium import Equilibrium as Equilibrium
    from fixedpoint.layers.equilibrium import EquilibriumLayer as EquilibriumLayer
    from fixedpoint.layers.equilibrium import EquilibriumWarning as EquilibriumWarning
    from fixedpoint.layers.normalization import Bounded as Bounded
    from fixedpoint.layers.normalization import spectral_normalized as spectral_normalized
    from fixedpoint.layers.normalization import weight_normalized as weight_normalized
    from fixedpoint.layers.penalty import jacobian_penalty as jacobian_penalty
    from fixedpoint.layers.spectral import SpectralRadius as SpectralRadius
    from fixedpoint.layers.spectral import spectral_radius as spectral_radius
    from fixedpoint.layers.statistics import Statistics as Statistics
    from fixedpoint.layers.warm import WarmStart as WarmStart

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "fixedpoint.layers.equilibrium": (
            "Equilibrium",
            "EquilibriumLayer",
            "EquilibriumWarning",
        ),
        "fixedpoint.layers.normalization": (
            "Bounded",
            "spectral_normalized",
            "weight_normalized",
        ),
        "fixedpoint.layers.penalty": ("jacobian_penalty",),
        "fixedpoint.layers.spectral": (
            "SpectralRadius",
            "spectral_radius",
        ),
        "fixedpoint.layers.statistics": ("Statistics",),
        "fixedpoint.layers.warm": ("WarmStart",),
    },
)
