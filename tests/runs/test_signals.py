"""Signals at random moments, while cells are computed, while the report is written, and while images are inverted.

Whatever was done before is whole and there once; the same command again completes it, and nothing is different.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from fixedpoint.cli.main import main
from fixedpoint.config.record import read_arrays, read_record
from tests.support.tiny_model import save_tiny_model

STUDY = """
name: study
tasks: [{name: linear-contraction, size: 50, batch: 2}]
solvers: [picard, anderson]
seeds: [0, 1, 2, 3]
"""
CELLS, IMAGES = 8, 12
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RUN = ("run", "study.yaml", "-o")
INVERT = (
    "invert",
    "images",
    "--model",
    "model",
    "--steps",
    "2",
    "--tolerance",
    "9",
    "--clip",
    "ignore",
    "--batch",
    "2",
    "-o",
)
TIMINGS = ("seconds", "started", "finished", "checksum")


def forked(arguments: tuple[str, ...]) -> int:
    """The command in a process that has everything imported, and Python's own way with signals."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        for number in SIGNALS[1:]:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        sys.stdin, sys.stdout, sys.stderr = (open(number, mode) for number, mode in ((0, "r"), (1, "w"), (2, "w")))  # noqa: SIM115
        sys.argv = ["fixedpoint", *arguments]
        main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        os._exit(status)


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def complete(*arguments: str) -> float:
    """Carry a command out to its end; the seconds it took."""
    began = time.monotonic()
    assert ended(forked(arguments)) == 0
    return time.monotonic() - began


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    (folder / "study.yaml").write_text(STUDY)
    chance = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(IMAGES):
        Image.fromarray(chance.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / "images" / f"{number:02d}.png")
    save_tiny_model(folder / "model")
    return folder


def records(run: Path) -> dict[str, dict[str, Any]]:
    """Every record, which must be whole and have its arrays, but for what is different each time."""
    found = {}
    for path in (run / "records").glob("*.json"):
        record = read_record(path, path.stem)
        read_arrays(run / "arrays" / f"{path.stem}.npz", record)
        data = json.loads(path.read_text())
        found[path.stem] = {key: data[key] for key in data if key not in (*TIMINGS, "arrays")}
    return found


def images(out: Path) -> dict[str, bytes]:
    """The latents of every image by its name, which must be there once, and have its picture."""
    found: dict[str, bytes] = {}
    for path in sorted((out / "latents").glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            rows, latents = json.loads(file.metadata()["rows"]), file.get_tensor("latents")
        assert len(rows) == len(latents)
        for row, latent in zip(rows, latents, strict=True):
            assert row["name"] not in found
            found[row["name"]] = latent.numpy().tobytes()
            with Image.open(row["reconstruction"]) as picture:
                picture.load()
    return found


@pytest.mark.parametrize("count", [4, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
@pytest.mark.parametrize(("command", "look", "total"), [(RUN, records, CELLS), (INVERT, images, IMAGES)])
def test_signals_at_random_moments(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    look: Callable[[Path], dict[str, Any]],
    total: int,
    count: int,
) -> None:
    monkeypatch.chdir(place)
    name = command[0]
    complete(*command, f"{name}-{count}-warm")  # the first one imports what is imported late
    seconds = complete(*command, f"{name}-{count}-whole")
    whole = look(place / f"{name}-{count}-whole")
    assert len(whole) == total
    chance = random.Random(7)
    statuses: dict[int, int] = {}
    out, kept = place / f"{name}-{count}-0", {}
    for number in range(count):
        process = forked((*command, out.name))
        time.sleep(chance.random() * 1.05 * seconds)
        os.kill(process, chance.choice(SIGNALS))
        status = ended(process)
        statuses[status] = statuses.get(status, 0) + 1
        assert status in (0, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP)
        found = look(out) if out.exists() else {}
        assert found.items() <= whole.items()
        if name == "run":  # an inversion begins anew
            assert kept.items() <= found.items()
            kept = found
        if number % 10 == 9 or number == count - 1:
            complete(*command, out.name)
            assert look(out) == whole
            assert not [path for path in out.rglob(".*") if path.is_file()]  # nothing half written is left
            out, kept = place / f"{name}-{count}-{number + 1}", {}
    assert count < 100 or len(statuses) >= 4, statuses
