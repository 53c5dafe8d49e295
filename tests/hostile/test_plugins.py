"""Broken and hostile plugins: a row with a sentence each, and everything else works."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parent))


from running import RUNNING, Running

from fixedpoint.cli.main import app
from fixedpoint.registry import Component, Registry, hookimpl, registry
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


@pytest.mark.parametrize("case", RUNNING, ids=lambda case: case.name)
def test_a_plugin_that_does_harm_in_a_run_is_told_and_the_exit_status_is_true(
    case: Running, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Plugin("", case.code, "").build(installed)
    (installed / "study.yaml").write_text(case.study)
    monkeypatch.chdir(installed)
    done = CliRunner().invoke(app, ["run", "study.yaml", "-o", "out", "--json"], catch_exceptions=False)
    assert done.exit_code == case.status, done.output
    assert re.search(case.said, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    records = [json.loads(path.read_text()) for path in installed.glob("out/records/*.json")]
    assert sum(record["status"] == "ok" for record in records) == case.good, records
    if case.status < 2:
        json.loads(done.stdout)


def test_a_hook_that_raises_keeps_no_other_from_being_called(installed: Path) -> None:
    heard = []

    class Sulky:
        @hookimpl
        def fixedpoint_run_finished(self, folder: Path) -> None:
            heard.append("sulky")
            raise SystemExit(0)

    class Polite:
        @hookimpl
        def fixedpoint_run_finished(self, folder: Path) -> None:
            heard.append("polite")

    for plugin, name in ((Polite(), "first"), (Sulky(), "second"), (Polite(), "third")):
        registry.register(plugin, name)
    said = [told for listener in registry.listeners("run_finished") if (told := listener(folder=installed))]
    assert heard == ["polite", "sulky", "polite"]
    assert said == [
        "the hook fixedpoint_run_finished of the plugin second raised SystemExit: 0, which would have ended the program"
    ]


@pytest.mark.parametrize("arguments", [("list", "--json"), ("show", "anderson", "--json"), ("schema",)])
def test_what_a_plugin_prints_at_import_stays_out_of_json(
    arguments: tuple[str, ...], tmp_path: Path, python: str
) -> None:
    next(each for each in PLUGINS if each.name == "prints").build(tmp_path)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [python, "-m", "fixedpoint", *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "anderson" in str(json.loads(done.stdout))
    assert {"{", "[]"} <= set(done.stderr.split())


def test_an_interrupt_at_import_is_still_an_interrupt(installed: Path) -> None:
    Plugin("", "raise KeyboardInterrupt", "").build(installed)
    with pytest.raises(KeyboardInterrupt):
        registry.names("solver")


def test_a_plugin_named_like_a_distribution_takes_only_its_own_away(installed: Path) -> None:
    class Empty:
        @hookimpl
        def fixedpoint_solvers(self) -> list[Component]:
            return [Component("own-solver", "nowhere:X")]

    plugin = Empty()
    registry.register(plugin, "fixedpoint-solvers")
    registry.unregister(plugin)
    assert "anderson" in registry.names("solver")
    assert "own-solver" not in registry.names("solver")
