"""Writes all files of a report into the run folder."""

from __future__ import annotations

import importlib.util
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from fixedpoint.config.writing import write_atomically
from fixedpoint.report.curves import solvers_with_curve
from fixedpoint.report.palette import strokes
from fixedpoint.report.reading import RunData
from fixedpoint.report.table import sections, to_csv, to_markdown

__all__ = ["Written", "build"]

_NEEDED = ("matplotlib", "jinja2")


@dataclass(frozen=True)
class Written:
    """What :func:`build` wrote.

    Attributes
    ----------
    files
        The files.
    missing
        A sentence on the files that could not be written for lack of a package; empty if there are none.
    """

    files: tuple[Path, ...]
    missing: str = ""


def build(run: RunData) -> Written:
    """Write the report of a run: the table and, if the extra ``report`` is installed, plots, pictures and HTML page.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    folder = run.folder.path
    written = [
        _write(folder / "table.md", to_markdown(sections(run)).encode()),
        _write(folder / "table.csv", to_csv(run).encode()),
    ]
    lacking = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        names = " and ".join(lacking)
        sentence = f"no plots and no page: they need {names}; pip install 'fixedpoint-solvers[report]'"
        return Written(tuple(written), sentence)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # labels in a script that the font lacks
        return Written((*written, *_drawn(run, folder)))


def _drawn(run: RunData, folder: Path) -> list[Path]:
    """Write everything that requires matplotlib and jinja2, which are imported only here."""
    from fixedpoint.report.forming import forming_figure
    from fixedpoint.report.gallery import gallery_figure
    from fixedpoint.report.learning import learning_figure, learnings_of
    from fixedpoint.report.page import page
    from fixedpoint.report.pictures import pictures_of
    from fixedpoint.report.plot import convergence_figure, png, svg
    from fixedpoint.report.steps import steps_figure

    written: list[Path] = []
    colours = strokes(run.solvers, solvers_with_curve(run.groups))
    figure = convergence_figure(run.groups, colours)
    if figure is not None:
        written.append(_write(folder / "convergence.png", png(figure)))
        written.append(_write(folder / "convergence.svg", svg(figure, "convergence").encode()))
    for learning in learnings_of(run.groups):
        figure, name = learning_figure(learning, colours), _file_name(learning.task)
        written.append(_write(folder / f"learning-{name}.png", png(figure)))
        written.append(_write(folder / f"learning-{name}.svg", svg(figure, f"learning {name}").encode()))
    pictures = [pictures_of(group) for group in run.groups]
    for shown in pictures:
        name = _file_name(shown.title)
        if shown.steps:
            figure = steps_figure(shown.title, shown.steps, shown.tolerance)
            written.append(_write(folder / f"steps-{name}.png", png(figure)))
            written.append(_write(folder / f"steps-{name}.svg", svg(figure, f"steps {name}").encode()))
        if shown.strips:
            written.append(_write(folder / f"samples-{name}.png", png(gallery_figure(shown.title, shown.strips))))
        if shown.films:
            written.append(_write(folder / f"forming-{name}.png", png(forming_figure(shown.title, shown.films))))
    written.append(_write(folder / "report.html", page(run, colours, pictures).encode()))
    return written


def _file_name(title: str) -> str:
    return re.sub(r"[^\w.-]+", "-", title).strip("-")


def _write(path: Path, content: bytes) -> Path:
    write_atomically(path, content)
    return path
