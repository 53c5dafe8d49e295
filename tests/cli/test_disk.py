"""A disk that is full or cannot be written: a sentence, exit status 1, and what was computed is kept."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from fixedpoint.cli.main import app

STUDY = "tasks: [toy]\nsolvers: [picard, anderson]\nseeds: [0, 1, 2]\n"


@pytest.fixture
def study(toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    ("writes", "reason"),
    [
        *((writes, errno.ENOSPC) for writes in range(0, 20, 3)),
        *(
            pytest.param(writes, errno.EROFS, marks=[pytest.mark.slow] if writes % 9 else [])
            for writes in range(0, 20, 3)
        ),
    ],
)
def test_whatever_cannot_be_written_is_a_sentence(
    study: Path, monkeypatch: pytest.MonkeyPatch, writes: int, reason: int
) -> None:
    """The disk fails after so many files: in the run's own, in a record, in the report."""
    sound = os.replace
    left = [writes]

    def replace(source: Any, target: Any) -> None:
        if not left[0]:
            raise OSError(reason, os.strerror(reason), str(source), None, str(target))
        left[0] -= 1
        sound(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        done = invoke("run", "study.yaml", "-o", "out")
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("cannot write out/")
    assert last.endswith(f": {os.strerror(reason)}")
    assert "fixedpoint-part" not in last  # the file that was wanted, not the one on the way to it
    kept = {path.name: path.stat().st_mtime_ns for path in (study / "out").glob("records/*.json")}
    again = invoke("run", "study.yaml", "-o", "out")
    assert again.exit_code == 0
    after = {path.name: path.stat().st_mtime_ns for path in (study / "out").glob("records/*.json")}
    assert len(after) == 6
    assert {name: after[name] for name in kept} == kept


def test_a_disk_that_is_really_full(tmp_path: Path, toy_environment: dict[str, str]) -> None:
    """The system refuses to write more than 1000 bytes to a file; every record is longer."""
    (tmp_path / "study.yaml").write_text(STUDY)
    done = subprocess.run(
        [sys.executable, "-m", "fixedpoint", "run", "study.yaml", "-o", "out"],
        cwd=tmp_path,
        env=toy_environment | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("cannot write out/")
    assert line.endswith(": File too large")


@pytest.mark.skipif(not os.path.ismount("/sys"), reason="requires a file system that nobody can write")
def test_a_folder_nobody_can_write(study: Path) -> None:
    done = invoke("run", "study.yaml", "-o", "/sys/fixedpoint")
    assert done.exit_code == 1
    assert done.stderr.startswith("cannot write /sys/fixedpoint: ")
    for command in (("init", "/sys/study.yaml"), ("schema", "-o", "/sys/run.schema.json")):
        done = invoke(*command)
        assert done.exit_code == 1
        assert done.stderr.startswith(f"cannot write {command[-1]}: ")
