"""Pace: a row is slow when its relative error has not fallen by a part within some rounds, row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixedpoint.core.pace import Pace


def slow_after(errors, rounds, part):
    """The number of the point at which a row is slow, from the definition; None if it never is."""
    mark, since = errors[0], 0
    for number, error in enumerate(errors[1:], start=1):
        if error <= part * mark:
            mark, since = error, number
        elif number - since >= rounds:
            return number
    return None


@given(
    rows=st.lists(
        st.lists(st.floats(1e-12, 1e6) | st.just(math.nan) | st.just(math.inf), min_size=20, max_size=20),
        min_size=1,
        max_size=4,
    ),
    rounds=st.integers(1, 8),
    part=st.sampled_from([0.5, 0.9, 1.0]),
)
def test_every_row_is_slow_where_the_definition_says(rows, rounds, part):
    rows = [[row[0] if math.isfinite(row[0]) else 1.0, *row[1:]] for row in rows]
    pace, found = Pace(rounds, part), [None] * len(rows)
    for number in range(20):
        pace = pace.updated(np.array([row[number] for row in rows]))
        for place, slow in enumerate(pace.slow.tolist()):
            if slow and found[place] is None:
                found[place] = number
    for row, number in zip(rows, found, strict=True):
        wanted = slow_after(row, rounds, part)
        if wanted is not None:  # a slow row ends, so what comes after is not asked
            assert number == wanted
        else:
            assert number is None


def test_a_row_that_converges_is_never_slow():
    pace = Pace(3, 0.9)
    for k in range(50):
        pace = pace.updated(np.array([0.9**k, 0.99**k]))
        assert not pace.slow[0]
        if k < 3:
            assert not pace.slow[1]
    assert pace.slow[1] or 0.99**3 <= 0.9


@pytest.mark.parametrize("start", [math.nan, math.inf])
def test_from_a_first_error_that_is_not_finite_any_finite_one_is_a_fall(start):
    pace = Pace(2, 0.9).updated(np.array([start]))
    pace = pace.updated(np.array([5.0]))
    assert pace.mark.tolist() == [5.0]
    assert pace.age.tolist() == [0]


def test_a_row_that_does_not_beat_its_rival_ends_after_its_number_of_points():
    most, rival = np.array([3.0, 3.0, 5.0]), np.array([0.5, 0.05, 0.0])
    pace, found = Pace(10, 0.9, most=most, rival=rival), []
    for k in range(6):
        pace = pace.updated(np.full(3, 0.5**k))
        found.append(pace.slow.tolist())
    assert [row[0] for row in found] == [False] * 6  # 0.25 at its third point
    assert [row[1] for row in found] == [False, False, True, True, True, False]
    assert [row[2] for row in found] == [False] * 4 + [True] * 2
