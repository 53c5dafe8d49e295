"""Forming: pictures of a solve as it goes on, of a few of its rounds, chosen while nobody knows how many there will be.

Every round is kept until there are more than can be held; then every second one is let go, and from there on only every
second round is looked at, and so on. What is held is thus spread over all the rounds there have been.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.problem import Problem
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.tasks.images import Images

__all__ = ["Forming", "HasDrawing", "Recorder"]

_SHOWN = 8
_HELD = 2 * (_SHOWN - 1)  # every second one of them, and the answer


@dataclass(frozen=True)
class Forming:
    """The first row of a solve as it forms.

    Attributes
    ----------
    images
        One picture for each of ``rounds``, at most 8.
    rounds
        Shape ``(count,)``: numbers of rounds, increasing; the last one is that in which the row ended.
    """

    images: Images
    rounds: NDArray[np.int64]


class HasDrawing(ABC):
    """A task that can draw what a round has made of a row."""

    @abstractmethod
    def drawing(self, problem: Problem) -> Callable[[Tensor], Images] | None:
        """What draws ``Progress.latest`` of some rows, a picture a row; None where there is nothing to be seen."""


class Recorder:
    """Listens to the rounds of a solve, and keeps pictures of its first row.

    Draws in the first 14 rounds, and 7 times for every further doubling of their number.

    Parameters
    ----------
    draw
        Makes a picture of a row of ``Progress.latest``.
    rows
        ``B``; a round that tells of other rows than all (a solver that has handed on some) is not drawn.
    on_round
        Is told of every round, too.
    """

    def __init__(
        self, draw: Callable[[Tensor], Images], rows: int, on_round: Callable[[Progress], None] | None = None
    ) -> None:
        self.draw = draw
        self.rows = rows
        self.on_round = on_round
        self.held: list[tuple[int, Images]] = []
        self._stride = 1
        self._told = 0

    def __call__(self, progress: Progress) -> None:
        """A round is over."""
        if progress.latest is not None and len(progress.latest) == self.rows:
            if self._told % self._stride == 0:
                self._hold(progress.round, progress.latest)
            self._told += 1
        if self.on_round is not None:
            self.on_round(progress)

    def formed(self, solution: Solution) -> Forming | None:
        """At most 8 of the pictures, spread evenly, and that of the answer; None of a solver that has told nothing."""
        if not self._told:
            return None
        last = int(solution.rounds[0])
        before = [(number, images) for number, images in self.held if number < last]
        chosen = before[:: -(-len(before) // (_SHOWN - 1)) or 1]
        drawn = [*(images for _, images in chosen), self.draw(solution.fstate[:1])]
        numbers = [*(number for number, _ in chosen), last]
        pixels = np.concatenate([images.pixels for images in drawn])
        return Forming(Images(pixels, drawn[-1].low, drawn[-1].high), np.array(numbers, dtype=np.int64))

    def _hold(self, number: int, latest: Tensor) -> None:
        if len(self.held) == _HELD:
            del self.held[1::2]
            self._stride *= 2
        self.held.append((number, self.draw(latest[:1].clone())))  # its memory is used again
