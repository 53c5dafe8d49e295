"""Held: keeps the parametrised weights and the random numbers of a cell the same in all calls of one solve.

A fixed point requires one function. A cell whose dropout draws a new mask at every call, or whose spectral
normalisation makes another power iteration, is a different function in every call of the solve and of the backward
pass. Two things are therefore held fixed:

- The weights of modules with parametrisations (``torch.nn.utils.parametrizations``) are computed once, recorded by
  autograd, and used in every call.
- Every call draws the same random numbers as the first call, for dropout or anything else. Outside of the calls, the
  generators are in the state in which one call leaves them. For a cell that draws no random numbers this costs nothing.

Both are stored with the solve and not with the cell, so that several solves before one backward pass stay separate.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["Held"]

_MISSING = object()


class Held:
    """A context manager for the calls of a cell in one solve and its backward pass.

    Parameters
    ----------
    cell
        The module. Its parametrised weights are computed in the constructor.
    device
        The device on which the cell computes. The generators of the CPU and of this device are held.

    Raises
    ------
    ValueError
        If the cell contains batch normalisation in training mode, which mixes rows.
    """

    def __init__(self, cell: nn.Module, device: torch.device) -> None:
        _refuse_batch_statistics(cell)
        self._weights: list[tuple[nn.Module, Tensor]] = [
            (parametrization, getattr(module, name))
            for module in cell.modules()
            if parametrize.is_parametrized(module)
            for name, parametrization in _parametrizations(module)
        ]
        self._generators = _generators(device)
        self._drawn: list[Tensor] | None = None
        self._begun: list[Tensor] = []
        self._draws_nothing: bool | None = None
        self._before: list[Any] = []

    @property
    def draws(self) -> bool:
        """Whether the first call of the cell drew random numbers; False before that call."""
        return self._draws_nothing is False

    @property
    def weights(self) -> list[Tensor]:
        """The parametrised weights."""
        return [weight for _, weight in self._weights]

    def __enter__(self) -> Held:
        # Instance attributes shadow the method. They are put back on exit, since another solve may use the same cell.
        self._before.append([module.__dict__.get("forward", _MISSING) for module, _ in self._weights])
        for module, weight in self._weights:
            module.__dict__["forward"] = _always(weight)
        if self._draws_nothing:
            return self
        states = [get() for get, _ in self._generators]
        if self._drawn is None:
            self._drawn = states
        else:
            for (_, put), drawn in zip(self._generators, self._drawn, strict=True):
                put(drawn)
        self._begun = states
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for (module, _), before in zip(self._weights, self._before.pop(), strict=True):
            if before is _MISSING:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before
        if self._draws_nothing:
            return
        if self._draws_nothing is None:  # the first call: the generators stay advanced; find out whether they are
            self._draws_nothing = error is None and all(
                torch.equal(get(), begun) for (get, _), begun in zip(self._generators, self._begun, strict=True)
            )
            return
        for (_, put), begun in zip(self._generators, self._begun, strict=True):
            put(begun)


def _always(weight: Tensor) -> Callable[[], Tensor]:
    return lambda: weight


def _parametrizations(module: nn.Module) -> list[tuple[str, nn.Module]]:
    found: Any = module.parametrizations
    return list(found.items())


def _generators(device: torch.device) -> list[tuple[Callable[[], Tensor], Callable[[Tensor], None]]]:
    """Functions to read and to write the state of each generator."""
    found: list[tuple[Callable[[], Tensor], Callable[[Tensor], None]]] = [(torch.get_rng_state, torch.set_rng_state)]
    if device.type != "cpu":
        module: Any = torch.get_device_module(device)
        if hasattr(module, "get_rng_state"):
            found.append((lambda: module.get_rng_state(device), lambda state: module.set_rng_state(state, device)))
    return found


def _refuse_batch_statistics(cell: nn.Module) -> None:
    for name, module in cell.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or not module.track_running_stats):
            raise ValueError(
                f"{name or 'the cell'} is {type(module).__name__} in training mode: it mixes the rows, and its result "
                "is another one at every call; take group or layer normalisation, or put it into evaluation mode"
            )
