"""Runs that are interrupted or killed at any moment: the same command completes them, and nothing is different."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

STUDY = f"""
name: study
tasks:
  - {{name: ddim-sampling, model: shapes, num_inference_steps: 12, batch: 2}}
solvers: [serial, picard, anderson]
seeds: {list(range(4))}
"""
CELLS = 12
COMMAND = ["-m", "fixedpoint", "run", "study.yaml", "--output"]
TIMINGS = ("seconds", "started", "finished", "checksum")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, python: str) -> Path:
    """A folder with the run file and the uninterrupted run."""
    place = tmp_path_factory.mktemp("study")
    (place / "study.yaml").write_text(STUDY)
    command = [python, *COMMAND, "whole"]
    subprocess.run(command, cwd=place, env=environment(), check=True, capture_output=True, timeout=120)
    return place


def records(run: Path) -> dict[str, dict[str, Any]]:
    """Every record, but for what is different each time."""
    found = {path.name: json.loads(path.read_text()) for path in (run / "records").glob("*.json")}
    return {name: {key: data[key] for key in data if key not in TIMINGS} for name, data in found.items()}


def kept(run: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (run / "records").glob("*.json")}


def stopped(folder: Path, run: Path, number: signal.Signals, chance: random.Random) -> subprocess.Popen[str]:
    """A run that was given the signal at a moment drawn by chance."""
    process = subprocess.Popen(
        [sys.executable, *COMMAND, run.name],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Started in the background, the tests themselves may have been told to ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wanted = chance.randrange(CELLS)
    deadline = time.monotonic() + 60
    while not (run / "run.json").exists() or len(kept(run)) < wanted:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(chance.random() * 0.03)  # about the time of a cell
    process.send_signal(number)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("moment", [pytest.param(k, marks=[pytest.mark.slow] if k else []) for k in range(10)])
def test_a_run_stopped_at_any_moment_is_completed(
    folder: Path, python: str, number: signal.Signals, moment: int
) -> None:
    chance = random.Random(100 * moment + number)
    run = folder / f"{number.name}-{moment}"
    process = stopped(folder, run, number, chance)
    said = process.communicate(timeout=60)[1]
    assert "Traceback" not in said
    before = kept(run)
    # Asked to stop as it writes its report, when every cell has its record, a run may also be done.
    assert process.returncode in ({130, 0} if len(before) == CELLS else {130}) or number == signal.SIGKILL
    info = json.loads((run / "run.json").read_text())
    assert (info["finished"] is None) or len(before) == CELLS

    again = subprocess.run(
        [python, *COMMAND, run.name],
        cwd=folder,
        env=environment(),
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    redone = CELLS - len(before)
    assert again.stderr.count("\n") == redone, again.stderr  # a line a cell, and no complaint
    after = kept(run)
    assert {name: after[name] for name in before} == before
    assert records(run) == records(folder / "whole")
    for path in (folder / "whole" / "arrays").iterdir():
        with np.load(path) as expected, np.load(run / "arrays" / path.name) as found:
            assert expected.files == found.files
            assert all(np.array_equal(expected[name], found[name], equal_nan=True) for name in expected.files)
    assert not [path for path in run.rglob(".*") if path.is_file()]  # nothing half written is left
