"""The documentation in a real browser, narrow and wide: nothing spills over, and wide code fits where there is room."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

SPILLING = "[...document.querySelectorAll('pre code')].filter(code => code.scrollWidth > code.clientWidth + 1).length"


def test_no_page_is_wider_than_the_window(site: Path, browser: object) -> None:
    from playwright.sync_api import Browser

    assert isinstance(browser, Browser)
    page = browser.new_context().new_page()
    pages = [path for path in site.rglob("index.html") if path.parent.name != "api"]
    assert len(pages) > 12
    for path in pages:
        where = path.parent.relative_to(site)
        page.goto(path.as_uri())
        for width in (400, 1400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (where, width)
        if where.name not in ("design", "measurements"):
            assert page.evaluate(SPILLING) == 0, where
