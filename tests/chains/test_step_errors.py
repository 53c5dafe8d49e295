"""What a chain solve tells of its states: numbers of rounds, and a part of it small enough to be kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from draws import examples
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint
from fixedpoint import ChainSolver
from fixedpoint.chains.joint.start import NestedStart
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.step_errors import StepErrors
from fixedpoint.testing.chains import wave_chain


def solved(length: int, seed: int, rows: int = 3, **options: object) -> tuple[StepErrors, fixedpoint.Solution]:
    x0 = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    problem = ChainProblem(wave_chain(length=length, rows=rows, seed=seed), x0)
    solution = fixedpoint.solve(problem, solver=ChainSolver(**options), rtol=1e-6)
    errors = solution.extras["step_errors"]
    assert isinstance(errors, StepErrors)
    return errors, solution


@examples(25, 60)
@given(
    length=st.integers(1, 30),
    width=st.integers(1, 32),
    seed=st.integers(0, 10**6),
    most=st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40)),
)
def test_every_value_that_is_kept_is_one_of_its_row_and_round(
    length: int, width: int, seed: int, most: tuple[int, int, int]
) -> None:
    errors, solution = solved(length, seed, window=width)
    kept, numbers, steps = errors.thinned(*most)
    assert kept.shape == (min(3, most[0]), len(numbers), len(steps))
    assert kept.dtype == np.float32
    assert len(numbers) <= most[1]
    assert len(steps) <= most[2]
    assert (numbers[-1], steps[-1]) == (solution.counts.rounds, length)
    for name, these, all_of_them in (("rounds", numbers, set(errors.numbers)), ("steps", steps, range(1, length + 1))):
        assert set(these.tolist()) <= set(all_of_them), name
        assert len(set(np.diff(these).tolist())) <= 1, name
        assert len(these) == len(all_of_them) or len(these) > most[1 + (name == "steps")] // 2, name
    for row in range(len(kept)):
        full = errors.of_row(row)
        for number, found in zip(numbers, kept[row], strict=True):
            looks = full[np.array(errors.numbers) == number]
            running = looks[~np.isnan(looks).all(axis=1)]
            wanted = running[-1] if len(running) else np.full(length, np.nan, dtype=np.float32)
            np.testing.assert_array_equal(found, wanted[steps - 1])


def test_a_row_that_ends_in_a_round_of_two_looks_keeps_what_was_seen_first() -> None:
    nan = np.float32(np.nan)
    looks = (
        np.array([[0.5, 0.6], [0.7, 0.8]], dtype=np.float32),
        np.array([[nan, nan], [0.1, 0.2]], dtype=np.float32),
    )
    offsets = (np.array([1, 0]), np.array([1, 1]))
    errors, numbers, steps = StepErrors(looks, offsets, 3, (4, 4)).thinned(2, 9, 9)
    np.testing.assert_array_equal(errors, np.array([[[nan, 0.5, 0.6]], [[nan, 0.1, 0.2]]], dtype=np.float32))
    assert (numbers.tolist(), steps.tolist()) == ([4], [1, 2, 3])


def test_rounds_of_the_start_come_before_the_first() -> None:
    begin = NestedStart(10, 3)
    errors, solution = solved(60, 1, start=begin)
    assert errors.numbers[0] == 3 + 1
    assert errors.numbers[-1] == solution.counts.rounds
    told: list[int] = []
    x0 = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    problem = ChainProblem(wave_chain(length=60, rows=3, seed=1), x0)
    fixedpoint.solve(problem, solver=ChainSolver(start=begin), rtol=1e-6, on_round=lambda now: told.append(now.round))
    assert list(errors.numbers) == told


@pytest.mark.parametrize("name", ["rows", "rounds", "steps"])
def test_none_of_something_is_refused(name: str) -> None:
    errors, _ = solved(4, 0)
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        errors.thinned(**{"rows": 1, "rounds": 1, "steps": 1, name: 0})
