"""Termination and the one loop: which status a row ends with, and which point."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fixedpoint import ConvergenceError, Picard, Status, Termination, solve
from fixedpoint.core.options import OptionError
from fixedpoint.testing.problems import Hopeless, affine_contraction
from fixedpoint.testing.wrappers import Walled


def _column(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype).unsqueeze(1)


def _statuses(*args, **kwargs):
    return [status.label for status in solve(*args, **kwargs).status]


def test_a_row_stops_at_the_first_point_within_its_tolerance():
    solution = solve(lambda z: 0.5 * z + 1, _column(0.0), solver=Picard(), atol=1e-3, rtol=0.0)
    rounds = 1 + math.ceil(math.log2(1 / 1e-3))  # the error after k rounds is 2^-(k-1)
    assert solution.counts.rounds == rounds
    assert float(solution.error) == 2.0 ** (1 - rounds)
    assert float(solution.z) == 2 - 2.0 ** (2 - rounds)


def test_the_tolerance_is_absolute_plus_relative_to_the_state():
    def first_error(**tolerance):
        return float(solve(lambda z: 0.5 * z + 1e3, _column(0.0), solver=Picard(), **tolerance).error)

    assert 0.5e-1 < first_error(atol=0.1, rtol=0.0) <= 1e-1
    assert 1.0 < first_error(atol=0.0, rtol=1e-3) <= 2e3 * 1e-3
    assert 2.0 < first_error(atol=2.0, rtol=1e-3) <= 2.0 + 2e3 * 1e-3


def test_relative_to_start_means_the_first_error():
    solution = solve(
        lambda z: 0.5 * z + 1e6,
        _column(2e6 - 8.0),  # near a large solution: the first error is 4
        solver=Picard(),
        termination=Termination(rtol=1e-2, relative_to="start"),
    )
    assert 0.5 * 4e-2 < float(solution.error) <= 4e-2


def test_each_row_has_its_own_tolerance():
    scale = _column(1e-6, 1.0, 1e6)
    solution = solve(lambda z: 0.5 * z + scale, torch.zeros_like(scale), solver=Picard(), rtol=1e-6)
    assert len(set(solution.rounds.tolist())) == 1
    assert np.allclose(solution.relative_error, solution.relative_error[0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_tolerance_below_the_rounding_floor_ends_at_the_floor(dtype):
    z0 = torch.linspace(0.1, 1.0, 6).reshape(2, 3).to(dtype)
    solution = solve(lambda z: 0.3 * torch.cos(3 * z) + 1, z0, solver=Picard(), rtol=1e-30)
    assert set(solution.status) <= {Status.STALLED, Status.CONVERGED}
    for row, status in enumerate(solution.status):
        assert status is Status.STALLED or float(solution.error[row]) == 0.0
    assert (solution.relative_error <= 4 * torch.finfo(dtype).eps).all()
    assert solution.counts.rounds < 150


def test_a_cycle_stalls_after_the_patience():
    solution = solve(
        lambda z: 2.0 - z, _column(0.0), solver=Picard(), termination=Termination(patience=7, max_rounds=100)
    )
    assert solution.status == (Status.STALLED,)
    assert solution.counts.rounds == 7


def test_growth_beyond_the_limit_is_divergence_and_the_best_point_is_returned():
    solution = solve(lambda z: 10 * z + 1, _column(1.0), solver=Picard(), termination=Termination(divergence=1e4))
    assert solution.status == (Status.DIVERGED,)
    assert float(solution.z) == 1.0
    assert float(solution.error) == 10.0
    assert solution.counts.rounds == 6  # errors 10, 1e2 .. 1e6: the first above 1e4 times 10


def test_slow_growth_is_neither_divergence_nor_a_stall():
    solution = solve(lambda z: 1.01 * z + 1, _column(1.0), solver=Picard(), max_rounds=1000)
    assert solution.status == (Status.MAX_ROUNDS,)
    assert "the state ran away" in solution.message


def test_the_limit_on_rounds_is_a_status_with_the_best_point():
    solution = solve(lambda z: 0.9 * z + 1, _column(0.0), solver=Picard(), max_rounds=4, rtol=1e-12)
    assert solution.status == (Status.MAX_ROUNDS,)
    assert solution.counts.rounds == 4
    assert float(solution.error) == pytest.approx(0.9**3)


def test_a_start_where_f_is_not_finite_is_lost_at_once():
    solution = solve(torch.log, _column(-1.0, 0.5), solver=Picard(), max_rounds=50)
    assert solution.status[0] is Status.NONFINITE
    assert solution.rounds[0] == 1
    assert float(solution.z[0]) == -1.0


def test_a_row_that_leaves_the_domain_is_put_back_to_its_best_point_once():
    # Anderson's step leaves the domain once; put back, it takes a plain step, which stays inside.
    problem = Walled(affine_contraction((0.9, 0.5, -0.3), rows=3, seed=1), 40.0)
    solution = solve(problem, rtol=1e-9)
    assert solution.converged.all()
    always = solve(lambda z: torch.where(z > 2, torch.nan, z + 1), _column(0.0), solver=Picard())
    assert always.status == (Status.NONFINITE,)
    assert float(always.z) <= 2.0
    assert np.isfinite(float(always.error))


def test_rows_that_finished_keep_their_bits():
    seen = {}

    def f(z):
        for row, value in enumerate(z):
            seen.setdefault(row, []).append(value.clone())
        return torch.where(torch.tensor([[0.1], [0.9]], dtype=z.dtype) > 0.5, 0.9 * z + 1, 0.1 * z + 1)

    z0 = _column(0.0, 0.0)
    early = solve(f, z0, solver=Picard(), rtol=1e-6)
    alone = solve(lambda z: 0.1 * z + 1, z0[:1], solver=Picard(), rtol=1e-6, rows="independent")
    assert early.rounds[0] < early.rounds[1]
    assert torch.equal(early.z[0], alone.z[0])
    assert torch.equal(early.z[0], seen[0][int(early.rounds[0]) - 1])
    assert torch.equal(early.fz[0], 0.1 * early.z[0] + 1)


def test_a_hopeless_map_ends_without_an_exception():
    start = torch.tensor([[0.0], [-0.5], [1e150]], dtype=torch.float64)
    solution = solve(Hopeless(start), solver=Picard())
    assert not solution.converged.any()
    assert torch.isfinite(solution.z).all()


def test_every_status_has_a_sentence_and_a_label():
    for status in Status:
        assert status.label == status.name.lower()
        assert len(status.sentence) > 10
    assert Status.MAX_ROUNDS.label == "max_rounds"


def test_messages_count_rows_and_failures_can_be_raised():
    solution = solve(lambda z: 10 * z + 1, _column(1.0, -1 / 9), solver=Picard(), atol=1e-9)
    lines = solution.message.splitlines()
    assert lines[0].startswith("1 of 2 rows converged: the error of the returned point is within the tolerance")
    assert lines[1].startswith("1 of 2 rows diverged: the error grew far beyond")
    with pytest.raises(ConvergenceError, match="1 of 2 rows diverged"):
        solution.raise_for_status()
    good = solve(lambda z: 0.5 * z + 1, _column(1.0))
    assert good.raise_for_status() is good
    assert repr(good).startswith("Solution(1 converged; ")


BAD_OPTIONS = {
    "rtol": (-1.0, "rtol must be at least 0.0, got -1.0"),
    "atol": ("small", "atol must be a number, got 'small'"),
    "max_rounds": (0, "max_rounds must be at least 1, got 0"),
    "norm": ("l1", "norm must be one of 'l2', 'rms', 'max', got 'l1'"),
    "divergence": (1.0, "divergence must be greater than 1.0, got 1.0"),
    "patience": (2.5, "patience must be an integer, got 2.5"),
    "relative_to": (None, "relative_to must be one of 'state', 'start', got None"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_refused_with_a_sentence(name):
    value, sentence = BAD_OPTIONS[name]
    with pytest.raises(OptionError, match="Termination: ") as caught:
        Termination(**{name: value})
    assert str(caught.value) == f"Termination: {sentence}"
    assert caught.value.option == name


def test_progress_is_told_after_every_round():
    told = []
    solution = solve(lambda z: 0.5 * z + 1, _column(0.0), solver=Picard(), rtol=1e-3, on_round=told.append)
    assert [progress.round for progress in told] == list(range(1, solution.counts.rounds + 1))
    assert [progress.running for progress in told][-2:] == [1, 0]
    assert [progress.relative_error for progress in told] == solution.trace.relative[:, 0].tolist()
