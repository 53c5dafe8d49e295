"""The tests for CUDA, on a device that stands in for it: what needs no GPU to be found is found without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(f"tests/gpu/{path.name}" for path in (ROOT / "tests/gpu").glob("test_*.py"))


@pytest.mark.parametrize("which", ["gpu and not slow", pytest.param("gpu and slow", marks=pytest.mark.slow)])
@pytest.mark.parametrize("files", [FILES[::2], FILES[1::2]], ids=" ".join)
def test_what_cuda_is_to_do_is_done_on_a_device_that_stands_in(files: list[str], which: str) -> None:
    """In a process of its own, since torch knows of the device from then on."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", which, "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "FIXEDPOINT_DEVICE": "standin", "OMP_NUM_THREADS": "1", "JAXTYPING_DISABLE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-5000:]
    summary = done.stdout.strip().splitlines()[-1]
    assert " passed" in summary
    assert "skipped" not in summary
