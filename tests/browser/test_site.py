"""The documentation in a real browser, narrow and wide: nothing spills over, and wide code fits where there is room."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

# Every equation has been set, and is as wide and as high as it is drawn.
SET = (
    "(equations => equations.length > 0 && equations.every(each => each.querySelector('mjx-container svg')))"
    "([...document.querySelectorAll('.arithmatex')])"
)
FAULTY = "document.querySelectorAll('[data-mml-node=merror]').length"
SMALLEST = (
    "[...document.querySelectorAll('.arithmatex svg')].map(svg => svg.getBoundingClientRect())"
    ".reduce(([width, height], box) => [Math.min(width, box.width), Math.min(height, box.height)], [1e9, 1e9])"
)
SPILLING = "[...document.querySelectorAll('pre code')].filter(code => code.scrollWidth > code.clientWidth + 1).length"


def test_no_page_is_wider_than_the_window(site: Path, browser: object) -> None:
    from playwright.sync_api import Browser

    assert isinstance(browser, Browser)
    page = browser.new_context().new_page()
    pages = list(site.rglob("index.html"))
    assert len(pages) > 12
    for path in pages:
        where = path.parent.relative_to(site)
        page.goto(path.as_uri())
        for width in (400, 1400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (where, width)
        if where.name not in ("design", "measurements") and "api" not in where.parts:  # long defaults in signatures
            assert page.evaluate(SPILLING) == 0, where


@pytest.mark.parametrize("width", [400, 1400])
def test_equations_are_drawn_and_nothing_comes_from_elsewhere(site: Path, browser: object, width: int) -> None:
    from playwright.sync_api import Browser

    assert isinstance(browser, Browser)
    page = browser.new_context(viewport={"width": width, "height": 900}).new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    for name in ("index.html", "concepts/chains/index.html", "concepts/fixed-points/index.html"):
        page.goto((site / name).as_uri())
        page.wait_for_function(SET)
        assert page.evaluate(FAULTY) == 0, name
        narrow, low = page.evaluate(SMALLEST)
        assert narrow > 4, name
        assert low > 4, name
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_a_page_without_equations_does_not_load_what_sets_them(site: Path, browser: object) -> None:
    from playwright.sync_api import Browser

    assert isinstance(browser, Browser)
    page = browser.new_context().new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((site / "reference/run-files/index.html").as_uri())
    assert page.evaluate("document.querySelectorAll('.arithmatex').length") == 0
    assert [url for url in asked if "mathjax" in url] == []
