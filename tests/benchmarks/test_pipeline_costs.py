"""The memory of a call of a pipeline, as ``benchmarks/pipeline_costs.py`` measures it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from pipeline_costs import FORMS, fresh


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_peak_is_that_of_a_network_call_and_the_states(form: str) -> None:
    found = fresh(form, steps=50, size=32)
    assert found["peak"] < found["limit"]
