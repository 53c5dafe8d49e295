"""Draws the error of every state of a chain after every round as a colour, with one panel per solver."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from fixedpoint.report.palette import INK
from fixedpoint.report.plot import STYLE
from fixedpoint.report.reading import Entry, Group

__all__ = ["NARROW_GRID", "WIDE_GRID", "Grid", "Steps", "steps_figure", "steps_of"]

_TRACE = "trace.step_errors"
_COLOURS = "viridis"
# The colour scale reaches down to this multiple of the tolerance, and up to at most this error.
_BELOW_TOLERANCE = 0.01
_MOST = 10.0
# All panels have the same axis of rounds, unless the shortest has less than this share of the rounds of the longest.
_LEAST_SHARE = 0.2
# Height of the colour bar in inches.
_BAR = 0.12


@dataclass(frozen=True)
class Steps:
    """The step errors of one solver on one task.

    Attributes
    ----------
    solver
        Label of the solver.
    errors
        Relative errors of the first row, shape ``(rounds, steps)``; NaN where there is none.
    rounds, steps
        Numbers of the rounds and of the states, shapes ``(rounds,)`` and ``(steps,)``: evenly spaced, with the last
        one included.
    """

    solver: str
    errors: NDArray[np.float64]
    rounds: NDArray[np.int64]
    steps: NDArray[np.int64]

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top. Each value covers the interval from the number before to its own."""
        (left, right), (top, bottom) = _edges(self.steps), _edges(self.rounds)
        return left, right, bottom, top


@dataclass(frozen=True)
class Grid:
    """The layout of panels.

    Attributes
    ----------
    width
        Width of the figure in inches.
    height
        Height of one panel in inches.
    columns
        Maximum number of panels in a row.
    """

    width: float
    height: float
    columns: int


WIDE_GRID = Grid(7.6, 1.75, 3)
NARROW_GRID = Grid(3.9, 1.45, 2)


def steps_of(group: Group) -> list[Steps]:
    """Return the step errors of every solver that has them, in the order of the run, for the first seed only."""
    seed = group.entries[0].cell.seed
    found = [_steps(entry) for entry in group.entries if entry.cell.seed == seed]
    return [steps for steps in found if steps is not None]


def steps_figure(title: str, shown: list[Steps], tolerance: float, grid: Grid = WIDE_GRID) -> Figure:
    """Draw one panel per solver, with one colour scale for all.

    Parameters
    ----------
    title
        Title of the figure; empty for none.
    shown
        Step errors of at least one solver.
    tolerance
        Relative tolerance, which is marked on the colour bar; 0 for none.
    grid
        Layout of the panels.
    """
    columns = _columns(len(shown), grid.columns)
    lines = -(-len(shown) // columns)
    across = int((grid.width / columns - 0.5) / 0.073)  # characters of a title per panel
    names = [textwrap.wrap(steps.solver, across) or [""] for steps in shown]
    heads = [max(len(name) for name in names[i : i + columns]) for i in range(0, len(names), columns)]
    height = grid.height * lines * (1.4 if columns == 1 else 1.0) + 0.16 * sum(heads) + 0.25 * lines + 0.75
    norm = _norm(shown, tolerance)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(grid.width, height + (0.3 if title else 0.0)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(lines, columns, squeeze=False)
        flat = list(panels.flat)
        for axes, steps, name in zip(flat, shown, names, strict=False):
            _panel(axes, steps, "\n".join(name), norm)
        for axes in flat[len(shown) :]:
            axes.remove()
        _scales(flat[: len(shown)], shown, columns)
        bar = figure.colorbar(
            flat[0].images[0],
            ax=flat[: len(shown)],
            location="bottom",
            extend="both",
            fraction=2 * _BAR / height,
            aspect=(grid.width - 0.9) / _BAR,
        )
        _bar(bar, tolerance)
        if title:
            heading = figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
            heading.set_parse_math(False)
    return figure


def _steps(entry: Entry) -> Steps | None:
    """The step errors in a record; None if it has none, or if they have another shape."""
    arrays = entry.arrays
    if any(name not in arrays for name in (_TRACE, f"{_TRACE}.rounds", f"{_TRACE}.steps")):
        return None
    errors, rounds, steps = arrays[_TRACE], arrays[f"{_TRACE}.rounds"], arrays[f"{_TRACE}.steps"]
    if errors.ndim != 3 or len(errors) == 0 or errors.shape[1:] != (len(rounds), len(steps)):
        return None
    first = errors[0].astype(np.float64)
    if not (first > 0).any():
        return None
    end = np.flatnonzero(~np.isnan(first).all(axis=1))[-1] + 1  # rounds after the first row ended are left out
    return Steps(entry.cell.solver, first[:end], rounds[:end], steps)


def _panel(axes: Axes, steps: Steps, name: str, norm: LogNorm) -> None:
    shown = np.clip(steps.errors, norm.vmin, norm.vmax)  # an error may be 0, or infinite; NaN stays
    axes.imshow(shown, cmap=_COLOURS, norm=norm, aspect="auto", interpolation="none", extent=steps.extent)
    axes.set_title(name, fontsize=8.5, loc="left", parse_math=False)
    axes.tick_params(length=3, labelsize=8)


def _scales(panels: list[Axes], shown: list[Steps], columns: int) -> None:
    """Set the axes, with rounds downwards, and the same for all panels unless one would become too low to read."""
    lengths = [steps.extent[2] for steps in shown]
    shared = min(lengths) >= _LEAST_SHARE * max(lengths)
    for index, (axes, steps) in enumerate(zip(panels, shown, strict=True)):
        axes.set_xlim(0.5, steps.extent[1])
        axes.set_ylim(max(lengths) if shared else steps.extent[2], 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=2))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=2))
        if index % columns == 0:
            axes.set_ylabel("round")
        if index + columns >= len(shown):
            axes.set_xlabel("step")


def _bar(bar: Colorbar, tolerance: float) -> None:
    bar.set_label("relative error", fontsize=9)
    bar.ax.xaxis.set_major_locator(LogLocator(base=10, numticks=8))
    bar.ax.xaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(length=3, labelsize=8)
    if tolerance > 0:
        bar.ax.axvline(tolerance, color="white", linewidth=1.2)
        bar.ax.annotate(
            f"tolerance {tolerance:g}",
            (tolerance, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            color=INK,
        )


def _norm(shown: list[Steps], tolerance: float) -> LogNorm:
    """The colour scale: the range of all errors, limited, but at least a decade on each side of the tolerance."""
    values = np.concatenate([steps.errors[np.isfinite(steps.errors) & (steps.errors > 0)] for steps in shown])
    top = min(float(values.max()), _MOST) if len(values) else 1.0
    bottom = float(values.min()) if len(values) else top
    if tolerance > 0:
        bottom, top = max(bottom, tolerance * _BELOW_TOLERANCE), max(top, tolerance * 10)
        bottom = min(bottom, tolerance / 10)
    return LogNorm(min(bottom, top / 10), top)


def _columns(count: int, most: int) -> int:
    """The number of panels in a row; four panels are arranged two by two instead of three and one."""
    return 2 if count == 4 else min(count, most)


def _edges(numbers: NDArray[np.int64]) -> tuple[float, float]:
    """The edges of an axis on which each number covers the whole stride that ends with it."""
    stride = int(numbers[1] - numbers[0]) if len(numbers) > 1 else 1
    return float(numbers[0]) - stride + 0.5, float(numbers[-1]) + 0.5
