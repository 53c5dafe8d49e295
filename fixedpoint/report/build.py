"""Writes all files of a report into the run folder."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fixedpoint.report.drawing import Attempts, drawn_groups
from fixedpoint.report.importing import lacking
from fixedpoint.report.palette import strokes
from fixedpoint.report.reading import RunData
from fixedpoint.report.table import sections, to_csv, to_markdown

__all__ = ["Written", "build"]


@dataclass(frozen=True)
class Written:
    """What :func:`build` wrote.

    Attributes
    ----------
    files
        The files.
    missing
        A sentence on the files that could not be written for lack of a package; empty if there are none.
    notices
        A sentence for everything that is left out because it could not be drawn.
    """

    files: tuple[Path, ...]
    missing: str = ""
    notices: tuple[str, ...] = ()


def build(run: RunData) -> Written:
    """Write the report of a run: the table and, if the extra ``report`` is installed, plots, pictures and HTML page.

    Raises
    ------
    WriteError
        If a file cannot be written.
    """
    attempts = Attempts()
    written = [
        _write(run, "table.md", to_markdown(sections(run)).encode()),
        _write(run, "table.csv", to_csv(run).encode()),
    ]
    sentence = lacking()
    if sentence:
        return Written(tuple(written), sentence)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # labels in a script that the font lacks
        written += _drawn(run, attempts)
    return Written(tuple(written), notices=tuple(attempts.notices))


def _drawn(run: RunData, attempts: Attempts) -> list[Path]:
    """Write everything that requires matplotlib and jinja2, which are imported only here."""
    from fixedpoint.report.curves import solvers_with_curve
    from fixedpoint.report.forming import forming_figure
    from fixedpoint.report.gallery import gallery_figure
    from fixedpoint.report.learning import learning_figure, learnings_of
    from fixedpoint.report.page import page
    from fixedpoint.report.pictures import pictures_of
    from fixedpoint.report.plot import convergence_figure, png, svg
    from fixedpoint.report.steps import steps_figure

    written: list[Path] = []
    groups = drawn_groups(run, attempts)
    colours = strokes(run.solvers, attempts.make("the curves", lambda: solvers_with_curve(groups)) or ())

    def draw(name: str, figure: Callable[[], Any], salt: str = "") -> None:
        made = attempts.make(f"{name}.png", lambda: _both(figure(), salt))
        for suffix, content in (made or {}).items():
            written.append(_write(run, f"{name}.{suffix}", content))

    def _both(figure: Any, salt: str) -> dict[str, bytes]:
        if figure is None:
            return {}
        return {"png": png(figure)} | ({"svg": svg(figure, salt).encode()} if salt else {})

    draw("convergence", lambda: convergence_figure(groups, colours), "convergence")
    for learning in attempts.make("the progress of training", lambda: learnings_of(groups)) or ():
        name = _file_name(learning.task)
        draw(f"learning-{name}", partial(learning_figure, learning, colours), f"learning {name}")
    pictures = [attempts.make(f"what is drawn of {group.title}", partial(pictures_of, group)) for group in groups]
    for shown in filter(None, pictures):
        name = _file_name(shown.title)
        if shown.steps:
            draw(f"steps-{name}", partial(steps_figure, shown.title, shown.steps, shown.tolerance), f"steps {name}")
        if shown.strips:
            draw(f"samples-{name}", partial(gallery_figure, shown.title, shown.strips))
        if shown.films:
            draw(f"forming-{name}", partial(forming_figure, shown.title, shown.films))
    content = page(run, groups, colours, [each for each in pictures if each is not None], attempts)
    written.append(_write(run, "report.html", content.encode()))
    return written


def _file_name(title: str) -> str:
    return re.sub(r"[^\w.-]+", "-", title).strip("-")[:100]


def _write(run: RunData, name: str, content: bytes) -> Path:
    path = run.folder.path / name
    run.folder.write(path, content)
    return path
