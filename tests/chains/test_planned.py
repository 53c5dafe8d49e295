"""Plans: what is chosen under simulated costs, and what becomes of a chain that is solved by one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fixedpoint
import fixedpoint.chains.planning.planned
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.planning.costs import Costs, measured_costs
from fixedpoint.chains.planning.plan import FROM_ONE_JUMP, WITH_SECANTS, Plan, Setting, plan
from fixedpoint.chains.planning.planned import PlannedChainSolver
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.problem import FunctionProblem
from fixedpoint.core.progress import Progress
from fixedpoint.core.status import Status
from fixedpoint.core.termination import Termination
from fixedpoint.testing.chains import LinearChain, wave_chain

FLAT = Costs((1, 4096), (1.0, 1.0))
PROPORTIONAL = Costs((1, 4096), (1.0, 4096.0))
SATURATING = Costs((1, 16, 64, 4096), (1.0, 4.0, 16.0, 1024.0))


def planned(costs: Costs, **changed: Any) -> Plan:
    given_: dict[str, Any] = {"rows": 1, "length": 1000, "rtol": 1e-3, "eps": 1.2e-7, "slack": 0.02}
    return plan(costs, **{**given_, "overhead": lambda _: 0.01, "widest": 4096, **changed})


def test_a_machine_that_takes_any_batch_in_the_same_time_solves_the_whole_chain_at_once() -> None:
    chosen = planned(FLAT).chosen
    assert (chosen.window, chosen.max_batch) == (1000, 4096)
    assert chosen.seconds == pytest.approx(chosen.rounds * 1.01)


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("length", [25, 1000])
def test_a_machine_that_takes_states_one_after_another_goes_step_by_step(rows: int, length: int) -> None:
    chosen = planned(PROPORTIONAL, rows=rows, length=length).chosen
    assert (chosen.window, chosen.rounds, chosen.seconds) == (None, length, length * rows)


def test_a_machine_that_is_quickest_with_some_states_at_once_takes_a_window_that_makes_as_many() -> None:
    found = planned(SATURATING)
    assert found.chosen.window in (16, 32, 64)
    assert found.chosen.seconds < 0.7 * 1000
    assert planned(SATURATING, rows=16).chosen.window is None


def test_a_window_is_no_choice_where_its_tolerance_is_below_rounding() -> None:
    assert planned(SATURATING, rtol=1e-6).chosen.window is None
    assert planned(SATURATING, rtol=1e-6, eps=2.2e-16).chosen.window is not None
    assert planned(FLAT, rtol=1e-6).chosen.window == 1000


def test_no_window_is_wider_than_there_is_memory_for() -> None:
    assert planned(FLAT, widest=100).chosen.window == 64
    assert planned(FLAT, widest=4).chosen.window is None


def test_a_plan_says_what_else_there_was() -> None:
    told = str(planned(SATURATING))
    assert told.startswith("planned jointly in a window of ")
    assert "step by step: 1e+03 s" in told


@given(
    length=st.integers(1, 5000),
    rtol=st.sampled_from([1e-1, 1e-3, 1e-6, 0.0]),
    seconds=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=5),
    rows=st.integers(1, 64),
    overhead=st.floats(0.0, 0.1),
)
@settings(deadline=None, derandomize=True)
def test_the_choice_is_never_expected_to_be_slower_than_step_by_step(
    length: int, rtol: float, seconds: list[float], rows: int, overhead: float
) -> None:
    costs = Costs(tuple(4**k for k in range(len(seconds))), tuple(sorted(seconds)))
    found = planned(costs, length=length, rtol=rtol, rows=rows, overhead=lambda _: overhead)
    serial = next(s for s in (found.chosen, *found.others) if s.window is None)
    assert found.chosen.seconds <= serial.seconds
    for setting in (found.chosen, *found.others):
        assert 1 <= setting.rounds <= length + 1
        assert setting.max_batch in costs.batches


def test_what_is_expected_of_a_chain_of_one_step_is_one_evaluation_or_two() -> None:
    rounds, evaluations = FROM_ONE_JUMP.expected(1, 1, 1e-3)
    assert rounds <= 2
    assert evaluations <= 2


@dataclass(eq=False)
class Timed(Chain):
    """A chain whose steps take ``a + b n`` seconds of a clock of its own for ``n`` states, or sleep that long."""

    chain: Chain
    call: float
    state: float
    sleeps: bool = False
    now: float = 0.0
    sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.length = self.chain.length

    def step(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
        self.sizes.append(len(x))
        spent = self.call + self.state * len(x)
        self.now += spent
        if self.sleeps:
            time.sleep(spent)
        return self.chain.step(x, index, row)


def drawn(rows: int, size: int, seed: int) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def timed(length: int, call: float, state: float, *, rows: int = 2, **options: Any) -> ChainProblem:
    chain = Timed(wave_chain(length, rows, seed=3), call, state)
    return ChainProblem(chain, drawn(rows, 3, 4), **options)


def test_costs_are_those_of_the_clock() -> None:
    problem, counted = timed(400, 3.0, 0.01), list[int]()
    assert isinstance(problem.chain, Timed)
    costs = measured_costs(problem, lambda _: 1e9, counted.append, clock=lambda: problem.chain.now)
    assert costs.batches == (2, 8, 32, 128, 512, 800)
    assert costs.seconds == pytest.approx([3.0 + 0.01 * n for n in costs.batches])
    assert costs.call(20) == pytest.approx(3.2)
    assert costs.round(1600, 800) == pytest.approx(22.0)
    assert costs.best_batch(1600) == 800
    assert counted == problem.chain.sizes


def test_larger_calls_are_tried_while_they_are_quicker_and_within_what_they_are_worth() -> None:
    problem = timed(400, 0.0, 1.0)
    assert isinstance(problem.chain, Timed)
    assert measured_costs(problem, lambda _: 1e9, print, clock=lambda: problem.chain.now).batches == (2, 8)
    short = timed(400, 3.0, 0.01)
    assert isinstance(short.chain, Timed)
    assert measured_costs(short, lambda one: 12 * one, print, clock=lambda: short.chain.now).batches == (2, 8, 32)
    assert short.chain.now < 12 * 3.02
    calls = len(short.chain.sizes)
    assert measured_costs(short, lambda _: 0.0, print, clock=lambda: short.chain.now).batches == (2, 8, 32)
    assert len(short.chain.sizes) == calls  # what is known is not measured again
    limited = timed(400, 3.0, 0.01, max_batch=20)
    assert isinstance(limited.chain, Timed)
    assert measured_costs(limited, lambda _: 1e9, print, clock=lambda: limited.chain.now).batches == (2, 8, 20)
    hasty = timed(400, 3.0, 0.01, max_batch=20)
    assert isinstance(hasty.chain, Timed)
    costs = measured_costs(hasty, lambda _: 0.0, print, clock=lambda: hasty.chain.now)
    assert costs.batches == (2, 20)
    assert costs.seconds == pytest.approx((3.02, 30.2))
    assert hasty.chain.sizes == [2]


def test_what_there_is_no_memory_for_is_no_choice() -> None:
    @dataclass(eq=False)
    class Small(Timed):
        def step(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
            if len(x) > 40:
                raise torch.OutOfMemoryError("more than 40 states")
            return super().step(x, index, row)

    problem = ChainProblem(Small(wave_chain(400, 2, seed=3), 3.0, 0.01), drawn(2, 3, 4))
    assert isinstance(problem.chain, Small)
    assert measured_costs(problem, lambda _: 1e9, print, clock=lambda: problem.chain.now).batches == (2, 8, 32)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the chain in place of the machine's; nothing takes time but its steps."""

    def measured(problem: ChainProblem, *rest: Any) -> Costs:
        assert isinstance(problem.chain, Timed)
        chain = problem.chain
        return measured_costs(problem, *rest, clock=lambda: chain.now)

    monkeypatch.setattr(fixedpoint.chains.planning.planned, "measured_costs", measured)
    monkeypatch.setattr(fixedpoint.chains.planning.planned, "round_overhead_seconds", lambda *_: 0.0)


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize(("call", "state", "joint"), [(1.0, 0.0, True), (0.0, 1.0, False)])
def test_a_solve_by_a_plan_is_the_serial_chain(call: float, state: float, joint: bool) -> None:
    problem, told = timed(120, call, state), list[Progress]()
    solution = fixedpoint.solve(problem, rtol=1e-6, on_round=told.append)
    serial = fixedpoint.solve(problem, solver="serial")
    assert solution.converged.all()
    assert (solution.extras["plan"].chosen.window is not None) == joint
    assert (solution.counts.rounds < 120) == joint
    assert len(told) >= solution.counts.rounds
    apart = (solution.z - serial.z)[:, -1].norm(dim=1)
    assert (apart <= 2e-6 * serial.z[:, -1].norm(dim=1)).all()
    assert solution.solver == PlannedChainSolver()


def test_the_machine_at_hand_is_measured() -> None:
    chain = Timed(wave_chain(120, 2, seed=5), 5e-3, 0.0, sleeps=True)
    solution = fixedpoint.solve(ChainProblem(chain, drawn(2, 3, 6)), rtol=1e-6)
    plan = solution.extras["plan"]
    serial = next(s for s in (plan.chosen, *plan.others) if s.window is None)
    assert serial.seconds >= 120 * 5e-3
    assert solution.counts.computed == sum(chain.sizes) > solution.evaluations.sum()


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("keep", ["all", "last"])
def test_rows_that_a_joint_solve_does_not_reach_in_time_go_on_step_by_step(keep: Any) -> None:
    generator = torch.Generator().manual_seed(7)
    shift = torch.randn(3, 150, 2, generator=generator, dtype=torch.float64)
    shift[0] = 0.0  # this row is solved from the start on: it stays at zero
    slope = torch.full((150,), -0.999, dtype=torch.float64)
    x0 = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    x0[0] = 0.0
    problem = ChainProblem(Timed(LinearChain(slope, shift), 1.0, 0.0), x0, keep=keep)
    solution = fixedpoint.solve(problem, rtol=1e-9)
    serial = fixedpoint.solve(problem, solver="serial")
    assert solution.extras["plan"].chosen.window is not None
    assert solution.status == (Status.CONVERGED,) * 3
    assert solution.rounds[0] < 10
    assert (solution.rounds[1:] > 100).all()
    torch.testing.assert_close(solution.z, serial.z, rtol=1e-12, atol=1e-12)
    assert solution.relative_error.max() <= 1e-9
    spent = solution.evaluations
    assert spent[0] < spent[1] <= 150 + solution.extras["plan"].chosen.rounds * 2 * 150


def test_nothing_is_measured_where_step_by_step_is_no_choice() -> None:
    problem = timed(120, 0.0, 1.0)
    assert isinstance(problem.chain, Timed)
    limited = fixedpoint.solve(problem, rtol=1e-3, max_rounds=15)
    assert "plan" not in limited.extras
    assert limited.counts.rounds <= 15
    assert limited.counts.computed == limited.evaluations.sum()
    assert sum(problem.chain.sizes) == limited.counts.computed


def test_gradients_flow_without_a_plan() -> None:
    x0 = drawn(2, 3, 2).requires_grad_()
    solution = fixedpoint.solve(ChainProblem(wave_chain(30, 2, seed=1), x0), gradient="unrolled", rtol=1e-10)
    assert "plan" not in solution.extras
    (gradient,) = torch.autograd.grad(solution.z[:, -1].sum(), x0)
    assert gradient.isfinite().all()


@pytest.mark.usefixtures("simulated")
def test_a_step_that_is_not_finite_is_told_of_its_row() -> None:
    generator = torch.Generator().manual_seed(0)
    shift = torch.randn(2, 80, 2, generator=generator, dtype=torch.float64)
    shift[1, 40] = torch.nan
    chain = LinearChain(torch.full((80,), 0.5, dtype=torch.float64), shift)
    for call, state in ((1.0, 0.0), (0.0, 1.0)):
        problem = ChainProblem(Timed(chain, call, state), torch.ones(2, 2, dtype=torch.float64))
        solution = fixedpoint.solve(problem, rtol=1e-6)
        assert solution.status == (Status.CONVERGED, Status.NONFINITE)
        assert np.isfinite(solution.relative_error[0])


def test_a_planned_solver_wants_a_chain() -> None:
    with pytest.raises(TypeError, match="requires a chain"):
        PlannedChainSolver().solve(
            Evaluator(FunctionProblem(torch.cos, torch.ones(1, 2), None)), torch.ones(1, 2), Termination()
        )


def test_a_chain_that_cannot_be_solved_in_windows_is_planned_as_a_whole() -> None:
    costs = Costs((1, 4, 16, 64), (0.1, 0.11, 0.12, 0.5))
    found = planned(costs, length=200, slides=False, estimate=WITH_SECANTS)
    settings = [found.chosen, *found.others]
    assert {setting.window for setting in settings} == {None, 200}
    assert {setting.window for setting in planned_settings(costs)} > {None, 200}


def planned_settings(costs: Costs) -> list[Setting]:
    found = planned(costs, length=200)
    return [found.chosen, *found.others]
