"""The report in a real browser, narrow and wide, light and dark: nothing spills over, all is drawn."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from fixedpoint.config.runfile import load
from fixedpoint.report.build import build
from fixedpoint.report.reading import read_run
from fixedpoint.runs.run import execute

pytestmark = pytest.mark.browser

STUDY = """
name: a_name_that_is_long_and_has_no_space_in_it_at_all_so_that_it_must_be_broken_somewhere
tasks:
  - {name: toy, pictures: true, rows: 8}
  - {name: toy, label: broken, error: out of cheese}
  - {name: ddim-sampling, label: chain, model: shapes, num_inference_steps: 12, batch: 2}
solvers:
  - picard
  - {name: anderson, label: "Anderson, with a label that is rather longer than labels ought to be"}
  - {name: chain, window: 4, label: a_window_that_has_a_name_without_a_space_and_is_longer_than_its_panel_is_wide}
termination: {rtol: 1e-8}
"""


@pytest.fixture
def page_file(toys: ModuleType, once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    def study(folder: Path) -> None:
        (folder / "study.yaml").write_text(STUDY)
        execute(load(folder / "study.yaml"), folder / "run")
        build(read_run(folder / "run"))

    return once("a-long-report", study) / "run" / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_is_sound(page_file: Path, browser: object, width: int, scheme: str) -> None:
    from playwright.sync_api import Browser

    assert isinstance(browser, Browser)
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if scheme == "dark" else "light"
    )
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    images = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
    films = page.evaluate(
        "[...document.querySelectorAll('.film ol')].map(film => [...film.children].map(frame => {"
        "const {left, right, top} = frame.getBoundingClientRect(); return [left, right, top]}))"
    )
    assert len(films) == 3
    for film in films:  # side by side, in one line, none over another
        assert len({top for _, _, top in film}) == 1
        assert all(right <= left for (_, right, _), (left, _, _) in itertools.pairwise(film))
    assert len(images) == 3 + 4 + sum(len(film) for film in films)
    assert all(images)
    plots = page.evaluate("[...document.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect().width)")
    assert [drawn > 0 for drawn in plots] == ([False, True] if width == 400 else [True, False]) * 2
    heatmap = page.locator("section", has=page.get_by_role("heading", name="Step by step: chain"))
    assert heatmap.get_by_role("img", name="Relative error of every step").count() == 1  # one of the two is shown
    colours = heatmap.locator("svg image")
    assert colours.count() == 2 * (3 + 1)
    shown = [box for box in (colours.nth(i).bounding_box() for i in range(8)) if box and box["width"] > 0]
    assert len(shown) == 4
    assert min(box["width"] for box in shown) > 60
    assert "pixelated" in colours.first.evaluate("image => getComputedStyle(image).imageRendering")
    paper, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color].map("
        "c => c.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0))"
    )
    assert (paper < ink) == (scheme == "dark")
    context.close()
