"""Hostile inputs, one by one: a sentence in time, and nothing written elsewhere, executed or sent.

Every tenth entry runs in the process of the tests, all of them in processes of their own in the slow suite.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.font_manager  # noqa: F401 -- while HOME is what it is, where it keeps its cache
import pytest
from typer.testing import CliRunner

from tests.support.tiny_model import save_tiny_model

sys.path.insert(0, str(Path(__file__).parents[1]))

from hostile import folder_entries, image_entries, run_entries
from hostile.driver import watch
from hostile.table import GOOD, SECONDS, Entry, Sandbox, problems, snapshot, started

from fixedpoint.cli.main import app
from fixedpoint.config.runfile import load
from fixedpoint.runs.run import execute

SOURCES = (
    *(run_entries.run_files, run_entries.labels, run_entries.overrides, run_entries.special_files),
    *(run_entries.outputs, run_entries.environments),
    *(folder_entries.places, folder_entries.records, folder_entries.archives),
    *(image_entries.files, image_entries.names, image_entries.outputs),
)
ENTRIES = [entry for source in SOURCES for entry in source()]
INSIDE = [entry for entry in ENTRIES if not entry.alone][::10]


def _id(entry: Entry) -> str:
    return "".join(c if c.isascii() and c.isprintable() and c not in "[]/\\" else "_" for c in entry.name)[:80]


@pytest.fixture(scope="session", autouse=True)
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A finished run, and a model of one layer, which entries copy."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "study.yaml").write_text(GOOD)
    execute(load(folder / "study.yaml"), folder / "run")
    save_tiny_model(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIXEDPOINT_HOSTILE_RUN", str(folder / "run"))
        patch.setenv("FIXEDPOINT_HOSTILE_MODEL", str(folder / "model"))
        yield


class Watch:
    """The audit hook of this process, which cannot be taken away again, only told to look elsewhere."""

    root: str | None = None
    seen: list[str] = []  # noqa: RUF012

    @classmethod
    def hook(cls, event: str, arguments: tuple[Any, ...]) -> None:
        if cls.root is not None:
            watch(cls.root, cls.seen.append)(event, arguments)


sys.addaudithook(Watch.hook)


def test_the_table_has_entries_of_every_kind() -> None:
    names = [entry.name for entry in ENTRIES]
    assert len(names) == len(set(names)) >= 400
    assert len(INSIDE) >= 40
    assert {source for source in SOURCES if not any(source())} == set()


@pytest.mark.parametrize("entry", INSIDE, ids=_id)
def test_in_this_process(entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Sandbox.made(tmp_path / "box")
    entry.prepare(box)
    before = snapshot(box)
    monkeypatch.chdir(box.work)
    monkeypatch.setenv("HOME", str(box.root / "home"))
    monkeypatch.setattr(Watch, "seen", [])
    monkeypatch.setattr(Watch, "root", str(tmp_path))
    done = CliRunner().invoke(app, list(entry.arguments), env={"COLUMNS": "100"})
    Watch.root = None
    monkeypatch.undo()
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert problems(entry, done.exit_code, done.output, before, snapshot(box)) == []
    assert Watch.seen == []


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=_id)
def test_in_a_process(entry: Entry, tmp_path: Path, python: str) -> None:
    box = Sandbox.made(tmp_path / "box")
    entry.prepare(box)
    before = snapshot(box)
    done = started(entry, box, python)
    said = "\n".join(stream.decode(entry.encoding, "replace") for stream in (done.stdout, done.stderr))
    assert problems(entry, done.returncode, said, before, snapshot(box)) == [], said[-3000:]
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_the_watch_sees(tmp_path: Path, python: str) -> None:
    """What it is to see: a file elsewhere, a process, a socket, a pickle; and a loop without end."""
    elsewhere = tmp_path / "elsewhere"
    for program, word in (
        (f"with open({str(elsewhere)!r}, 'w'): pass", "for writing"),
        ("import os; os.system('true')", "os.system"),
        ("import socket\nwith socket.socket() as own: own.connect(('127.0.0.1', 9))", "socket.connect"),
        ("import pickle; pickle.loads(b'cposix\\nsystem\\n.')", "pickle.find_class"),
    ):
        seen: list[str] = []
        watching = watch(str(tmp_path / "box"), seen.append)
        Watch.root, Watch.seen = str(tmp_path / "box"), seen
        try:
            exec(program, {})
        except OSError:
            pass
        finally:
            Watch.root = None
        assert any(word in sentence for sentence in seen), program
        assert watching is not None
    assert SECONDS == 10
    assert os.path.exists(elsewhere)
