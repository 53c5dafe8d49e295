"""The states of all random generators that a pipeline may draw from, so that every replay draws the same numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fixedpoint_diffusion.pipelines.trees import leaves

__all__ = ["Noise", "RandomStates"]


class RandomStates:
    """The states of the generators among some arguments, and of the global ones, as they are now.

    Parameters
    ----------
    given
        The arguments of a pipeline, in which generators are looked for.
    """

    def __init__(self, given: Any) -> None:
        found = [leaf for _, leaf in leaves(given) if isinstance(leaf, torch.Generator)]
        self.generators = list({id(each): each for each in found}.values())
        self._own = [each.get_state() for each in self.generators]
        self._cpu = torch.get_rng_state()
        # Asking for these states would initialise a device that nobody uses.
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        self._numpy, self._python = np.random.get_state(), random.getstate()

    def restore(self) -> None:
        """Put all generators back to these states."""
        for generator, state in zip(self.generators, self._own, strict=True):
            generator.set_state(state)
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        np.random.set_state(self._numpy)
        if random.getstate() != self._python:  # setting takes longer than comparing
            random.setstate(self._python)


class Noise(TorchFunctionMode):
    """Watches what a scheduler's step draws: records normal noise, and returns other noise in its place if told to.

    Parameters
    ----------
    instead
        Given the number of the draw within the step and what was drawn, returns what the step gets; None: what was
        drawn.
    """

    def __init__(self, instead: Callable[[int, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.instead = instead
        self.drawn: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("randn", "randn_like"):
            if self.instead is not None:
                result = self.instead(len(self.drawn), result)
            self.drawn.append(result)
        return result
