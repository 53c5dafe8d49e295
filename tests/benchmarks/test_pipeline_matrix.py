"""Pairs of ``benchmarks/pipeline_matrix.py``: serial runs have the own bits, joint ones are within the limit."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from pipeline_matrix import FLOWS, SCHEDULERS, Cell, fits, measured, page, pairs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "pipelines.md"
SAMPLE = [("flux", "flow Euler"), ("pixart", "DPM++ 2M SDE")]


@pytest.fixture(autouse=True)
def forked():
    with torch.random.fork_rng(devices=[]):
        yield


def assert_comes_out(name: str, cell: Cell) -> None:
    assert cell.by_pipeline or cell.refused is None
    if cell.refused is None:
        assert cell.within, str(cell)
        assert cell.serial <= (1e-5 if name in ("img2img", "sdxl-refiner") else 0.0)


@pytest.mark.parametrize(("name", "key"), SAMPLE)
def test_sample(name, key):
    cell = measured(name, key, steps=10)
    assert_comes_out(name, cell)
    assert cell.refused is None


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), pairs())
def test_every_pair(name, key):
    cell = measured(name, key)
    assert_comes_out(name, cell)
    # The page has its form, or says that it was refused.
    assert entry(name, key).startswith("(" if cell.refused is not None else cell.form)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, key in pairs() if name not in ("ddpm", "ddim", "dit") and key[0] in "DEUf"]
)
def test_decoded_images(name, key):
    assert_comes_out(name, measured(name, key, steps=12, output_type="np"))


def entry(name: str, key: str) -> str:
    """What the page says of a pair."""
    tables = re.findall(r"^\| \|.*?(?:\n\n)", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    header, _, *rows = (line.strip("| ").split("|") for line in tables[name in FLOWS].strip().splitlines())
    column = [each.strip() for each in header].index(name) + 1
    row = next(each for each in rows if each[0].strip() == key)
    return row[column].strip()


@pytest.mark.parametrize(("name", "key"), pairs())
def test_page_has_every_pair_and_no_mark(name, key):
    assert entry(name, key)
    assert "!" not in entry(name, key)


def test_schedulers_of_flows_are_for_flows():
    assert not fits("sd1", "flow Euler")
    assert not fits("flux", "PNDM")
    assert all(any(fits(name, key) for name in ("sd1", "sd3")) for key in SCHEDULERS)


def test_sentences_are_numbered_and_misses_are_marked():
    cells = {
        ("sd1", "DDIM"): Cell(form="affine", rounds=5, length=20, converged=True, error=1e-4),
        ("sd1", "PNDM"): Cell(form="affine", rounds=5, length=20, converged=True, error=4e-3, moved=1e-3),
        ("dit", "DDIM"): Cell(refused="no such thing"),
        ("dit", "PNDM"): Cell(refused="no such thing"),
    }
    assert page(cells).splitlines() == [
        "| | sd1 | dit |",
        "|:--|:--|:--|",
        "| DDIM | affine 5/20 1e-04 | (1) |",
        "| PNDM | affine 5/20 4e-03 ! | (1) |",
        "",
        "1. no such thing",
    ]


@pytest.mark.parametrize(
    ("cell", "within"),
    [
        (Cell(converged=True, error=2e-3), True),
        (Cell(converged=False, error=2e-3), False),
        (Cell(converged=True, error=5e-3, moved=1e-3), False),
        (Cell(converged=True, error=5e-3, moved=2e-3), True),
    ],
)
def test_limit(cell, within):
    assert cell.within is within
