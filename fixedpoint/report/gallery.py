"""Pictures: what the answers of a task look like, solver by solver, under what they should look like."""

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
# Pixels of a picture's longer side once enlarged: large enough to be seen, small enough for ten in a row.
_SIDE = 96
_GAP = 4


@dataclass(frozen=True)
class Strip:
    """Some pictures side by side: values in [0, 1] of shape ``(count, height, width, 3)``."""

    label: str
    pixels: NDArray[np.float64]


def strips_of(group: Group) -> list[Strip]:
    """The reference first, then every solver that has pictures; of one seed, the first."""
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
    """The strip as PNG, every pixel enlarged to a square, transparent between the pictures."""
    pieces = [_enlarged(picture) for picture in strip.pixels]
    height = pieces[0].shape[0]
    gap = np.zeros((height, _GAP, 4))
    spaced = [part for piece in pieces for part in (gap, piece)][1:]
    stream = io.BytesIO()
    matplotlib.image.imsave(stream, np.concatenate(spaced, axis=1), format="png")
    return stream.getvalue()


def gallery_figure(title: str, strips: list[Strip]) -> Figure:
    """All strips below one another, labelled."""
    count = max(len(strip.pixels) for strip in strips)
    height, width = strips[0].pixels.shape[1:3]
    cell = 0.72
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
    """Pictures of a record as values in [0, 1], shape ``(count, height, width, 3)``; None where there are none."""
    pixels = arrays.get(f"{name}.pixels")
    if pixels is None or pixels.ndim not in (3, 4) or pixels.size == 0:
        return None
    low, high = (float(value) for value in arrays[f"{name}.range"])
    scaled = (np.nan_to_num(pixels[:_MOST].astype(np.float64), nan=low) - low) / ((high - low) or 1.0)
    clipped: NDArray[np.float64] = np.clip(scaled, 0.0, 1.0)
    return clipped if clipped.ndim == 4 else np.repeat(clipped[..., np.newaxis], 3, axis=-1)


def _enlarged(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    factor = max(1, round(_SIDE / max(picture.shape[:2])))
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.concatenate([large, np.ones((*large.shape[:2], 1))], axis=-1)


def wrapped(label: str) -> str:
    """A label in lines that leave room for pictures."""
    return "\n".join(textwrap.wrap(label, 28))
