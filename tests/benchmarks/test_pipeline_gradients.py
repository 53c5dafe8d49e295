"""The memory of a gradient through a pipeline, as ``benchmarks/pipeline_gradients.py`` measures it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from pipeline_gradients import fresh

STEPS, ROWS = 50, 16


@pytest.mark.parametrize(
    "way",
    [
        "serial serial affine",
        pytest.param("joint joint affine", marks=pytest.mark.slow),
        pytest.param("joint joint tables", marks=pytest.mark.slow),
    ],
)
def test_the_peak_is_less_than_a_third_of_that_of_backpropagation(way: str) -> None:
    own, found = fresh("backpropagation", "sd1", STEPS, ROWS), fresh(way, "sd1", STEPS, ROWS)
    assert found["peak"] < own["peak"] / 3
    one, other = (torch.tensor(each["gradient"]).double() for each in (found, own))
    assert float((one - other).norm() / other.norm()) <= 1e-3
