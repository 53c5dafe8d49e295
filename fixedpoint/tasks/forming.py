"""Pictures of a solve after some of its rounds, chosen while the total number of rounds is still unknown.

Every round is stored until the limit is reached. Then every second picture is dropped, from then on only every second
round is stored, and so on. The stored rounds are thus spread over all rounds so far.
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

# Pictures that are shown at most. Twice as many are stored, less the answer: after thinning out, half of them remain.
_SHOWN = 8
_HELD = 2 * (_SHOWN - 1)


@dataclass(frozen=True)
class Forming:
    """Pictures of the first row of a solve after some of its rounds.

    Attributes
    ----------
    images
        One picture for each entry of ``rounds``, at most 8.
    rounds
        Shape ``(count,)``, int64: numbers of rounds, increasing. In the last one the row ended.
    """

    images: Images
    rounds: NDArray[np.int64]


class HasDrawing(ABC):
    """A task that can draw a row after a round of the solve."""

    @abstractmethod
    def drawing(self, problem: Problem) -> Callable[[Tensor], Images] | None:
        """Return the function that draws rows of ``Progress.latest``, one picture per row; None if there is none."""


class Recorder:
    """A callback for the rounds of a solve that stores pictures of its first row.

    It draws in the first 14 rounds, and 7 times for every further doubling of their number.

    Parameters
    ----------
    draw
        Draws rows of ``Progress.latest``, one picture per row.
    rows
        ``B``. A round that reports fewer rows, because a solver handed some on to another, is not drawn.
    on_round
        A callback that is also called after every round.
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
        """Draw the round if it is due, and call ``on_round``."""
        if progress.latest is not None and len(progress.latest) == self.rows:
            if self._told % self._stride == 0:
                self._hold(progress.round, progress.latest)
            self._told += 1
        if self.on_round is not None:
            self.on_round(progress)

    def formed(self, solution: Solution) -> Forming | None:
        """Return at most 8 pictures, spread evenly, the last of the answer; None if the solver reported no values."""
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
        """Store a picture; drop every second one first if the limit is reached."""
        if len(self.held) == _HELD:
            del self.held[1::2]
            self._stride *= 2
        self.held.append((number, self.draw(latest[:1].clone())))  # cloned, since the solver reuses the memory
