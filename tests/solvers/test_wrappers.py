"""Damped, Restarted, Polyalgorithm and Auto."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import fixedpoint
from fixedpoint import (
    Anderson,
    Auto,
    Damped,
    NewtonKrylov,
    Picard,
    Polyalgorithm,
    Restarted,
    Status,
    Termination,
    solve,
)
from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import OptionError, option
from fixedpoint.core.problem import FunctionProblem, HasMeasure, HasTake, Measure
from fixedpoint.core.progress import Progress
from fixedpoint.testing.problems import affine_contraction, tanh_cell


def mixed() -> torch.Tensor:
    """A start of four rows: the first two are easy under ``half_hard``, the others expand."""
    return torch.tensor([[0.1, 0.2], [0.3, 0.1], [2.0, 1.0], [3.0, 1.0]], dtype=torch.float64)


def half_hard(z: torch.Tensor) -> torch.Tensor:
    """Contracts below 1 and expands above, with a fixed point on either side."""
    return torch.where(z[:, :1] < 1.0, 0.5 * torch.cos(z), 4 * z - 5.0 + 0.1 * torch.sin(z))


def test_a_damped_picard_iteration_is_a_relaxed_one() -> None:
    problem = tanh_cell(size=8, rows=3, gain=1.3, seed=1)
    damped = solve(problem, solver=Damped(solver=Picard(), damping=0.4), rtol=1e-9)
    relaxed = solve(problem, solver=Picard(relaxation=0.4), rtol=1e-9)
    assert torch.allclose(damped.z, relaxed.z, rtol=1e-12)
    assert (damped.rounds == relaxed.rounds).all()


def test_damping_one_changes_nothing() -> None:
    problem = tanh_cell(size=8, rows=3, gain=1.3, seed=1)
    whole, plain = (solve(problem, solver=s, rtol=1e-9) for s in (Damped(damping=1.0), Anderson()))
    assert torch.allclose(whole.z, plain.z, rtol=1e-13)
    assert (whole.rounds == plain.rounds).all()


def test_damping_tames_an_expanding_map() -> None:
    f, start = (lambda z: -1.5 * z + 5.0), torch.zeros(2, 3, dtype=torch.float64)
    assert not solve(f, start, solver="picard").converged.any()
    assert solve(f, start, solver=Damped(solver=Picard(), damping=0.5)).converged.all()


def test_a_history_forgotten_each_step_is_none() -> None:
    problem = tanh_cell(size=8, rows=3, gain=1.3, seed=1)
    forgetful = solve(problem, solver=Restarted(every=1), rtol=1e-9)
    plain = solve(problem, solver="picard", rtol=1e-9)
    assert (forgetful.rounds == plain.rounds).all()
    assert torch.allclose(forgetful.z, plain.z, rtol=1e-12)


def test_a_restart_that_never_comes_changes_nothing() -> None:
    problem = tanh_cell(size=8, rows=3, gain=1.3, seed=1)
    never, plain = (solve(problem, solver=s, rtol=1e-9) for s in (Restarted(every=10_000), Anderson()))
    assert torch.equal(never.z, plain.z)


@pytest.mark.parametrize("wrapper", [Damped, Restarted])
def test_chains_have_a_wrapper_of_their_own(wrapper: type) -> None:
    with pytest.raises(OptionError, match="solver must not be a solver of chains"):
        wrapper(solver=fixedpoint.DEQDDIM())
    with pytest.raises(OptionError, match="solver must be StepSolver, got ChainSolver"):
        wrapper(solver=fixedpoint.ChainSolver())
    with pytest.raises(TypeError, match="evaluates within its step and cannot be damped"):
        solve(torch.cos, mixed(), solver=Damped(solver=NewtonKrylov()))


@pytest.mark.parametrize("takes", [True, False])
def test_only_the_rows_that_failed_are_handed_on(takes: bool) -> None:
    calls: list[int] = []

    class Takeable(FunctionProblem, HasTake):
        def take(self, rows: torch.Tensor) -> Takeable:
            return Takeable(self.function, self.initial()[rows])

    def watched(z: torch.Tensor) -> torch.Tensor:
        calls.append(len(z))
        return half_hard(z)

    problem = (Takeable if takes else FunctionProblem)(watched, mixed())
    told: list[Progress] = []
    solver = Polyalgorithm(first=Picard(), then=NewtonKrylov())
    solution = solve(problem, solver=solver, rtol=1e-10, on_round=told.append)
    assert solution.converged.all()
    assert torch.allclose(half_hard(solution.z), solution.z, rtol=1e-9)
    assert solution.solver == solver
    first = solve(FunctionProblem(half_hard, mixed()), solver="picard", rtol=1e-10, max_rounds=500)
    assert first.status[0] is Status.CONVERGED
    assert first.status[2] is Status.DIVERGED
    assert torch.equal(solution.z[:2], first.z[:2])
    assert (solution.rounds[:2] == first.rounds[:2]).all()
    assert (solution.evaluations[:2] == first.evaluations[:2]).all()
    assert (solution.rounds[2:] > first.rounds[2:]).all()
    assert solution.trace.error.shape[1] == 4
    assert np.isnan(solution.trace.error[-1, :2]).all()
    assert len(solution.trace.rounds) == len(solution.trace.error)
    assert solution.trace.rounds[-1] == solution.counts.rounds == solution.rounds.max()
    assert (np.diff(solution.trace.rounds) >= 0).all()
    assert [progress.round for progress in told] == sorted(progress.round for progress in told)
    if takes:
        assert 2 in calls
    else:
        assert set(calls) == {4}


def test_the_rounds_are_shared() -> None:
    problem = affine_contraction(np.linspace(-0.9, 0.999, 30), rows=2, seed=3)
    for limit in (1, 2, 9, 40):
        solution = solve(problem, solver="polyalgorithm", rtol=1e-14, max_rounds=limit)
        assert solution.counts.rounds <= limit
    assert solve(problem, solver=Polyalgorithm(first=Picard(), then=Anderson(memory=30)), rtol=1e-10).converged.all()


def test_a_tolerance_relative_to_the_start_stays_so() -> None:
    rule = Termination(rtol=1e-6, relative_to="start", max_rounds=400)
    solution = solve(half_hard, mixed(), solver=Polyalgorithm(first=Picard(), then=NewtonKrylov()), termination=rule)
    assert solution.converged.all()
    assert (solution.error.amax(1).numpy() <= 1e-6 * solution.trace.error[0]).all()


def test_what_neither_solves_keeps_the_better_point() -> None:
    def hopeless(z: torch.Tensor) -> torch.Tensor:
        return z + 1.0 + z * z

    start = torch.zeros(2, 2, dtype=torch.float64)
    solution = solve(hopeless, start, solver="polyalgorithm", max_rounds=60)
    assert not solution.converged.any()
    assert (solution.error.amax(1).numpy() <= np.nanmin(solution.trace.error, axis=0) * (1 + 1e-12)).all()


def test_auto_keeps_as_many_steps_as_fit() -> None:
    def memory(rows: int, size: int, limit: float = 1.0) -> int:
        z = torch.zeros(rows, size)
        return Auto(history_limit=limit).anderson(Evaluator(FunctionProblem(torch.cos, z, "independent"))).memory

    assert memory(1, 3) == 3  # never more than there are unknowns
    assert memory(1, 1000) == 100
    assert memory(64, 1000, limit=0.01) == int(0.01 * 2**30 / (2 * 64 * 1000 * 4))
    assert memory(64, 1000, limit=1e-6) == 5


def test_auto_solves_what_contracts_and_what_does_not() -> None:
    solution = solve(half_hard, mixed(), solver="auto", rtol=1e-10)
    assert solution.converged.all()
    assert solution.solver == Auto()


class Measured(FunctionProblem, HasMeasure):
    """A problem with a measure of its own whose rows cannot be taken."""

    def measure(self, z: torch.Tensor, fz: torch.Tensor, residual: torch.Tensor) -> Measure:
        return Measure(residual.abs().amax(1, keepdim=True).double(), fz.abs().amax(1, keepdim=True).double())


def test_rows_that_cannot_be_judged_alone_are_not_handed_on() -> None:
    problem = Measured(half_hard, mixed())
    with pytest.raises(TypeError, match=r"Measured has a measure or cost of its own; .* \(a take method\)"):
        solve(problem, solver="polyalgorithm")
    alone = solve(problem, solver="auto", rtol=1e-10)
    assert alone.converged[:2].all()
    assert solve(Measured(half_hard, mixed()[2:3]), solver="auto", rtol=1e-10).converged.all()


def test_auto_can_be_unrolled() -> None:
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    z0 = torch.ones(2, 2, dtype=torch.float64)
    solution = solve(lambda z: torch.cos(theta * z), z0, solver="auto", gradient="unrolled", rtol=1e-12)
    solution.z.sum().backward()
    z = solution.z.detach()
    exact = (-z * torch.sin(theta * z) / (1 + theta * torch.sin(theta * z))).sum()
    assert torch.allclose(theta.grad, exact.detach(), rtol=1e-6)


def test_how_the_products_were_made_is_told() -> None:
    start = torch.full((2, 2), 2.0, dtype=torch.float64)
    assert solve(torch.cos, start, solver="newton-krylov").extras == {"jacobian": "forward"}
    assert solve(np.cos, start.numpy(), solver="newton-krylov").extras == {"jacobian": "difference"}


@dataclass(frozen=True)
class Careless(StepSolver[None]):
    """Returns what is given in place of (proposal, state)."""

    returns: Any = option("tensor", help="what a step returns")

    def init(self, f: Evaluator, at: Evaluated) -> None:
        return None

    def step(self, f: Evaluator, at: Evaluated, state: None) -> Any:
        return {"tensor": at.fz, "evaluated": at, "three": (at.fz, state, 1), "none": None}[self.returns]


@pytest.mark.parametrize(
    ("returns", "got"),
    [("tensor", "a Tensor"), ("evaluated", "an Evaluated"), ("three", "3 values"), ("none", "None")],
)
@pytest.mark.parametrize("within", [lambda solver: solver, Damped, Restarted], ids=["itself", "damped", "restarted"])
def test_a_step_that_returns_no_proposal_and_state_is_refused(within: Any, returns: str, got: str) -> None:
    start = torch.zeros(2, 3, dtype=torch.float64)  # two rows, which could be unpacked
    with pytest.raises(TypeError, match=rf"Careless: step must return \(proposal, state\), got {got}$"):
        solve(torch.cos, start, solver=within(Careless(returns)))
