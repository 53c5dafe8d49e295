"""The noise that a scheduler draws in its ``step``: intercepted, so that a probe can tell it which images to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Draws", "NotAffineError"]

_RANDOM = ("rand", "rand_like", "randint", "randint_like", "randperm", "bernoulli", "multinomial", "normal", "poisson")
_RANDOM_IN_PLACE = ("uniform_", "random_", "bernoulli_", "exponential_", "cauchy_", "geometric_", "log_normal_")


class NotAffineError(Exception):
    """A reason why a scheduler has no tables."""


class Draws(TorchFunctionMode):
    """Replaces the normal noise that a step draws, and keeps the images of a step in float64.

    Schedulers cast images to float32, and draw noise in it, so that half precision does not suffer. In float64 that
    adds nothing but rounding. Without it the second pass of a probe can be compared closely.

    Parameters
    ----------
    shape
        The shape of the images.
    noise
        The images that are returned, draw after draw; None: zeros, for counting.
    """

    def __init__(self, shape: tuple[int, ...], noise: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.shape, self.noise = shape, noise
        self.made: list[int] = []
        self._step = 0

    def during(self, step: int) -> Draws:
        self._step = step
        return self

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "randn":
            size = kwargs.get("size", args[0] if len(args) == 1 and not isinstance(args[0], int) else args)
            return self._draw(tuple(size))
        if name == "randn_like":
            return self._draw(tuple(args[0].shape))
        if name == "normal_":
            mean, std = [*args[1:], *[kwargs.get("mean", 0.0), kwargs.get("std", 1.0)][len(args) - 1 :]]
            return args[0].copy_(mean + std * self._draw(tuple(args[0].shape)))
        if name in _RANDOM or name in _RANDOM_IN_PLACE:
            raise NotAffineError(f"its step draws by torch.{name}, not normal noise")
        result = func(*args, **kwargs)
        if name in ("to", "float", "type") and isinstance(result, Tensor) and result.dtype == torch.float32:
            given = args[0]
            if given.dtype == torch.float64 and tuple(given.shape) == self.shape:
                return given
        return result

    def _draw(self, size: tuple[int, ...]) -> Tensor:
        if size != self.shape:
            raise NotAffineError(f"its step draws noise of shape {size} for images of shape {self.shape}")
        self.made.append(self._step)
        if self.noise is None:
            return torch.zeros(size, dtype=torch.float64, device="cpu")
        return self.noise[len(self.made) - 1].clone()  # a step may overwrite it
