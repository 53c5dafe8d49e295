"""Statuses of all rows: they read like a tuple, and sentences are counted as row by row."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import fixedpoint
from fixedpoint import Status
from fixedpoint.core.statuses import Statuses

ALL = (Status.CONVERGED, Status.STALLED, Status.CONVERGED, Status.NONFINITE)


def test_they_equal_tuples_and_cannot_be_changed() -> None:
    found = Statuses(ALL)
    assert found == ALL
    assert found == Statuses(np.array([1, 3, 1, 5], dtype=np.int8))
    assert found != ALL[:3]
    assert found != (*ALL[:3], Status.STALLED)
    assert hash(found) == hash(ALL)
    assert repr(found) == repr(ALL)
    assert list(found) == list(ALL)
    assert found[1] is Status.STALLED
    assert found[-1] is Status.NONFINITE
    assert found[1:3] == ALL[1:3]
    assert Counter(found) == Counter(ALL)
    assert found.count(Status.CONVERGED) == 2
    assert found.present() == {Status.CONVERGED: 2, Status.STALLED: 1, Status.NONFINITE: 1}
    assert Status.MIXED not in found
    assert Status.STALLED in found
    assert pickle.loads(pickle.dumps(found)) == ALL
    with pytest.raises(ValueError, match="read-only"):
        found.codes[0] = 3
    with pytest.raises(IndexError):
        found[4]


def test_others_are_put_in_rows() -> None:
    found = Statuses(ALL)
    assert found.where(np.array([True, False, False, False]), Status.MIXED) == (Status.MIXED, *ALL[1:])
    assert found == ALL


def test_a_solution_takes_a_tuple_and_tells_all_rows() -> None:
    """The last two rows have no fixed point near zero: plain iteration of ``2 z`` diverges."""
    slope = torch.tensor([[0.5], [0.5], [2.0], [2.0]], dtype=torch.float64)
    solution = fixedpoint.solve(lambda z: slope * z + 1.0, torch.ones(4, 3, dtype=torch.float64), solver="picard")
    assert solution.converged.tolist() == [True, True, False, False]
    assert solution.message.splitlines()[0].startswith("2 of 4 rows converged: ")
    assert solution.message.splitlines()[1].startswith("2 of 4 rows diverged: ")
    other = replace(solution, status=ALL, notes={0: "unused", 3: "of its own"})
    assert other.status == ALL
    assert other.converged.tolist() == [True, False, True, False]
    lines = other.message.splitlines()
    assert lines[0] == f"2 of 4 rows converged: {Status.CONVERGED.sentence}"
    assert lines[1].startswith("1 of 4 rows stalled: ")
    assert lines[2] == "1 of 4 rows nonfinite: of its own"
    assert repr(other).startswith("Solution(2 converged, 1 stalled, 1 nonfinite; ")
