"""Weight and spectral normalisation of a cell's layers, by torch's own parametrisations.

They are modules of the cell like any other: ``deepcopy``, ``.double()``, averaged copies and ``state_dict`` take them
along. In an ``EquilibriumLayer`` they are computed once a solve, not at every call.
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
        What it is multiplied by.
    learned
        Whether the factor may go below: ``bound * sigmoid(s)`` with a parameter ``s``, at first 0.95 of the bound.
    """

    def __init__(self, bound: float, *, learned: bool = False) -> None:
        super().__init__()
        self.bound = bound
        self.logit = nn.Parameter(torch.tensor(2.9444)) if learned else None

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, scaled."""
        return weight * (self.bound if self.logit is None else self.bound * torch.sigmoid(self.logit))


def weight_normalized(cell: M, *, name: str = "weight", of: Callable[[nn.Module], bool] | None = None) -> M:
    """``g v / ||v||`` for every output channel (Salimans & Kingma 2016), in place.

    Parameters
    ----------
    cell
        Its linear and convolutional layers are normalised.
    name
        Of the parameter.
    of
        Which modules, instead.
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
    """Weights of spectral norm ``bound`` (Miyato, Kataoka, Koyama & Yoshida 2018), in place.

    That of a convolution is the norm of its kernel as a matrix from ``in * k * k`` to ``out``: the operator's own is at
    most ``k`` times as large for a kernel of ``k x k``.

    Parameters
    ----------
    cell
        Its linear and convolutional layers are normalised.
    bound
        The norm, to what the power iteration has found of it: it takes some more steps in every solve.
    learned
        Whether the norm may go below the bound.
    power_iterations
        Steps of the power iteration in every solve while training.
    name
        Of the parameter.
    of
        Which modules, instead.
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
