"""Windows that slide along a chain, states that are left alone, and what is kept of a chain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from draws import examples
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint
from fixedpoint import Anderson, Broyden, ChainSolver, Picard
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.joint.shift import Shift
from fixedpoint.chains.joint.solver import BlockSecant
from fixedpoint.chains.joint.start import NestedStart
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.options import OptionError
from fixedpoint.core.status import Status
from fixedpoint.testing.chains import linear_chain, trajectory, wave_chain

ACCELERATORS = {
    "picard": Picard(),
    "triangular": Anderson(memory=2),
    "joint": Anderson(memory=2, mixing="joint"),
    "adaptive": Anderson(memory=2, adaptive="distance"),
    "secant": BlockSecant(memory=2),
}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Curved(Chain):
    """``x + h c x (1 - x)``, more or less curved from row to row; products whose bits no batch moves."""

    def __init__(self, length: int, curvature: torch.Tensor) -> None:
        self.length = length
        self.curvature = curvature

    def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return x + (self.curvature[row] / self.length).unsqueeze(1) * x * (1 - x)


@pytest.mark.parametrize("name", ACCELERATORS)
@examples(6, 15)
@given(
    length=st.integers(1, 40),
    width=st.integers(1, 45),
    seed=st.integers(0, 10**6),
    keep=st.sampled_from(["all", "last"]),
)
def test_any_window_finds_the_serial_chain(name: str, length: int, width: int, seed: int, keep: str) -> None:
    chain, x0 = wave_chain(length=length, rows=3, seed=seed), draw(seed, 3, 3)
    exact = trajectory(chain, x0)
    problem = ChainProblem(chain, x0, keep=keep)
    solution = fixedpoint.solve(problem, solver=ChainSolver(accelerator=ACCELERATORS[name], window=width), rtol=1e-11)
    assert solution.converged.all()
    assert solution.counts.rounds <= length + 1
    wanted = exact if keep == "all" else exact[:, -1:]
    torch.testing.assert_close(solution.z, wanted, rtol=1e-9, atol=1e-9)
    assert solution.z.shape == solution.fz.shape == wanted.shape


# Every width and every accelerator is in the others.
DEAREST = [(4, "adaptive"), (4, "joint"), (4, "secant"), (17, "triangular")]


@pytest.mark.parametrize(
    ("width", "name"),
    [
        pytest.param(width, name, marks=[pytest.mark.slow] if (width, name) in DEAREST else [])
        for width in (4, 17, 60)
        for name in ACCELERATORS
    ],
)
def test_rows_slide_their_own_windows_and_equal_their_solo_run(name: str, width: int) -> None:
    curvature = torch.tensor([0.5, 3.0, 9.0, 0.05], dtype=torch.float64)
    problem = ChainProblem(Curved(60, curvature), draw(0, 4, 5).sigmoid())
    solver = ChainSolver(accelerator=ACCELERATORS[name], window=width)
    together = fixedpoint.solve(problem, solver=solver, rtol=1e-8)
    assert together.converged.all()
    for row in range(4):
        alone = fixedpoint.solve(problem.take(torch.tensor([row])), solver=solver, rtol=1e-8)
        assert torch.equal(alone.z[0], together.z[row])
        assert torch.equal(alone.error[0], together.error[row])
        assert (alone.rounds[0], alone.evaluations[0]) == (together.rounds[row], together.evaluations[row])
    offsets = np.stack(together.extras["step_errors"].offsets)
    assert offsets.max() == 60 - width
    assert (np.diff(offsets, axis=0) >= 0).all()
    if width == 17:
        assert any(len(set(places.tolist())) > 1 for places in offsets)


def test_rows_of_a_window_of_one_do_not_wait_for_one_another() -> None:
    """One row starts from its answer and keeps its states; the others take theirs: all in N rounds."""
    chain, x0 = wave_chain(length=20, rows=3, seed=3), draw(3, 3, 3)
    exact = fixedpoint.solve(ChainProblem(chain, x0), solver="serial").z
    guess = torch.where(torch.tensor([True, False, False]).view(-1, 1, 1), exact, x0.unsqueeze(1))
    problem = ChainProblem(chain, x0, start=guess)
    solution = fixedpoint.solve(problem, solver=ChainSolver(window=1), rtol=1e-4)
    assert solution.converged.all()
    assert solution.counts.rounds <= 20
    torch.testing.assert_close(solution.z, exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("slack", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("start", ["constant", "nested"])
def test_what_is_returned_was_evaluated_and_its_error_is_the_one_reported(slack: float, start: str) -> None:
    chain, x0 = wave_chain(length=80, rows=4, seed=3), draw(3, 4, 3)
    problem = ChainProblem(chain, x0)
    begin = NestedStart(10, 3) if start == "nested" else "constant"
    solution = fixedpoint.solve(problem, solver=ChainSolver(slack=slack, start=begin), rtol=1e-4)
    assert solution.converged.all()
    known = 3 if start == "nested" else 0
    torch.testing.assert_close(problem(solution.state)[:, 3 * known :], solution.fstate[:, 3 * known :])
    measured = problem.measure(solution.state, solution.fstate, solution.fstate - solution.state)
    torch.testing.assert_close(measured.error, solution.error, rtol=1e-6, atol=1e-13)


def test_slack_saves_evaluations_and_hardly_a_round() -> None:
    problem = ChainProblem(wave_chain(length=300, rows=4, seed=5), draw(5, 4, 3))
    full, lazy = (
        fixedpoint.solve(problem, solver=ChainSolver(accelerator=Anderson(memory=2), slack=slack), rtol=1e-4)
        for slack in (0.0, 0.5)
    )
    assert full.converged.all()
    assert lazy.converged.all()
    assert lazy.counts.rounds <= full.counts.rounds + 2
    assert lazy.evaluations.sum() < 0.8 * full.evaluations.sum()


def test_the_last_step_is_evaluated_where_it_is_told_of() -> None:
    """``progress.latest`` is the last step's value, and ``progress.evaluations`` what was spent up to then."""
    problem = ChainProblem(wave_chain(length=30, rows=2, seed=1), draw(1, 2, 3))
    seen: list[tuple[int, torch.Tensor, int]] = []
    solution = fixedpoint.solve(
        problem,
        solver=ChainSolver(window=7),
        rtol=1e-9,
        on_round=lambda now: seen.append((now.round, now.latest.clone(), int(now.evaluations.sum()))),
    )
    assert [count for count, *_ in seen] == list(range(1, solution.counts.rounds + 1))
    assert seen[-1][2] == solution.evaluations.sum()
    assert torch.equal(seen[-1][1], solution.fz[:, -1])


def test_a_given_trajectory_is_where_the_solve_begins() -> None:
    chain, x0 = wave_chain(length=50, rows=3, seed=2), draw(2, 3, 3)
    exact = trajectory(chain, x0)
    at_once = fixedpoint.solve(ChainProblem(chain, x0, start=exact), rtol=1e-9)
    assert at_once.counts.rounds == 1
    near = trajectory(chain, x0 + 1e-3)
    for window in (None, 12):
        solver = ChainSolver(window=window)
        warm, cold = (
            fixedpoint.solve(ChainProblem(chain, x0, start=s), solver=solver, rtol=1e-9) for s in (near, None)
        )
        torch.testing.assert_close(warm.z, exact, rtol=1e-7, atol=1e-7)
        assert warm.counts.rounds < cold.counts.rounds
        assert warm.evaluations.sum() < cold.evaluations.sum()
    taken = ChainProblem(chain, x0, start=near).take(torch.tensor([2]))
    assert torch.equal(taken.initial(), near[2:].flatten(1))


@pytest.mark.parametrize(("window", "name"), [(None, "picard"), *((6, name) for name in ACCELERATORS)])
def test_unrolled_gradients_go_through_windows(window: int | None, name: str) -> None:
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    class Weighted(Chain):
        length = 20

        def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
            return x + 0.1 * torch.tanh(weight * x.roll(1, 1))

    x0 = draw(4, 2, 3).requires_grad_()
    serial = x0
    for i in range(20):
        serial = Weighted().step(serial, torch.tensor([i]), torch.arange(2))
    wanted = torch.autograd.grad(serial.square().sum(), (weight, x0))
    problem = ChainProblem(Weighted(), x0)
    solver = ChainSolver(accelerator=ACCELERATORS[name], window=window)
    solution = fixedpoint.solve(problem, solver=solver, gradient="unrolled", rtol=1e-12)
    found = torch.autograd.grad(solution.z[:, -1].square().sum(), (weight, x0))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_too_few_rounds_for_the_window_to_arrive() -> None:
    problem = ChainProblem(wave_chain(length=40, rows=2, seed=1), draw(1, 2, 3))
    solution = fixedpoint.solve(problem, solver=ChainSolver(window=5), rtol=1e-9, max_rounds=4)
    assert solution.status == (Status.MAX_ROUNDS,) * 2
    assert np.isinf(solution.relative_error).all()  # the last state is not known
    torch.testing.assert_close(solution.z[:, :3], trajectory(problem.chain, problem.x0)[:, :3])


def test_bad_input_is_a_sentence() -> None:
    chain, x0 = wave_chain(length=5, rows=2), draw(0, 2, 3)
    with pytest.raises(
        OptionError, match="window requires the accelerator anderson, picard or block-secant, not Broyden"
    ):
        ChainSolver(accelerator=Broyden(), window=4)
    with pytest.raises(ValueError, match="keep must be 'all' or 'last', got 'some'"):
        ChainProblem(chain, x0, keep="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"start must have shape \(2, 5, 3\), torch.float64 on cpu, to go with x0"):
        ChainProblem(chain, x0, start=torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match="it goes with no start"):
        ChainProblem(chain, x0, start=draw(1, 2, 5, 3), keep="last")
    with pytest.raises(TypeError, match="cannot be evaluated as a joint problem"):
        fixedpoint.solve(ChainProblem(chain, x0, keep="last"), gradient="one-step")


@given(by=st.lists(st.integers(0, 6), min_size=1, max_size=4), seed=st.integers(0, 10**6))
def test_a_shift_moves_every_row_by_its_own(by: list[int], seed: int) -> None:
    blocks = draw(seed, len(by), 6, 2)
    wanted = torch.stack([torch.cat([row[n:], torch.zeros(n, 2)]) for row, n in zip(blocks, by, strict=True)])
    shift = Shift(torch.tensor(by), 6)
    with torch.no_grad():
        moved = blocks.clone()
        assert shift.of_state(moved.flatten(1)).data_ptr() == moved.data_ptr()
        assert torch.equal(moved, wanted)
    assert torch.equal(shift.of_blocks(blocks), wanted)
    assert not torch.equal(blocks, wanted) or not any(by)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0])
@pytest.mark.parametrize("atol", [1e-9, 1e-6, 1e-3])
def test_states_without_a_norm_are_not_left_where_they_are(atol: float, size: float, window: int | None) -> None:
    """Their error relative to their own norm is infinite, and so was the absolute tolerance."""
    chain, x0 = linear_chain(seed=1), torch.full((4, 3), size, dtype=torch.float64)
    solution = fixedpoint.solve(ChainProblem(chain, x0), solver=ChainSolver(window=window), rtol=1e-6, atol=atol)
    assert solution.converged.all()
    torch.testing.assert_close(solution.z, trajectory(chain, x0), rtol=1e-5, atol=3 * atol)
