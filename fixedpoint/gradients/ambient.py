"""Ambient: restores the automatic mixed precision (autocast) in which a map was evaluated, to evaluate it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

__all__ = ["Ambient"]


@dataclass
class Ambient:
    """A context manager that restores the state of autocast at its creation; it may be entered repeatedly and nested.

    Attributes
    ----------
    device
        Type of the device that the map runs on, such as ``"cuda"``.
    dtype
        The dtype of autocast; None if autocast was off.
    """

    device: str
    dtype: torch.dtype | None

    def __post_init__(self) -> None:
        self._entered: list[Any] = []

    @classmethod
    def of(cls, state: Tensor) -> Self:
        """The present state of autocast for the device of ``state``."""
        device = state.device.type
        return cls(device, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None)

    def __enter__(self) -> None:
        # No cache: autograd would not see that a copy of a weight, cast and cached earlier, depends on that weight.
        context = torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype is not None, cache_enabled=False)
        context.__enter__()
        self._entered.append(context)

    def __exit__(self, *failure: Any) -> None:
        self._entered.pop().__exit__(*failure)
