"""Starts of a chain: what they are, what they cost, and that they save rounds."""

from __future__ import annotations

import pytest
import torch
from ddim_cases import Case, cases
from draws import examples
from hypothesis import given, settings
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.coarse import evenly_kept
from fixedpoint.chains.joint.solver import accelerating
from fixedpoint.chains.joint.start import ConstantStart, NestedStart, OneJumpStart, Start
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.options import OptionError
from fixedpoint.core.termination import Termination
from fixedpoint.testing.chains import CountedChain, wave_chain
from fixedpoint_diffusion.models.choices import FashionMNISTModel
from fixedpoint_diffusion.task import Sampling

STARTS = [
    ConstantStart(),
    OneJumpStart(),
    NestedStart(10, 3),
    NestedStart((3, 10), 2, OneJumpStart(), fixedpoint.Anderson()),
]


def solved(problem: ChainProblem, start: Start, rtol: float, rounds: int | None = None) -> fixedpoint.Solution:
    """By plain rounds of the identity preconditioner from a start."""
    rule = Termination(rtol=rtol, max_rounds=rounds)
    return fixedpoint.solve(problem, solver=fixedpoint.ChainSolver(start=start), termination=rule)


@pytest.mark.parametrize("start", STARTS, ids=str)
@examples(5, 10)
@given(case=cases(steps=st.integers(1, 60)))
def test_any_start_leads_to_the_serial_chain(start: Start, case: Case) -> None:
    problem = case.problem()
    serial = fixedpoint.solve(problem, solver="serial").z[:, -1]
    solution = solved(problem, start, rtol=1e-11)
    assert solution.converged.all()
    assert ((solution.z[:, -1] - serial).norm(dim=1) <= 1e-9 * serial.norm(dim=1)).all()
    assert solution.counts.rounds <= problem.length + 1


@pytest.mark.parametrize("start", STARTS, ids=str)
@settings(max_examples=8)
@given(case=cases(steps=st.integers(1, 40)))
def test_a_row_alone_starts_as_in_a_batch(start: Start, case: Case) -> None:
    problem = case.problem()
    z0, spent, exact = start.trajectory(problem, accelerating)
    assert z0.shape == (case.batch, case.steps * problem.x0[0].numel())
    for row in range(case.batch):
        alone, own, known = start.trajectory(problem.take(torch.tensor([row])), accelerating)
        assert known == exact
        assert torch.equal(alone[0], z0[row])
        assert own.evaluations[0] == spent.evaluations[row]


@given(length=st.integers(1, 40), levels=st.sets(st.integers(1, 50), min_size=1, max_size=3), rounds=st.integers(1, 4))
def test_a_nested_start_costs_what_it_says(length: int, levels: set[int], rounds: int) -> None:
    watched = CountedChain(wave_chain(length=length, rows=3, seed=1))
    x0 = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = NestedStart(tuple(sorted(levels)), rounds)
    _, spent, exact = start.trajectory(ChainProblem(watched, x0, max_batch=7), accelerating)
    assert spent.calls == watched.tally.calls
    assert spent.computed == sum(watched.tally.rows.values()) == spent.evaluations.sum()
    assert spent.rounds <= rounds * len(levels)
    # A solved step is not evaluated again, nor is a chain that is no shorter than the whole; beside every round a step.
    expected = sum(max(level - k, 0) for level in levels if level < length for k in range(rounds)) + spent.rounds
    assert exact == min(spent.rounds, length)
    assert (spent.evaluations <= expected).all()


def test_a_nested_start_of_enough_rounds_interpolates_the_coarse_chain() -> None:
    problem = ChainProblem(
        wave_chain(length=40, rows=2, seed=3),
        torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    )
    kept = evenly_kept(40, 8)
    exact = fixedpoint.solve(problem.coarse(kept), solver="serial").z
    z0, _, known = NestedStart(8, 9).trajectory(problem, accelerating)
    found, wanted = (states.unflatten(1, (40, -1)) for states in (z0, problem.interpolate(exact, kept)))
    torch.testing.assert_close(found[:, known:], wanted[:, known:], rtol=1e-10, atol=1e-10)
    serial = fixedpoint.solve(problem, solver="serial").z
    torch.testing.assert_close(found[:, :known], serial[:, :known], rtol=1e-12, atol=1e-12)


def test_a_one_jump_start_costs_one_round_of_one_evaluation() -> None:
    problem = Sampling(num_inference_steps=20, batch=3, max_batch=2).problem(0)
    assert isinstance(problem, ChainProblem)
    z0, spent, exact = OneJumpStart().trajectory(problem, accelerating)
    assert exact == 1
    first = problem.pairs(problem.x0, torch.zeros_like(problem.rows), problem.rows).flatten(1)
    torch.testing.assert_close(z0.unflatten(1, (20, -1))[:, 0], first, rtol=1e-5, atol=1e-6)
    assert (spent.rounds, spent.calls, spent.computed) == (1, 2, 3)
    assert spent.evaluations.tolist() == [1, 1, 1]
    torch.testing.assert_close(z0, problem.jumps())


@pytest.mark.slow
def test_starts_save_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    """On the bundled model, to 1e-2 of the serial image; a nested start does its rounds on a quarter of the steps."""
    task = Sampling(model=FashionMNISTModel(), num_inference_steps=40, batch=1)
    problem = task.problem(0)
    assert isinstance(problem, ChainProblem)
    serial = fixedpoint.solve(problem, solver="serial").z[:, -1].flatten(1)
    needed = {}
    for start in (ConstantStart(), OneJumpStart(), NestedStart(10, 5)):
        for rounds in range(1, 20):
            solution = solved(problem, start, rtol=0.0, rounds=rounds)
            apart = (solution.fz[:, -1].flatten(1) - serial).norm(dim=1) / serial.norm(dim=1)
            if bool((apart <= 1e-2).all()):
                break
        needed[start.variant] = rounds, int(solution.evaluations[0])
    with capsys.disabled():
        print(f" rounds to 1e-2 with those of the start, evaluations: {needed}")
    assert needed["one-jump"][0] < needed["constant"][0]
    assert needed["nested"][1] < needed["one-jump"][1] < needed["constant"][1]


@pytest.mark.parametrize("start", STARTS[1:], ids=str)
@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_a_start_keeps_to_the_limit_on_rounds(start: Start, most: int) -> None:
    problem = Sampling(num_inference_steps=20, batch=2).problem(0)
    assert isinstance(problem, ChainProblem)
    solution = solved(problem, start, rtol=0.0, rounds=most)
    assert solution.counts.rounds == most


class Plain(Chain):
    length = 60

    def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return x / 2


@pytest.mark.parametrize("steps", [0, -3, (), (5, 3), (4, 4), (0, 2)])
def test_bad_steps_are_a_sentence(steps: object) -> None:
    with pytest.raises(
        OptionError, match="NestedStart: steps must be numbers of steps, at least 1 and increasing, got"
    ):
        NestedStart(steps)


def test_a_chain_that_lacks_what_a_start_wants_is_a_sentence() -> None:
    problem = ChainProblem(Plain(), torch.ones(2, 3))
    with pytest.raises(TypeError, match="Plain does not know its states' jumps from x0"):
        OneJumpStart().trajectory(problem, accelerating)
    with pytest.raises(TypeError, match="Plain has no coarser chains"):
        NestedStart().trajectory(problem, accelerating)
