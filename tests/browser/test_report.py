"""The report in a real browser, narrow and wide, light and dark: nothing spills over, all is drawn."""

from __future__ import annotations

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
solvers:
  - picard
  - {name: anderson, label: "Anderson, with a label that is rather longer than labels ought to be"}
termination: {rtol: 1e-8}
"""


@pytest.fixture
def page_file(tmp_path: Path, toys: ModuleType) -> Path:
    (tmp_path / "study.yaml").write_text(STUDY)
    execute(load(tmp_path / "study.yaml"), tmp_path / "run")
    build(read_run(tmp_path / "run"))
    return tmp_path / "run" / "report.html"


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
    assert len(images) == 3
    assert all(images)
    plots = page.evaluate("[...document.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect().width)")
    assert [drawn > 0 for drawn in plots] == ([False, True] if width == 400 else [True, False])
    paper, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color].map("
        "c => c.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0))"
    )
    assert (paper < ink) == (scheme == "dark")
    context.close()
