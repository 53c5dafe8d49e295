"""Weight and spectral normalisation of the layers of a cell, using the parametrisations of torch.

The parametrisations are ordinary modules of the cell, so ``deepcopy``, ``.double()``, averaged copies and
``state_dict`` include them. An ``EquilibriumLayer`` computes them once per solve, not at every call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

__all__ = ["Bounded", "spectral_normalized", "weight_normalized"]

M = TypeVar("M", bound=nn.Module)


class Bounded(nn.Module):
    """A parametrisation that multiplies a weight of norm one by a bound.

    Parameters
    ----------
    bound
        The factor by which the weight is multiplied, greater than 0.
    learned
        Whether the factor is learned: it is then ``bound * sigmoid(s)`` with a parameter ``s``, and begins at 0.95 of
        the bound.

    Raises
    ------
    ValueError
        If ``bound`` is not greater than 0.
    """

    def __init__(self, bound: float, *, learned: bool = False) -> None:
        super().__init__()
        if not bound > 0:
            raise ValueError(f"bound must be greater than 0, got {bound}")
        self.bound = bound
        self.logit = nn.Parameter(torch.tensor(2.9444)) if learned else None  # sigmoid(2.9444) = 0.95

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight multiplied by the factor."""
        return weight * (self.bound if self.logit is None else self.bound * torch.sigmoid(self.logit))


def weight_normalized(cell: M, *, name: str = "weight", of: Callable[[nn.Module], bool] | None = None) -> M:
    """Normalise weights to ``g v / ||v||`` for every output channel (Salimans & Kingma 2016), in place.

    Parameters
    ----------
    cell
        The module to change. By default all its linear and convolutional layers are normalised.
    name
        Name of the parameter to normalise in each layer.
    of
        Function that says of each module of the cell whether it is normalised, instead of the default.

    Returns
    -------
    Module
        The cell itself.

    Raises
    ------
    ValueError
        If no module is chosen, or the parameter of a chosen module already has a parametrisation.
    """
    for module in _chosen(cell, name, of):
        parametrizations.weight_norm(module, name)
    return cell


def spectral_normalized(
    cell: M,
    *,
    bound: float = 1.0,
    learned: bool = False,
    power_iterations: int = 1,
    name: str = "weight",
    of: Callable[[nn.Module], bool] | None = None,
) -> M:
    """Normalise weights to the spectral norm ``bound`` (Miyato, Kataoka, Koyama & Yoshida 2018), in place.

    For a convolution this is the norm of its kernel as a matrix from ``in * k * k`` to ``out``. The norm of the
    convolution itself is at most ``k`` times as large for a kernel of ``k x k``.

    Parameters
    ----------
    cell
        The module to change. By default all its linear and convolutional layers are normalised.
    bound
        The spectral norm, greater than 0. It is reached as exactly as the power iteration has converged, which
        continues in every solve while training.
    learned
        Whether the norm is learned and may be smaller than the bound; see ``Bounded``.
    power_iterations
        Number of steps of the power iteration in every solve while training.
    name
        Name of the parameter to normalise in each layer.
    of
        Function that says of each module of the cell whether it is normalised, instead of the default.

    Returns
    -------
    Module
        The cell itself.

    Raises
    ------
    ValueError
        If ``bound`` is not greater than 0, no module is chosen, or the parameter of a chosen module already has a
        parametrisation.
    """
    if not bound > 0:
        raise ValueError(f"bound must be greater than 0, got {bound}")
    for module in _chosen(cell, name, of):
        parametrizations.spectral_norm(module, name, n_power_iterations=power_iterations)
        if learned or bound != 1.0:
            parametrize.register_parametrization(module, name, Bounded(bound, learned=learned))
    return cell


def _chosen(cell: nn.Module, name: str, of: Callable[[nn.Module], bool] | None) -> list[nn.Module]:
    wanted = of or (lambda module: isinstance(module, nn.Linear | nn.modules.conv._ConvNd))
    chosen = [module for module in cell.modules() if wanted(module)]
    if not chosen:
        raise ValueError(f"{type(cell).__name__} has no module to normalise")
    for module in chosen:
        if parametrize.is_parametrized(module, name):
            raise ValueError(f"the {name} of {module} has a parametrisation already")
    return chosen
