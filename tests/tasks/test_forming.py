"""Which rounds are drawn while nobody knows how many there will be, and what is made of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fixedpoint.core.progress import Progress
from fixedpoint.tasks.forming import Recorder
from fixedpoint.tasks.images import Images


def draw(states: torch.Tensor) -> Images:
    """A picture without any memory of its own, as the states of a CPU give it."""
    return Images(states.view(-1, 1, 1).numpy())


def told(recorder: Recorder, numbers: list[int], rows: int = 2) -> None:
    """Rounds whose state is their number, all in the same memory."""
    latest = torch.zeros(rows, 1, dtype=torch.float64)
    for number in numbers:
        latest[:] = number
        recorder(Progress(number, rows, 0.5, latest=latest))


def solution(last: int, value: float) -> Any:
    return SimpleNamespace(rounds=np.array([last, last + 7]), fstate=torch.full((2, 1), value, dtype=torch.float64))


@given(count=st.integers(1, 3000), first=st.integers(1, 9), beyond=st.integers(0, 20))
def test_a_few_rounds_evenly_spread_and_the_answer(count: int, first: int, beyond: int) -> None:
    recorder = Recorder(draw, 2)
    last = first + count - 1
    told(recorder, list(range(first, last + 1 + beyond)))  # other rows go on
    assert len(recorder.held) <= 14
    forming = recorder.formed(solution(last, -1.0))
    assert forming is not None
    rounds = forming.rounds
    assert len(rounds) <= 8
    assert len(rounds) >= min(count, 5) or beyond > count
    assert rounds[0] == first
    assert rounds[-1] == last
    gaps = np.diff(rounds)
    assert len(set(gaps[:-1].tolist())) <= 1
    assert (gaps > 0).all()
    np.testing.assert_array_equal(forming.images.pixels[:-1, 0, 0], rounds[:-1])  # what it was then, not since
    assert forming.images.pixels[-1, 0, 0] == -1.0


def test_up_to_eight_rounds_are_all_shown() -> None:
    recorder = Recorder(draw, 2)
    told(recorder, [3, 4, 5, 6, 7, 8, 9, 10])
    forming = recorder.formed(solution(10, 0.0))
    assert forming is not None
    assert forming.rounds.tolist() == [3, 4, 5, 6, 7, 8, 9, 10]


def test_a_solver_that_tells_nothing_has_nothing_drawn() -> None:
    recorder = Recorder(lambda _: pytest.fail("drawn"), 2)
    recorder(Progress(1, 2, 0.5))
    told(recorder, [2], rows=1)  # of some rows only: the first may be any
    assert recorder.formed(solution(2, 0.0)) is None


def test_who_listens_is_told_everything() -> None:
    heard: list[int] = []
    recorder = Recorder(draw, 2, lambda progress: heard.append(progress.round))
    told(recorder, [1, 2])
    told(recorder, [3], rows=1)
    recorder(Progress(4, 2, 0.5))
    assert heard == [1, 2, 3, 4]
