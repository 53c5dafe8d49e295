"""Ambient: the automatic mixed precision under which a map was evaluated, to evaluate it so again later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

__all__ = ["Ambient"]


@dataclass
class Ambient:
    """A context that restores autocast as it was when this was made; it may be entered again and again.

    Attributes
    ----------
    device
        The type of device the map runs on.
    dtype
        What autocast computed in; None where it was off.
    """

    device: str
    dtype: torch.dtype | None

    def __post_init__(self) -> None:
        self._entered: list[Any] = []

    @classmethod
    def of(cls, state: Tensor) -> Self:
        """That of now, on the device of ``state``."""
        device = state.device.type
        return cls(device, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None)

    def __enter__(self) -> None:
        # Without its cache: a weight that was cast outside is not seen to be the weight.
        context = torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype is not None, cache_enabled=False)
        context.__enter__()
        self._entered.append(context)

    def __exit__(self, *failure: Any) -> None:
        self._entered.pop().__exit__(*failure)
