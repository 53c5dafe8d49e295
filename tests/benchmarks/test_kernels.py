"""``benchmarks/kernels.py``: counts on the device that stands in, and the limits of what a round may launch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_round_of_picard_and_anderson_is_within_its_limit() -> None:
    """In a process of its own, since torch knows of the device from then on."""
    rows = table("--only", "picard") | table("--only", "anderson")
    assert set(rows) == {"picard", "anderson", "anderson, type I"}
    for name, limit in (("picard", 20), ("anderson", 40)):
        kernels, told, waits = rows[name]
        assert int(told) == limit
        assert 3 <= float(kernels) <= limit
        assert int(waits) == 1


def test_a_round_of_a_joint_chain_waits_once() -> None:
    kernels, told, waits = table("--only", "chain")["chain, joint"]
    assert float(kernels) > 0
    assert int(told) == 60
    assert int(waits) == 1


def table(*options: str) -> dict[str, list[str]]:
    """The printed rows by their names."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "benchmarks/kernels.py", *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:] if line]
    return {row[0]: row[1:4] for row in rows}
