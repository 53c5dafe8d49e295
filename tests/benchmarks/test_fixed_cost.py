"""``benchmarks/fixed_cost.py``: the solves and the plain loops beside them do the same, and every row is printed."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

import fixedpoint

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fixed_cost import Sampler, cosine, main


def test_the_loops_do_what_the_solves_do() -> None:
    solve, plain = cosine("picard")
    assert math.isclose(plain(), solve().z, rel_tol=1e-6)
    sampler = Sampler()
    expected = sampler.loop()
    torch.testing.assert_close(sampler.serial().z[:, -1], expected, rtol=1e-12, atol=1e-12)
    found: fixedpoint.Solution = sampler.joint()
    assert float((found.z[:, -1] - expected).norm() / expected.norm()) < 1e-3


def test_every_case_is_printed_with_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    main(repeats=2, only="")
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(row[0], row[4]) for row in rows] == [
        ("cos, auto", "3.5 ms"),
        ("cos, picard", "8 ms"),
        ("chain, serial", "1.2 times"),
        ("chain, joint", "1.8 times"),
    ]
    assert all(float(cell) > 0 for row in rows for cell in row[1:4])
    assert {row[5] for row in rows} <= {"yes", "no"}
