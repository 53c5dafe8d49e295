"""A run to report on: two tasks, two seeds, pictures, a failure, a skipped cell, NaN."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from fixedpoint.config.runfile import load
from fixedpoint.runs.run import execute

STUDY = r"""
name: toys & <games>
tasks:
  - {name: toy, label: gray, pictures: true}
  - {name: toy, label: colour, pictures: true, colour: true, slope: {value: 0.9}}
  - {name: toy, label: broken, error: out of <cheese>}
solvers:
  - picard
  - {name: anderson, label: "Anderson <1965> & friends $\\frac$"}
  - {name: broyden, label: Broyden}
  - needy
seeds: [1, 2]
termination: {rtol: 1e-8, max_rounds: 40}
expect: {relative_error: 1e-3}
"""


@pytest.fixture
def folder(tmp_path: Path, toys: ModuleType) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    execute(load(file), tmp_path / "run")
    return tmp_path / "run"
