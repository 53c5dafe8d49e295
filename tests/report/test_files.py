"""The files of a report: they exist, parse, and the page asks the network for nothing."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib import pyplot

from fixedpoint.config.record import arrays_bytes, write_record
from fixedpoint.execution.plain import digest
from fixedpoint.report.build import build
from fixedpoint.report.curves import curves_of, solvers_with_curve
from fixedpoint.report.forming import sample_sequences_of
from fixedpoint.report.gallery import strip_png, strips_of
from fixedpoint.report.palette import strokes
from fixedpoint.report.reading import read_run


class Page(HTMLParser):
    """Collects what a page refers to, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.refers: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.refers += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_all_files_are_written_and_parse(folder: Path) -> None:
    written = build(read_run(folder))
    assert not written.missing
    assert {path.name for path in written.files} == {
        "table.md",
        "table.csv",
        "convergence.png",
        "convergence.svg",
        "samples-gray.png",
        "samples-colour.png",
        "report.html",
    }
    ElementTree.parse(folder / "convergence.svg")
    for name in ("convergence.png", "samples-gray.png", "samples-colour.png"):
        assert min(matplotlib.image.imread(folder / name).shape[:2]) > 200


def test_chains_have_their_steps_and_their_forming_images_drawn(chains: Path) -> None:
    written = build(read_run(chains))
    assert {path.name for path in written.files} == {
        "table.md",
        "table.csv",
        "convergence.png",
        "convergence.svg",
        "steps-shapes-more.png",
        "steps-shapes-more.svg",
        "samples-shapes-more.png",
        "forming-shapes-more.png",
        "steps-points.png",
        "steps-points.svg",
        "report.html",
    }
    for path in written.files:
        if path.suffix == ".png":
            assert min(matplotlib.image.imread(path).shape[:2]) > 200
        if path.suffix == ".svg":
            ElementTree.parse(path)
    text = (chains / "report.html").read_text()
    page = Page(text)
    assert page.tags.count("svg") == 2 * (1 + 2)
    for words in ("Step by step: shapes & more", "Step by step: points", "As the image forms, round by round"):
        assert page.words.count(words) == 1, words
    films = sample_sequences_of(read_run(chains).groups[0])
    assert [film.solver for film in films] == ["serial", "in a window $\\frac$", "joint"]
    assert page.tags.count("li") == sum(len(film.rounds) for film in films)
    for film in films:
        for number in film.rounds:
            assert f"First picture of {film.solver} after round {number}" in text
    assert "outside of the window" in " ".join(page.words.split())
    assert not sample_sequences_of(read_run(chains).groups[1])
    ids = re.findall(r'(?:clipPath|linearGradient|path|image) id="([^"]+)"', text)
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'xlink:href="#([^"]+)"', text))
    assert used <= set(ids)
    glyph = "DejaVuSans-"  # the same shape wherever it is defined
    assert not [name for name in used if ids.count(name) > 1 and not name.startswith(glyph)]


def test_a_record_from_before_these_arrays_is_reported_as_it_was(chains: Path) -> None:
    run = read_run(chains)
    for entry in run.entries:
        assert entry.record is not None
        old = {n: a for n, a in entry.arrays.items() if not n.startswith(("trace.step_errors", "forming."))}
        none = entry.cell.solver == "serial" and (entry.cell.task == "points" or entry.cell.seed == 2)
        assert old.keys() < entry.arrays.keys() or none  # pictures are read of the first seed only
        content = arrays_bytes(old)
        run.folder.arrays(entry.cell.hash).write_bytes(content)
        write_record(run.folder, entry.record.model_copy(update={"arrays": digest(content)}))
    written = build(read_run(chains))
    assert {path.name for path in written.files} == {
        "table.md",
        "table.csv",
        "convergence.png",
        "convergence.svg",
        "samples-shapes-more.png",
        "report.html",
    }
    page = Page((chains / "report.html").read_text())
    assert page.tags.count("svg") == 2
    assert "Step by step" not in page.words
    assert "forms" not in page.words
    assert "Pictures: shapes & more" in page.words


def test_films_of_another_form_are_left_out(chains: Path) -> None:
    group = read_run(chains).groups[0]
    entry = group.entries[0]
    for name, values in (("forming.rounds", np.array([1, 2])), ("forming.pixels", np.ones(3))):
        damaged = replace(entry, arrays={**entry.arrays, name: values})
        assert sample_sequences_of(replace(group, entries=(damaged,))) == []


def test_no_figure_is_left_with_pyplot(folder: Path) -> None:
    build(read_run(folder))
    assert pyplot.get_fignums() == []


def test_the_page_stands_alone_and_says_everything(folder: Path) -> None:
    build(read_run(folder))
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.refers
    assert all(re.match(r"data:|#", reference) for reference in page.refers)
    assert "url(http" not in text
    assert "@import" not in text
    assert "script" not in page.tags
    assert page.tags.count("svg") == 2
    for words in (
        "toys & <games>",
        "Anderson <1965> & friends $\\frac$",
        "out of <cheese>",
        "needy needs telepathy",
        "the limit on rounds was reached",
        "fixedpoint run config.yaml",
        "relative tolerance 1e-08",
        "max_rounds: 40",
    ):
        assert words in page.words.replace("The limit", "the limit"), words
    info = json.loads((folder / "run.json").read_text())
    for name, version in info["versions"].items():
        assert name in page.words
        assert version in page.words


def test_ids_of_the_two_plots_do_not_clash_where_they_are_referred_to(folder: Path) -> None:
    build(read_run(folder))
    plots = re.findall(r"<svg.*?</svg>", (folder / "report.html").read_text(), flags=re.DOTALL)
    wide, narrow = (set(re.findall(r'(?:clipPath|path) id="([^"]+)"', plot)) for plot in plots)
    used = [set(re.findall(r"url\(#([^)]+)\)", plot)) for plot in plots]
    assert used[0] <= wide
    assert used[1] <= narrow
    assert not used[0] & used[1]


def test_a_damaged_record_is_named_on_the_page(folder: Path) -> None:
    run = read_run(folder)
    run.folder.record(run.entries[0].cell.hash).write_bytes(b"")
    build(read_run(folder))
    assert "gray / picard / seed 1: the record is empty" in Page((folder / "report.html").read_text()).words


def test_without_the_extra_the_table_is_written_and_the_rest_explained(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else found(name))
    written = build(read_run(folder))
    assert [path.name for path in written.files] == ["table.md", "table.csv"]
    assert "matplotlib" in written.missing
    assert "pip install 'fixedpoint-solvers[report]'" in written.missing


def test_a_curve_is_the_worst_row_of_all_seeds_and_finished_rows_keep_their_error(folder: Path) -> None:
    run = read_run(folder)
    group = run.groups[0]
    curve = next(curve for curve in curves_of(group) if curve.solver == "picard")
    traces = [e.arrays["trace.relative_error"] for e in group.entries if e.cell.solver == "picard"]
    assert len(curve.worst) == max(len(trace) for trace in traces) == curve.rounds
    assert curve.worst[0] == max(trace[0].max() for trace in traces)
    assert curve.best[0] == min(trace[0].min() for trace in traces)
    assert np.isfinite(curve.worst).all()
    assert curve.worst[-1] <= 1e-8


def test_every_solver_has_a_stroke_of_its_own(folder: Path) -> None:
    run = read_run(folder)
    found = strokes(run.solvers, solvers_with_curve(run.groups))
    assert list(found) == run.solvers
    many = [f"solver {i}" for i in range(20)]
    assert len({(s.colour, str(s.dashes)) for s in strokes(many, many).values()}) == 20


def test_pictures_are_enlarged_pixel_by_pixel(folder: Path) -> None:
    gray, colour = (strips_of(group) for group in read_run(folder).groups[:2])
    assert [strip.label for strip in gray] == ["reference", "picard", "Anderson <1965> & friends $\\frac$", "Broyden"]
    image = matplotlib.image.imread(io.BytesIO(strip_png(gray[0])))
    factor = 12
    assert image.shape[:2] == (8 * factor, 3 * 8 * factor + 2 * 4)
    first = image[: 8 * factor, : 8 * factor, 0]
    assert (first == first[::factor, ::factor].repeat(factor, 0).repeat(factor, 1)).all()
    assert gray[0].pixels.min() == 0.0
    assert gray[0].pixels.max() == 1.0
    np.testing.assert_allclose(colour[0].pixels[..., 1], 1.0 - colour[0].pixels[..., 0])
