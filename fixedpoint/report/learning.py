"""Draws the numbers of a task that trains after each epoch: one row for each number, one column for each gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fixedpoint.report.palette import GRID, Stroke
from fixedpoint.report.plot import STYLE
from fixedpoint.report.reading import Group

__all__ = ["Learning", "learning_figure", "learnings_of"]

_PREFIX = "epochs."
# At most this many numbers are drawn.
_MOST = 4


@dataclass(frozen=True)
class Learning:
    """The numbers of one task after each epoch.

    Attributes
    ----------
    task
        Label of the task.
    columns
        Labels of the gradient estimators.
    names
        Names of the numbers, at most four.
    values
        One array per seed, shape ``(epochs,)``, by gradient estimator, solver and name.
    """

    task: str
    columns: tuple[str, ...]
    names: tuple[str, ...]
    values: Mapping[tuple[str, str, str], list[NDArray[np.float64]]]

    @property
    def solvers(self) -> list[str]:
        """Labels of the solvers, in the order of the run."""
        return list(dict.fromkeys(solver for _, solver, _ in self.values))


def learnings_of(groups: Sequence[Group]) -> list[Learning]:
    """Return the numbers of every task whose records have epochs."""
    found = []
    for task in dict.fromkeys(group.task for group in groups):
        own = [group for group in groups if group.task == task]
        values: dict[tuple[str, str, str], list[NDArray[np.float64]]] = {}
        for group in own:
            for entry in group.entries:
                for key, array in entry.arrays.items():
                    if key.startswith(_PREFIX) and array.ndim == 1 and len(array):
                        name = key.removeprefix(_PREFIX)
                        values.setdefault((group.gradient or "", entry.cell.solver, name), []).append(
                            array.astype(np.float64)
                        )
        if values:
            names = tuple(dict.fromkeys(name for *_, name in values))[:_MOST]
            columns = tuple(dict.fromkeys(column for column, *_ in values))
            found.append(Learning(task, columns, names, values))
    return found


def learning_figure(learning: Learning, strokes: Mapping[str, Stroke], columns: int = 4) -> Figure:
    """Draw one panel for each number and gradient estimator, with the same scale for each number.

    Faint lines are single seeds, strong lines the mean over the seeds.

    Parameters
    ----------
    learning
        The numbers of one task.
    strokes
        The stroke of every solver, by its label.
    columns
        Maximum number of gradient estimators in a row; further ones follow below.
    """
    bands = [learning.columns[i : i + columns] for i in range(0, len(learning.columns), columns)]
    wide, lines = min(columns, len(learning.columns)), len(bands) * len(learning.names)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(1.9 * wide, 3.8), 1.35 * lines + 0.75), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(lines, wide, squeeze=False, sharex=True, sharey="row")
        for number, (band, name) in enumerate((band, name) for band in bands for name in learning.names):
            for place in range(wide):
                axes = panels[number, place]
                if place >= len(band):
                    axes.set_axis_off()
                    continue
                _panel(axes, learning, band[place], name, strokes)
                if name == learning.names[0]:
                    axes.set_title(band[place], fontsize=8.5, loc="left", parse_math=False)
                if name == learning.names[-1]:
                    axes.set_xlabel("epoch", fontsize=8.5)
            panels[number, 0].set_ylabel(name, fontsize=8.5)
        handles = [
            Line2D([], [], color=strokes[name].colour, linestyle=strokes[name].dashes, label=name)
            for name in learning.solvers
        ]
        legend = figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=8.5)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a label is not a formula
        heading = figure.suptitle(learning.task, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        heading.set_parse_math(False)
    return figure


def _panel(axes: Axes, learning: Learning, column: str, name: str, strokes: Mapping[str, Stroke]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=3, labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    for solver in learning.solvers:
        seeds = learning.values.get((column, solver, name), [])
        stroke = strokes[solver]
        for values in seeds if len(seeds) > 1 else []:
            axes.plot(np.arange(1, len(values) + 1), values, color=stroke.colour, linewidth=0.7, alpha=0.35)
        if seeds and len({len(values) for values in seeds}) == 1:  # seeds that ended early have no common mean
            mean = np.mean(seeds, axis=0)
            axes.plot(np.arange(1, len(mean) + 1), mean, color=stroke.colour, linestyle=stroke.dashes, linewidth=1.6)
