"""Broken and hostile plugins: a row with a sentence each, and everything else works."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parent))


from fixedpoint.cli.main import app
from fixedpoint.registry import Registry, registry
from fixedpoint.registry.owners import _plugins
from plugins import PLUGINS, Plugin

QUICK = ("import: sys.exit(0)", "hook: exits", "hook: none", "two distributions, one name, both good", "prints")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path; the registry of this process finds anew what is there."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    _plugins.cache_clear()
    Registry.__init__(registry)
    yield tmp_path
    monkeypatch.undo()
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    importlib.invalidate_caches()
    _plugins.cache_clear()
    Registry.__init__(registry)


def output_of(*arguments: str, status: int) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == status, done.output
    assert "Traceback" not in done.output
    return done.stdout


@pytest.mark.parametrize(
    "plugin",
    [pytest.param(each, id=each.name, marks=() if each.name in QUICK else pytest.mark.slow) for each in PLUGINS],
)
def test_a_broken_plugin_is_a_row_and_nothing_else_is_touched(plugin: Plugin, installed: Path) -> None:
    plugin.build(installed)
    doctor = json.loads(output_of("doctor", "--json", status=1 if plugin.row else 0))
    rows = [" ".join(row[key] for key in ("name", "kind", "source", "reason")) for row in doctor["broken"]]
    assert len(rows) == bool(plugin.row), rows
    assert all(re.search(plugin.row, row) for row in rows), rows
    listed = json.loads(output_of("list", "--json", status=0))
    assert {"anderson", "picard"} <= {each["name"] for each in listed["components"]}
    output_of("list", status=0)
    assert json.loads(output_of("show", "anderson", "--json", status=0))[0]["name"] == "anderson"
    output_of("show", "own", status=2)
    output_of("check", "no-such-solver", status=2)
    assert json.loads(output_of("schema", status=0))["title"] == "fixedpoint run file"


def test_names_are_not_given_twice() -> None:
    assert len({each.name for each in PLUGINS}) == len(PLUGINS)
