"""Pauses: a solver that leaves rows and comes back goes on as if it had never been away."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.history import History
from fixedpoint.core.loop import iterate
from fixedpoint.core.pace import Pace
from fixedpoint.core.problem import FunctionProblem
from fixedpoint.core.status import Status
from fixedpoint.core.termination import Termination
from fixedpoint.core.turn import Turn, joined, without_rows
from fixedpoint.solvers.polyalgorithm import continue_with

RULE = Termination(rtol=1e-10, max_rounds=2000)


def curved(rates):
    """Rows that contract at rates of their own, with some curvature, and do not mix."""
    return lambda z: rates * z + 0.05 * torch.sin(z.roll(1, 1)) + 1


def rates_of(rows, size, seed):
    generator = torch.Generator().manual_seed(seed)
    return 1 - 10 ** -(1.5 * torch.rand(rows, size, generator=generator, dtype=torch.float64))


def in_turns(f, z0, memory, rounds):
    """Anderson acceleration alone, paused whenever a row is slow; the solution, and how often each row was paused."""
    solver, pauses, paused = fixedpoint.Anderson(memory=memory), [], np.zeros(len(z0), dtype=int)
    problem = FunctionProblem(f, z0)
    evaluator = Evaluator(problem, RULE.yardstick)
    with torch.no_grad():
        found = iterate(solver, evaluator, z0, RULE, turn=Turn(Pace(rounds, 0.5), pauses=pauses))
        for _ in range(400):
            if found.converged.all():
                break
            for pause in pauses:
                paused[pause.rows] += 1
            found = continue_with(evaluator, found, solver, z0, RULE, pace=Pace(rounds, 0.5), pauses=pauses)
    return found, paused


@settings(max_examples=8)
@given(seed=st.integers(0, 2**20), memory=st.sampled_from([1, 3, 20]), rounds=st.integers(1, 6))
def test_a_row_that_is_paused_goes_on_as_it_would_have(seed, memory, rounds):
    f = curved(rates_of(1, 12, seed))
    z0 = torch.zeros(1, 12, dtype=torch.float64)
    found, _ = in_turns(f, z0, memory, rounds)
    with torch.no_grad():
        alone = fixedpoint.solve(f, z0, solver=fixedpoint.Anderson(memory=memory), rtol=1e-10)
    assert found.converged.all()
    assert alone.converged.all()
    # Sums over columns are in another order, which later rounds amplify.
    many = min(15, len(alone.trace.error), len(found.trace.error))
    np.testing.assert_allclose(found.trace.error[:many], alone.trace.error[:many], rtol=1e-5, atol=1e-12)


def test_pauses_of_a_linear_map_change_nothing():
    """In exact arithmetic; a linear contraction of few unknowns amplifies no rounding."""
    rates = torch.linspace(-0.9, 0.95, 15, dtype=torch.float64).unsqueeze(0)
    f, z0 = (lambda z: rates * z + 1), torch.zeros(1, 15, dtype=torch.float64)
    found, paused = in_turns(f, z0, 30, 1)
    with torch.no_grad():
        alone = fixedpoint.solve(f, z0, solver=fixedpoint.Anderson(memory=30), rtol=1e-10)
    assert paused[0] > 2
    assert int(found.evaluations[0]) == int(alone.evaluations[0])
    torch.testing.assert_close(found.state, alone.state, rtol=1e-12, atol=1e-12)


def test_rows_that_are_paused_at_different_rounds_are_as_alone():
    rates = rates_of(6, 12, 3)
    z0 = torch.zeros(6, 12, dtype=torch.float64)
    together, paused = in_turns(curved(rates), z0, 5, 2)
    assert together.converged.all()
    assert len(set(paused)) > 2
    for row in range(6):
        alone, times = in_turns(curved(rates[row : row + 1]), z0[:1], 5, 2)
        assert times[0] == paused[row]
        assert torch.equal(alone.state[0], together.state[row])
        assert int(alone.evaluations[0]) == int(together.evaluations[row])


def test_auto_solves_a_row_beside_others_as_alone():
    """Rows that Anderson leaves to SQUAREM at different rounds, and takes back."""

    def f(z):
        share, means = z[:, :1].clamp(1e-7, 1 - 1e-7), z[:, 1:].clamp(min=1e-7)
        law = (y * means.log().unsqueeze(2) - means.unsqueeze(2) - torch.lgamma(y + 1)).exp()
        parts = torch.stack([share * law[:, 0], (1 - share) * law[:, 1]], dim=1)
        weights = deaths * parts / parts.sum(1, keepdim=True)
        sums = weights.sum(2)
        return torch.cat([sums[:, :1] / deaths.sum(), (weights * y).sum(2) / sums], dim=1)

    y = torch.arange(10.0, dtype=torch.float64)
    deaths = torch.tensor([162.0, 267, 271, 185, 111, 61, 27, 8, 3, 1], dtype=torch.float64)
    starts = torch.tensor(
        [[0.25, 1.0, 2.0], [0.5, 0.5, 5.0], [0.9, 2.0, 3.0], [0.1, 0.2, 2.2], [0.36, 1.25, 2.66]], dtype=torch.float64
    )
    with torch.no_grad():
        together = fixedpoint.solve(f, starts, solver="auto", rtol=1e-9)
        assert together.converged.all()
        for row, start in enumerate(starts):
            alone = fixedpoint.solve(f, start.unsqueeze(0), solver="auto", rtol=1e-9)
            assert torch.equal(alone.z[0], together.z[row])
            assert int(alone.evaluations[0]) == int(together.evaluations[row])


def test_joined_takes_the_rows_that_are_wanted_in_their_order():
    f, z0 = curved(rates_of(4, 12, 3)), torch.zeros(4, 12, dtype=torch.float64)
    pauses = []
    evaluator = Evaluator(FunctionProblem(f, z0), RULE.yardstick)
    with torch.no_grad():
        found = iterate(fixedpoint.Anderson(), evaluator, z0, RULE, turn=Turn(Pace(1, 0.1), pauses=pauses))
    rows = np.sort(np.concatenate([pause.rows for pause in pauses]))
    assert set(rows) == {row for row, status in enumerate(found.status) if status == Status.STALLED}
    pauses = [replace(pause, rows=pause.rows[::1]) for pause in reversed(pauses)]
    whole = joined(pauses, np.arange(4))
    assert whole is not None
    assert (whole.rows == rows).all()
    one = joined(pauses, rows[1:2])
    assert one is not None
    assert torch.equal(one.at.z[0], whole.at.z[1])
    assert np.array_equal(one.state.gram.products[..., 0], whole.state.gram.products[..., 1])
    assert joined(pauses, np.array([], dtype=np.int64)) is None
    rest = joined(without_rows(pauses, rows[:1]), np.arange(4))
    assert rest is not None
    assert (rest.rows == rows[1:]).all()


def test_histories_after_different_numbers_of_pushes_do_not_join():
    z = torch.zeros(2, 3)
    with torch.no_grad():
        one = History.empty(z, 2, groups=1)
        two = one.push(z, valid=torch.ones(2, dtype=torch.bool))
        with pytest.raises(ValueError, match="histories after 0, 1 pushes do not join"):
            History.joined([one, two], torch.arange(4))


@given(memory=st.integers(1, 12), pushes=st.integers(1, 30))
def test_a_history_in_order_has_its_columns_by_age(memory, pushes):
    with torch.no_grad():
        history = History.empty(torch.zeros(1, 2), memory, groups=1)
        for number in range(pushes):
            history = history.push(torch.full((1, 2), number + 1.0), valid=torch.ones(1, dtype=torch.bool))
        found = history.in_order()
        used = min(memory, pushes)
        assert found.columns[0][0, :, 0].tolist()[:used] == [float(pushes - age) for age in range(used)]
        assert found.valid[0].tolist() == [True] * used + [False] * (memory - used)
        assert found.newest == 0
        assert found.oldest == memory - 1


def test_a_pause_of_all_rows_copies_no_history():
    f, z0, pauses = curved(rates_of(1, 12, 3)), torch.zeros(1, 12, dtype=torch.float64), []
    with torch.no_grad():
        iterate(
            fixedpoint.Anderson(),
            Evaluator(FunctionProblem(f, z0), RULE.yardstick),
            z0,
            RULE,
            turn=Turn(Pace(1, 0.1), pauses=pauses),
        )
    whole = joined(pauses, np.arange(1))
    assert whole is not None
    assert whole.state.history.storage[0].data_ptr() == pauses[0].state.history.storage[0].data_ptr()
