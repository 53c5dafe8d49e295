"""Renders the report as a single HTML file, which contains everything and requires no network."""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fixedpoint.report.drawing import Attempts
from fixedpoint.report.forming import SampleSequence
from fixedpoint.report.gallery import Strip, strip_png
from fixedpoint.report.learning import learning_figure, learnings_of
from fixedpoint.report.makers import remarks, version_rows
from fixedpoint.report.palette import Stroke
from fixedpoint.report.pictures import Pictures
from fixedpoint.report.plot import NARROW, WIDE, convergence_figure, svg
from fixedpoint.report.reading import Group, RunData
from fixedpoint.report.steps import NARROW_GRID, WIDE_GRID, steps_figure
from fixedpoint.report.table import sections

__all__ = ["page"]

# Cells that a sentence names, and failures whose traceback is shown; the records have all.
_MOST_CELLS, _MOST_ERRORS = 50, 100

_TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True)
class _Picture:
    """A picture with its label, as a data URI."""

    label: str
    uri: str


@dataclass(frozen=True)
class _Shown:
    """The drawings of one group, ready for the template."""

    title: str
    steps: list[Markup]
    samples: list[_Picture]
    forming: list[tuple[str, list[_Picture]]]


def page(
    run: RunData,
    groups: Sequence[Group],
    strokes: Mapping[str, Stroke],
    pictures: Sequence[Pictures],
    attempts: Attempts,
) -> str:
    """Return the report as HTML.

    Parameters
    ----------
    run
        The run.
    groups
        The groups that are drawn.
    strokes
        The stroke of every solver, by its label.
    pictures
        The pictures of each group.
    attempts
        Makes the drawings, and has the notices on what is left out.
    """
    info_name = run.info.name
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    shown = [
        attempts.make(f"what is drawn of {each.title}", partial(_shown, each, number))
        for number, each in enumerate(pictures)
    ]
    plots = attempts.make("the convergence plot", lambda: _plots(groups, strokes)) or []
    learning = attempts.make("the progress of training", lambda: _learning(groups, strokes)) or []
    errors = [(e.cell.label, e.record.error) for e in run.entries if e.record is not None and e.record.error]
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        run=run,
        info=run.info,
        sections=sections(run),
        strokes=strokes,
        plots=plots,
        shown=[each for each in shown if each is not None],
        learning=learning,
        messages=_messages(run),
        notes=_notes(run),
        errors=errors[:_MOST_ERRORS],
        more_errors=max(0, len(errors) - _MOST_ERRORS),
        most=_MOST_CELLS,
        left_out=attempts.notices,
        folder_again=shlex.quote(f"{info_name.replace(' ', '-')}-again"),
        done=sum(entry.record is not None for entry in run.entries),
        rtol=_rtol(run),
        compared=_compared(run),
        remarks=remarks(run),
        versions=version_rows(run),
    )


def _plots(groups: Sequence[Group], strokes: Mapping[str, Stroke]) -> list[Markup]:
    """The convergence plot for wide and for narrow screens; the style sheet of the page shows one of them."""
    figures = [convergence_figure(list(groups), strokes, size) for size in (WIDE, NARROW)]
    # Exempt from escaping: matplotlib made the SVG, and escapes the labels in it.
    return [Markup(svg(f, f"figure {i}", bare=True)) for i, f in enumerate(figures) if f is not None]


def _learning(groups: Sequence[Group], strokes: Mapping[str, Stroke]) -> list[tuple[str, list[Markup]]]:
    """For every task that trains its label and its figure, for wide and for narrow screens."""
    found = []
    for number, learning in enumerate(learnings_of(groups)):
        figures = [learning_figure(learning, strokes, columns) for columns in (4, 2)]
        drawn = [Markup(svg(figure, f"learning {number} {i}", bare=True)) for i, figure in enumerate(figures)]
        found.append((learning.task, drawn))
    return found


def _shown(pictures: Pictures, number: int) -> _Shown:
    grids = (WIDE_GRID, NARROW_GRID) if pictures.steps else ()
    figures = [steps_figure("", pictures.steps, pictures.tolerance, grid) for grid in grids]
    return _Shown(
        pictures.title,
        [Markup(svg(figure, f"steps {number} {i}", bare=True)) for i, figure in enumerate(figures)],
        [_Picture(strip.label, _data_uri(strip_png(strip))) for strip in pictures.strips],
        [(film.solver, _frames(film)) for film in pictures.films],
    )


def _frames(film: SampleSequence) -> list[_Picture]:
    """The pictures of a film, labelled with their rounds."""
    single = (Strip(str(number), film.pixels[i : i + 1]) for i, number in enumerate(film.rounds))
    return [_Picture(strip.label, _data_uri(strip_png(strip))) for strip in single]


# Lines of a record's message that begin like this explain a status; other lines are notes.
_OF_ROWS = re.compile(r"\d+ of \d+ rows (\w+)")


def _messages(run: RunData) -> list[tuple[str, list[str]]]:
    """The explanations of statuses other than converged: each sentence once, with its cells."""
    said: dict[str, list[str]] = {}
    for label, line in _lines(run):
        rows = _OF_ROWS.search(line)
        if rows is not None and rows[1] != "converged":
            said.setdefault(line[rows.end() :].removeprefix(": ") or line, []).append(f"{label}: {line[: rows.end()]}")
    return list(said.items())


def _notes(run: RunData) -> list[tuple[str, list[str]]]:
    """The notes of tasks and the plans of solvers: each sentence once, with its cells."""
    said: dict[str, list[str]] = {}
    for label, line in _lines(run):
        if _OF_ROWS.search(line) is None:
            said.setdefault(line, []).append(label)
    return list(said.items())


def _lines(run: RunData) -> Iterator[tuple[str, str]]:
    """The lines of all messages, each with the label of its cell."""
    for entry in run.entries:
        for line in entry.record.message.splitlines() if entry.record is not None else ():
            yield entry.cell.label, line


def _compared(run: RunData) -> str:
    """The number of solvers, tasks and seeds, as the beginning of a sentence."""

    def counted(count: int, noun: str) -> str:
        return f"{count} {noun}{'' if count == 1 else 's'}"

    tasks = list(dict.fromkeys(entry.cell.task for entry in run.entries))
    shown = ", ".join(tasks) if len(tasks) <= 3 else counted(len(tasks), "task")
    return f"{counted(len(run.solvers), 'solver')} on {shown}, {counted(len(run.seeds), 'seed')}"


def _rtol(run: RunData) -> float | None:
    return next((entry.record.rtol for entry in run.entries if entry.record is not None), None)


def _data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()
