"""Rows judged in plain floats and among others: the same verdicts, from the first point to the last."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixedpoint import Termination, solve
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.pace import Pace
from fixedpoint.core.point import Numbers
from fixedpoint.core.problem import FunctionProblem, HasMeasure, Measure
from fixedpoint.core.termination import Judge

NUMBER = st.floats(1e-12, 1e12) | st.sampled_from([0.0, math.inf, math.nan])
ROUNDS = 40


@st.composite
def courses(draw: st.DrawFn) -> list[tuple[list[float], list[float]]]:
    """Errors and scales of some rows: walks of many kinds, with values that are not finite in between."""
    rows = []
    for _ in range(draw(st.integers(2, 4))):
        generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        trend = draw(st.sampled_from([-0.5, -0.05, 0.0, 0.3]))
        error = np.exp(np.cumsum(trend + draw(st.sampled_from([0.0, 0.2, 2.0])) * generator.standard_normal(ROUNDS)))
        scale = np.exp(np.cumsum(draw(st.sampled_from([0.0, 0.3])) + 0.1 * generator.standard_normal(ROUNDS)))
        for place in draw(st.lists(st.integers(0, ROUNDS - 1), max_size=5)):
            error[place] = draw(NUMBER)
        rows.append((error.tolist(), scale.tolist()))
    return rows


@given(rows=courses(), patience=st.sampled_from([2, 8]), paced=st.booleans())
@settings(max_examples=150)
def test_a_row_is_judged_as_among_others(
    rows: list[tuple[list[float], list[float]]], patience: int, paced: bool
) -> None:
    rule = Termination(rtol=1e-4, patience=patience)

    def judge() -> Judge:
        return Judge(rule, torch.float64, pace=Pace(5, 0.9) if paced else None)

    together, alone = judge(), [judge() for _ in rows]
    for k in range(ROUNDS):
        error = np.array([[errors[k]] for errors, _ in rows])
        scale = np.array([[scales[k]] for _, scales in rows])
        found = together(Numbers.of(error, scale))
        for row, own in enumerate(alone):
            verdict = own(Numbers.of(error[row : row + 1], scale[row : row + 1]))
            assert verdict.codes(1)[0] == found.codes(len(rows))[row]
            again = 0 if found.again is None else found.again[row]
            assert (0 if verdict.again is None else verdict.again[0]) == again


def test_rows_that_are_left_are_judged_as_before() -> None:
    rule = Termination(rtol=1e-4, patience=4)
    generator = np.random.default_rng(0)
    errors = np.exp(generator.standard_normal((30, 3)).cumsum(axis=0))
    whole, part = Judge(rule, torch.float64), Judge(rule, torch.float64)
    for k, error in enumerate(errors):
        found = whole(Numbers.of(error[:, None], np.ones((3, 1)))).codes(3)
        if k < 10:
            part(Numbers.of(error[:, None], np.ones((3, 1))))
            continue
        if k == 10:
            part = part.select_rows(np.array([1]))
        assert part(Numbers.of(error[1:2, None], np.ones((1, 1)))).codes(1)[0] == found[1]


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_a_row_out_of_range_changes_no_bit_of_its_neighbours(size: float) -> None:
    z = torch.randn(60, 37, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wild = z.clone()
    wild[1] *= size
    found = [Evaluator(FunctionProblem(lambda z: 0.5 * z, start))(start) for start in (z, wild)]
    tame, other = (at.numbers for at in found)
    assert tame is not None
    assert other is not None
    for one, two in ((tame.error, other.error), (tame.scale, other.scale)):
        np.testing.assert_array_equal(np.delete(one, 1, axis=0), np.delete(two, 1, axis=0))
    assert 0 < other.error[1, 0] < math.inf
    np.testing.assert_allclose(other.error[1, 0], float((0.5 * z[1]).norm()) * size, rtol=1e-12)


class Reusing(FunctionProblem, HasMeasure):
    """An affine map whose measure fills the same tensors at every call."""

    def __init__(self, slope: float) -> None:
        super().__init__(lambda z: slope * z + 1, torch.zeros(2, 3, dtype=torch.float64))
        self.error, self.scale = torch.zeros(2, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)

    def measure(self, z: torch.Tensor, fz: torch.Tensor, residual: torch.Tensor) -> Measure:
        return Measure(self.error.copy_(residual.norm(dim=1, keepdim=True)), self.scale)


def test_a_measure_may_use_its_memory_again() -> None:
    """What is noted of a point does not change with the next one: its trace, nor the best point, here the first."""
    error = solve(Reusing(0.5), solver="picard", rtol=1e-3).trace.error
    np.testing.assert_allclose(error[1:] / error[:-1], 0.5, rtol=1e-12)
    diverging = solve(Reusing(2.0), solver="picard", max_rounds=5)
    assert (
        diverging.error.flatten().tolist() == diverging.trace.error[0].tolist() == diverging.trace.error.min(0).tolist()
    )
