"""Parareal: a loop of its own, counts, blocks exact one by one, errors of the very trajectory returned."""

from __future__ import annotations

from itertools import pairwise
from math import isqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.coarse import evenly_kept
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.status import Status
from fixedpoint.testing.chains import CountedChain, WaveChain, trajectory, wave_chain

NEVER = 1e-300


def start(rows: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(chain: WaveChain, x0: torch.Tensor, blocks: int, coarse_steps: int, sweeps: int) -> torch.Tensor:
    """The last state after so many fine sweeps, by the recurrence itself, nothing left out."""
    bounds = [0, *evenly_kept(chain.length, blocks).tolist()]
    rows = torch.arange(len(x0))

    def fine(m: int, x: torch.Tensor) -> torch.Tensor:
        for i in range(bounds[m], bounds[m + 1]):
            x = chain.step(x, torch.full_like(rows, i), rows)
        return x

    def jump(m: int, x: torch.Tensor) -> torch.Tensor:
        size = bounds[m + 1] - bounds[m]
        before = 0
        for end in evenly_kept(size, min(coarse_steps, size)).tolist():
            x = x + (end - before) * (chain.step(x, torch.full_like(rows, bounds[m] + before), rows) - x)
            before = end
        return x

    joints = [x0]
    for m in range(blocks):
        joints.append(jump(m, joints[m]))
    for _ in range(sweeps - 1):
        new = [x0]
        for m in range(blocks):
            new.append(fine(m, joints[m]) + jump(m, new[m]) - jump(m, joints[m]))
        joints = new
    return fine(blocks - 1, joints[blocks - 1])


def rounds_of(length: int, blocks: int, coarse_steps: int, sweeps: int) -> tuple[int, int]:
    """Rounds, and evaluations a row, of so many fine sweeps."""
    bounds = [0, *evenly_kept(length, blocks).tolist()]
    sizes = [end - begin for begin, end in pairwise(bounds)]
    rounds = evaluations = 0
    for sweep in range(sweeps):
        coarse = sum(min(coarse_steps, size) for size in sizes[sweep:-1])
        rounds += coarse + max(sizes[sweep:])
        evaluations += coarse + sum(sizes[sweep:])
    return rounds, evaluations


@given(length=st.integers(1, 30), data=st.data(), coarse_steps=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_it_is_the_recurrence_and_counts_what_it_evaluates(
    length: int, data: st.DataObject, coarse_steps: int, seed: int
) -> None:
    blocks = data.draw(st.integers(1, length))
    sweeps = data.draw(st.integers(1, blocks))
    chain, x0 = wave_chain(length=length, rows=3, seed=seed), start(3, 3, seed)
    rounds, evaluations = rounds_of(length, blocks, coarse_steps, sweeps)
    watched = CountedChain(chain)
    solution = fixedpoint.solve(
        ChainProblem(watched, x0),
        solver=fixedpoint.Parareal(blocks=blocks, coarse_steps=coarse_steps),
        rtol=NEVER,
        max_rounds=rounds,
    )
    torch.testing.assert_close(
        solution.fz[:, -1], by_hand(chain, x0, blocks, coarse_steps, sweeps), rtol=1e-10, atol=1e-10
    )
    if not solution.converged.any():  # else a row was done sooner
        assert solution.counts.rounds == rounds
        assert solution.evaluations.tolist() == [evaluations] * 3
        assert solution.counts.calls == watched.tally.calls == rounds
        assert solution.counts.computed == 3 * evaluations == sum(watched.tally.rows.values())


@given(length=st.integers(1, 40), blocks=st.integers(1, 8), seed=st.integers(0, 10**6), size=st.floats(0.1, 4.0))
def test_it_ends_with_the_sequential_chain_after_as_many_sweeps_as_blocks(
    length: int, blocks: int, seed: int, size: float
) -> None:
    blocks = min(blocks, length)
    chain, x0 = WaveChain(length, size, wave_chain(rows=2, seed=seed).phase), start(2, 3, seed)
    solution = fixedpoint.solve(ChainProblem(chain, x0), solver=fixedpoint.Parareal(blocks=blocks), rtol=0.0)
    assert solution.status == (Status.CONVERGED,) * 2
    assert torch.equal(solution.z, trajectory(chain, x0))
    assert solution.counts.rounds <= rounds_of(length, blocks, 1, blocks)[0]
    assert len(solution.trace.error) == len(solution.trace.rounds) <= blocks
    assert solution.trace.rounds[-1] == solution.counts.rounds


@given(length=st.integers(4, 40), seed=st.integers(0, 10**6), rtol=st.sampled_from([1e-1, 1e-3, 1e-6]))
def test_the_error_is_that_of_the_trajectory_returned(length: int, seed: int, rtol: float) -> None:
    chain, x0 = wave_chain(length=length, rows=4, seed=seed), start(4, 3, seed)
    problem = ChainProblem(chain, x0)
    solution = fixedpoint.solve(problem, solver="parareal", rtol=rtol)
    assert solution.converged.all()
    fz = problem(solution.state)
    assert torch.equal(solution.fstate, fz)
    with torch.no_grad():
        assert torch.equal(solution.error, problem.measure(solution.state, fz, fz - solution.state).error)
    defects = (fz - solution.state).unflatten(1, (length, -1)).abs().amax(dim=(0, 2))
    joints = evenly_kept(length, isqrt(length - 1) + 1)[:-1] - 1
    inside = torch.ones(length, dtype=torch.bool)
    inside[joints] = False
    assert not defects[inside].any()


def test_who_watches_is_told_of_every_sweep() -> None:
    chain, x0 = wave_chain(length=30, rows=3, seed=4), start(3, 3, 4)
    seen = []
    fixedpoint.solve(
        ChainProblem(chain, x0),
        solver="parareal",
        rtol=NEVER,
        on_round=lambda now: seen.append((now.round, now.evaluations.tolist(), now.latest.clone())),
    )
    assert len(seen) == 6
    for sweep, (rounds, evaluations, latest) in enumerate(seen, start=1):
        expected = rounds_of(30, 6, 1, sweep)
        assert (rounds, evaluations) == (expected[0], [expected[1]] * 3)
        torch.testing.assert_close(latest, by_hand(chain, x0, 6, 1, sweep), rtol=1e-10, atol=1e-10)


def test_rows_that_are_done_are_left_out() -> None:
    chain = wave_chain(length=36, rows=3, seed=1)
    chain.phase[0] = 0.0
    x0 = start(3, 3, 2)
    x0[0] = 0.0  # sin(0) = 0: this row stays where it is
    solution = fixedpoint.solve(ChainProblem(chain, x0), solver="parareal", rtol=1e-12)
    assert solution.converged.all()
    assert solution.rounds[0] < solution.rounds[1]
    assert solution.evaluations[0] == rounds_of(36, 6, 1, 1)[1]


def test_a_limit_below_the_first_sweeps_judges_the_start() -> None:
    problem = ChainProblem(wave_chain(length=36, seed=1), start(4, 3, 2))
    solution = fixedpoint.solve(problem, solver="parareal", max_rounds=10)
    assert solution.status == (Status.MAX_ROUNDS,) * 4
    assert solution.counts.rounds == 1
    assert torch.equal(solution.state, problem.initial())


class NoCoarse(Chain):
    length = 3

    def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return x / 2


def test_bad_input_is_a_sentence() -> None:
    with pytest.raises(TypeError, match="NoCoarse has no coarser chains"):
        fixedpoint.solve(ChainProblem(NoCoarse(), torch.ones(2, 3)), solver="parareal")
    with pytest.raises(TypeError, match=r"parareal requires a chain \(ChainProblem\), got FunctionProblem"):
        fixedpoint.solve(torch.cos, torch.ones(2, 3), solver="parareal")
    with pytest.raises(ValueError, match="a chain of 12 steps divides into at most 12 blocks, got blocks=13"):
        fixedpoint.solve(ChainProblem(wave_chain(), start(4, 3, 0)), solver=fixedpoint.Parareal(blocks=13))
    with pytest.raises(ValueError, match="coarse_steps must be at least 1"):
        fixedpoint.Parareal(coarse_steps=0)
