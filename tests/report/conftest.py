"""A run to report on: two tasks, two seeds, pictures, a failure, a skipped cell, NaN; and one of chains."""

from __future__ import annotations

import shutil
from collections.abc import Callable
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

CHAINS = r"""
name: chains
tasks:
  - {name: ddim-sampling, label: shapes & more, model: shapes, num_inference_steps: 12, batch: 2}
  - {name: ddim-sampling, label: points, model: gaussian-mixture, num_inference_steps: 9, batch: 2}
solvers:
  - serial
  - {name: chain, window: 4, label: "in a window $\\frac$"}
  - {name: chain, label: joint}
seeds: [1, 2]
termination: {rtol: 1e-3}
"""


Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture
def folder(tmp_path: Path, toys: ModuleType, once: Once) -> Path:
    def study(place: Path) -> None:
        (place / "study.yaml").write_text(STUDY)
        execute(load(place / "study.yaml"), place / "run")

    return shutil.copytree(once("toys-and-games", study) / "run", tmp_path / "run")


@pytest.fixture(scope="session")
def solved_chains(once: Once) -> Path:
    """A run of chains, not to be written to."""

    def study(place: Path) -> None:
        (place / "chains.yaml").write_text(CHAINS)
        execute(load(place / "chains.yaml"), place / "run")

    return once("chains", study) / "run"


@pytest.fixture
def chains(solved_chains: Path, tmp_path: Path) -> Path:
    return shutil.copytree(solved_chains, tmp_path / "chains")
