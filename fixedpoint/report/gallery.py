"""Draws the pictures of a task that draws: one row for the reference, followed by one row for each solver."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib.image
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fixedpoint.report.palette import INK
from fixedpoint.report.reading import Group

__all__ = ["Strip", "gallery_figure", "pixels_of", "strip_png", "strips_of", "wrapped"]

_MOST = 10
# Pixels of the longer side of an enlarged picture, so that small images are visible and ten of them fit in a row.
_SIDE = 96
# Pixels of the longer side of a larger picture, so that the page does not grow with it.
_LARGEST = 256
_GAP = 4


@dataclass(frozen=True)
class Strip:
    """Pictures side by side.

    Attributes
    ----------
    label
        Label of the solver, or ``"reference"``.
    pixels
        Values in [0, 1], shape ``(count, height, width, 3)``.
    """

    label: str
    pixels: NDArray[np.float64]


def strips_of(group: Group) -> list[Strip]:
    """Return the reference and then the pictures of every solver that has some, for the first seed only."""
    strips: list[Strip] = []
    seed = group.entries[0].cell.seed
    for entry in group.entries:
        if entry.cell.seed != seed:
            continue
        reference = pixels_of(entry.arrays, "reference")
        if reference is not None and not strips:
            strips.append(Strip("reference", reference))
        pictures = pixels_of(entry.arrays, "images")
        if pictures is not None:
            strips.append(Strip(entry.cell.solver, pictures))
    return strips


def strip_png(strip: Strip) -> bytes:
    """Return a strip as PNG, with every pixel enlarged to a square, and transparent between the pictures."""
    pieces = [_enlarged(picture) for picture in strip.pixels]
    height = pieces[0].shape[0]
    gap = np.zeros((height, _GAP, 4))
    spaced = [part for piece in pieces for part in (gap, piece)][1:]
    stream = io.BytesIO()
    matplotlib.image.imsave(stream, np.concatenate(spaced, axis=1), format="png")
    return stream.getvalue()


def gallery_figure(title: str, strips: list[Strip]) -> Figure:
    """Draw strips below one another, labelled. ``strips`` must not be empty."""
    count = max(len(strip.pixels) for strip in strips)
    height, width = strips[0].pixels.shape[1:3]
    cell = 0.72  # lengths are in inches, from the top left corner
    labels = 0.3 + 0.075 * max(len(line) for strip in strips for line in wrapped(strip.label).splitlines())
    head = 0.4
    tall = cell * height / width
    across, down = labels + cell * count, head + tall * len(strips)
    figure = Figure(figsize=(across, down), facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(
        0.08 / across, 1 - 0.14 / down, title, fontsize=10.5, fontweight="bold", color=INK, va="top", parse_math=False
    )
    for line, strip in enumerate(strips):
        top = 1 - (head + tall * line) / down
        middle = top - tall / down / 2
        figure.text(0.08 / across, middle, wrapped(strip.label), fontsize=8.5, color=INK, va="center", parse_math=False)
        for column, picture in enumerate(strip.pixels):
            left = (labels + cell * column) / across
            axes = figure.add_axes((left, top - 0.95 * tall / down, 0.95 * cell / across, 0.95 * tall / down))
            axes.imshow(picture, interpolation="nearest")
            axes.set_axis_off()
    return figure


def pixels_of(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[np.float64] | None:
    """Return at most ten pictures of a record as values in [0, 1], shape ``(count, height, width, 3)``.

    Parameters
    ----------
    arrays
        Arrays of the record.
    name
        ``"images"``, ``"reference"`` or ``"forming"``.

    Returns
    -------
    ndarray or None
        The pictures; None if the record has none, or if they have another shape than pictures.
    """
    pixels = arrays.get(f"{name}.pixels")
    if pixels is None or pixels.ndim not in (3, 4) or pixels.size == 0:
        return None
    low, high = (float(value) for value in arrays[f"{name}.range"])
    colours = pixels[:_MOST] if pixels.ndim == 4 else pixels[:_MOST, ..., np.newaxis]
    small = np.stack([_shrunk(np.nan_to_num(each.astype(np.float64), nan=low)) for each in colours])
    clipped: NDArray[np.float64] = np.clip((small - low) / (high - low), 0.0, 1.0)
    return np.broadcast_to(clipped, (*clipped.shape[:3], 3))


def _shrunk(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """A picture of at most 256 pixels a side: the means of squares of pixels, and of what is left at the edges."""
    step = -(-max(picture.shape[:2]) // _LARGEST)
    if step == 1:
        return picture
    for axis in (0, 1):
        starts = np.arange(0, picture.shape[axis], step)
        counts = np.diff(np.append(starts, picture.shape[axis]))
        picture = np.add.reduceat(picture, starts, axis=axis) / counts.reshape(-1, *(1,) * (2 - axis))
    return picture


def _enlarged(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    factor = max(1, round(_SIDE / max(picture.shape[:2])))
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.concatenate([large, np.ones((*large.shape[:2], 1))], axis=-1)


def wrapped(label: str) -> str:
    """Return a label in lines of at most 28 characters, to leave room for the pictures."""
    return "\n".join(textwrap.wrap(label, 28))
