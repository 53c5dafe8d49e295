"""Draws the convergence plot: relative error against rounds, with one line per solver and one panel per group."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from fixedpoint.report.curves import Curve, curves_of
from fixedpoint.report.palette import GRID, INK, Stroke
from fixedpoint.report.reading import Group

__all__ = ["STYLE", "WIDE", "Format", "convergence_figure", "png", "svg"]

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "svg.fonttype": "path",
}
# The axis ends at this multiple of the tolerance, because errors far below it are of no interest.
_BELOW_TOLERANCE = 0.08


@dataclass(frozen=True)
class Format:
    """Format of a figure.

    Attributes
    ----------
    width, height
        Size of one panel in inches.
    legend_columns
        Number of columns of the legend.
    """

    width: float
    height: float
    legend_columns: int


WIDE = Format(7.6, 3.7, 2)
NARROW = Format(3.9, 3.4, 1)


def convergence_figure(groups: list[Group], strokes: Mapping[str, Stroke], size: Format = WIDE) -> Figure | None:
    """Draw the convergence plot; return None if no cell has a result.

    Parameters
    ----------
    groups
        The groups of the run, one panel each.
    strokes
        The stroke of every solver, by its label.
    size
        Format of the figure.
    """
    shown = [(group, curves_of(group)) for group in groups]
    shown = [(group, curves) for group, curves in shown if curves]
    if not shown:
        return None
    names = list(dict.fromkeys(curve.solver for _, curves in shown for curve in curves))
    lines = -(-len(names) // size.legend_columns)
    legend = 0.08 + 0.19 * lines
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(size.width, size.height * len(shown) + legend))
        FigureCanvasAgg(figure)
        bottom = legend / (size.height * len(shown) + legend)
        panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
        for axes, (group, curves) in zip(panels, shown, strict=True):
            _panel(axes, group, curves, strokes, titled=len(shown) > 1)
        panels[-1].set_xlabel("rounds (evaluations that wait for one another)" if size is WIDE else "rounds")
        figure.tight_layout(rect=(0, bottom, 1, 1))
        _legend(figure, names, shown, strokes, size)
    return figure


def svg(figure: Figure, salt: str, bare: bool = False) -> str:
    """Return a figure as SVG.

    Parameters
    ----------
    figure
        The figure.
    salt
        A text that makes the ids in the SVG differ from those of other figures on the same page.
    bare
        Whether the SVG is to be embedded in a page: without XML header and metadata, on a transparent background, with
        ink and grid in the colours of the page.
    """
    stream = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        metadata: dict[str, Any] = {"Date": None}  # without a date, the same figure gives the same file
        figure.savefig(stream, format="svg", metadata=metadata, transparent=bare)
    text = stream.getvalue()
    if not bare:
        return text
    text = text[text.index("<svg") :]
    start, end = text.find("<metadata>"), text.find("</metadata>")
    if start >= 0:
        text = text[:start] + text[end + len("</metadata>") :]
    return text.replace(INK, "currentColor").replace(GRID, "var(--rule)")


def png(figure: Figure) -> bytes:
    """Return a figure as PNG on a white background."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=200, facecolor="white")
    return stream.getvalue()


def _panel(axes: Axes, group: Group, curves: list[Curve], strokes: Mapping[str, Stroke], titled: bool) -> None:
    """Draw one group; a solver without a curve becomes a vertical line at the number of rounds it took."""
    axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=3)
    tolerance = group.tolerance
    drawn = [curve for curve in curves if curve.drawable]
    bottom, top = _limits(drawn, tolerance)
    axes.set_ylim(bottom, top)
    last = max(curve.rounds for curve in curves)
    axes.set_xlim(0, last * 1.02 + 0.5)
    for curve in curves:
        stroke = strokes[curve.solver]
        if curve.drawable:
            _line(axes, curve, stroke, bottom)
        else:
            axes.axvline(curve.rounds, color=stroke.colour, linestyle=stroke.dashes, linewidth=1.3)
    if tolerance > 0:
        axes.axhline(tolerance, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            f"tolerance {tolerance:g}",
            (0, tolerance),
            xycoords=("axes fraction", "data"),
            xytext=(5, 3),
            textcoords="offset points",
            va="bottom",
            fontsize=8,
        )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.yaxis.set_major_locator(LogLocator(base=10, numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("relative error")
    if titled:
        axes.set_title(group.title, fontsize=10, loc="left", parse_math=False)


def _line(axes: Axes, curve: Curve, stroke: Stroke, bottom: float) -> None:
    rounds = np.arange(1, len(curve.worst) + 1)
    best, worst = (np.maximum(values, bottom) for values in (curve.best, curve.worst))  # 0 has no logarithm
    axes.fill_between(rounds, best, worst, color=stroke.colour, alpha=0.09, linewidth=0)
    axes.plot(rounds, worst, color=stroke.colour, linestyle=stroke.dashes, linewidth=1.7)
    end = np.flatnonzero(np.isfinite(worst))[-1]
    axes.plot(rounds[end], worst[end], marker="o", markersize=4, color=stroke.colour, clip_on=False)


def _limits(curves: list[Curve], tolerance: float) -> tuple[float, float]:
    """The limits of the error axis. Errors above 1e6 are cut off, so that a divergent solver does not hide the rest."""
    values = np.concatenate([curve.worst[curve.worst > 0] for curve in curves] or [np.array([1.0])])
    lowest = float(values.min())
    bottom = max(lowest, tolerance * _BELOW_TOLERANCE) if tolerance > 0 else lowest
    return min(bottom, tolerance or bottom) / 1.6, float(min(values.max(), 1e6)) * 1.8


def _legend(
    figure: Figure,
    names: list[str],
    shown: list[tuple[Group, list[Curve]]],
    strokes: Mapping[str, Stroke],
    size: Format,
) -> None:
    drawn = {curve.solver for _, curves in shown for curve in curves if curve.drawable}
    handles = [
        Line2D(
            [],
            [],
            color=strokes[name].colour,
            linestyle=strokes[name].dashes,
            linewidth=1.7,
            label=name if name in drawn else f"{name} (rounds it takes)",
        )
        for name in names
    ]
    legend = figure.legend(
        handles=handles, loc="lower left", ncols=size.legend_columns, frameon=False, fontsize=8.5, handlelength=2.4
    )
    legend.set_in_layout(False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a label is not a formula
