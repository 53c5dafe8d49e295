"""Ctrl-C: a sentence, status 130, at most the cell in flight lost, and the same command goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CELLS = 12

CAUGHT_IN_AN_EXEC = """
from fixedpoint.runs.interrupts import forget_caught
try:
    exec("raise KeyboardInterrupt")
except KeyboardInterrupt:
    {handling}
raise SystemExit(130)
"""
STUDY = f"tasks: [{{name: toy, seconds: 0.15}}]\nsolvers: [picard]\nseeds: {list(range(CELLS))}\n"


@pytest.mark.parametrize("wanted", [0, 3])
def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, toy_environment: dict[str, str], python: str, wanted: int
) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    command = ["-m", "fixedpoint", "run", "study.yaml", "--output", "out"]
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=tmp_path,
        env=toy_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Started in the background, the tests themselves may have been told to ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    records = tmp_path / "out" / "records"
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "run.json").exists() or len(list(records.glob("*.json"))) < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    kept = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert wanted <= len(kept) < CELLS
    last = said.splitlines()[-1]
    assert (
        last
        == f"interrupted; {len(kept)} of {CELLS} cells have their record; the same command again goes on from there"
    )
    assert json.loads((tmp_path / "out" / "run.json").read_text())["finished"] is None

    again = subprocess.run(
        [python, *command], cwd=tmp_path, env=toy_environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert f"[{CELLS - len(kept)}/{CELLS - len(kept)}]" in again.stderr
    after = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert len(after) == CELLS
    assert {name: after[name] for name in kept} == kept


@pytest.mark.parametrize(("handling", "status"), [("pass", -signal.SIGINT), ("forget_caught()", 130)])
def test_an_interrupt_caught_within_an_exec_does_not_cost_the_exit_status(
    tmp_path: Path, handling: str, status: int
) -> None:
    (tmp_path / "caught.py").write_text(CAUGHT_IN_AN_EXEC.format(handling=handling))
    command = [sys.executable, "-m", "caught"]
    assert subprocess.run(command, cwd=tmp_path, timeout=60, check=False).returncode == status
