"""Draws how each solver forms the first sample of a task, as a sequence of pictures labelled with their rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fixedpoint.report.gallery import pixels_of, wrapped
from fixedpoint.report.palette import INK
from fixedpoint.report.reading import Entry, Group

__all__ = ["SampleSequence", "forming_figure", "sample_sequences_of"]


@dataclass(frozen=True)
class SampleSequence:
    """The pictures of one solver.

    Attributes
    ----------
    solver
        Label of the solver.
    pixels
        Values in [0, 1], shape ``(count, height, width, 3)``.
    rounds
        The round of each picture.
    """

    solver: str
    pixels: NDArray[np.float64]
    rounds: tuple[int, ...]


def sample_sequences_of(group: Group) -> list[SampleSequence]:
    """Return the film of every solver that has one, in the order of the run, for the first seed only."""
    seed = group.entries[0].cell.seed
    found = [_film(entry) for entry in group.entries if entry.cell.seed == seed]
    return [film for film in found if film is not None]


def forming_figure(title: str, films: list[SampleSequence]) -> Figure:
    """Draw films below one another, labelled. ``films`` must not be empty."""
    count = max(len(film.rounds) for film in films)
    height, width = films[0].pixels.shape[1:3]
    cell, foot = 0.72, 0.2  # lengths are in inches, from the top left corner
    labels = 0.3 + 0.075 * max(len(line) for film in films for line in wrapped(film.solver).splitlines())
    head = 0.62
    tall = cell * height / width
    across, down = labels + cell * count + 0.05, head + (tall + foot) * len(films)
    figure = Figure(figsize=(across, down), facecolor="white")
    FigureCanvasAgg(figure)

    def write(text: str, left: float, top: float, **style: Any) -> None:
        figure.text(left / across, 1 - top / down, text, color=INK, parse_math=False, **style)

    write(title, 0.08, 0.14, fontsize=10.5, fontweight="bold", va="top")
    write("after round", labels, head - 0.1, fontsize=8.5, va="bottom")
    for line, film in enumerate(films):
        top = head + (tall + foot) * line
        write(wrapped(film.solver), 0.08, top + tall / 2, fontsize=8.5, va="center")
        for column, (picture, number) in enumerate(zip(film.pixels, film.rounds, strict=True)):
            left = labels + cell * column
            below = 1 - (top + 0.95 * tall) / down
            axes = figure.add_axes((left / across, below, 0.95 * cell / across, 0.95 * tall / down))
            axes.imshow(picture, interpolation="nearest")
            axes.set_axis_off()
            write(str(number), left + 0.475 * cell, top + 0.97 * tall, fontsize=8, ha="center", va="top")
    return figure


def _film(entry: Entry) -> SampleSequence | None:
    pixels, rounds = pixels_of(entry.arrays, "forming"), entry.arrays.get("forming.rounds")
    if pixels is None or rounds is None or rounds.shape != (len(pixels),):
        return None
    return SampleSequence(entry.cell.solver, pixels, tuple(int(number) for number in rounds))
