"""torchdeq's solvers as ours: counted, limited, and judged at the point they return."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import fixedpoint as fp
from fixedpoint.core.options import OptionError
from fixedpoint.core.solution import Claim
from fixedpoint.core.solver import Solver
from fixedpoint.core.status import Status
from fixedpoint.registry import registry
from fixedpoint.testing.problems import HEquation, affine_contraction, tanh_cell
from fixedpoint.testing.wrappers import Counted, Poisoned, Tally
from fixedpoint_torchdeq import TorchdeqAnderson, TorchdeqBroyden, TorchdeqPicard

SOLVERS = [TorchdeqPicard(), TorchdeqAnderson(), TorchdeqBroyden(), TorchdeqBroyden(ls=True)]
EACH = pytest.mark.parametrize("solver", SOLVERS, ids=str)


def test_they_are_found_by_name() -> None:
    assert registry.create("solver", {"name": "torchdeq-anderson", "m": 3}) == TorchdeqAnderson(m=3)
    assert registry.create("solver", "torchdeq-picard") == TorchdeqPicard()
    assert registry.create("solver", "torchdeq-broyden") == TorchdeqBroyden()


def test_published_evaluations_but_for_the_one_that_judges() -> None:
    """Chandrasekhar's equation to an absolute residual of 1e-3, 1e-5 and 1e-8, as torchdeq alone takes them."""
    h = HEquation(torch.ones(1, 512, dtype=torch.float64), torch.full((1, 1), 0.99, dtype=torch.float64))
    spent = [
        [fp.solve(h, solver=solver, termination=fp.Termination(rtol=0.0, atol=atol)).counts.rounds for atol in TOLS]
        for solver in SOLVERS[:3]
    ]
    assert spent == [[34 + 1, 54 + 1, 84 + 1], [12 + 1, 80 + 1, 189 + 1], [7, 9, 10]]


TOLS = (1e-3, 1e-5, 1e-8)


@EACH
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 10])
def test_the_limit_on_rounds_holds_all_evaluations(solver: Solver, limit: int) -> None:
    tally = Tally()
    problem = affine_contraction((-3.0, 0.95, -0.5, 0.9, 0.8, 0.7, -0.9, 2.0, -2.0, 0.6, 0.4, 0.3), seed=4)
    solution = fp.solve(Counted(problem, tally), solver=solver, rtol=1e-14, max_rounds=limit)
    assert tally.calls == solution.counts.rounds <= limit
    assert set(solution.status) == {Status.MAX_ROUNDS}
    assert torch.allclose(solution.fstate, problem(solution.state), rtol=1e-12)


def test_what_was_evaluated_is_not_evaluated_again() -> None:
    tally = Tally()
    solution = fp.solve(Counted(tanh_cell(gain=0.8, seed=3), tally), solver=TorchdeqBroyden(), rtol=1e-6)
    assert solution.extras["claimed"].converged.all()
    assert tally.calls == solution.counts.rounds == len(solution.trace.error)
    assert solution.trace.relative[-2].max() > 1e-6 >= solution.trace.relative[-1].max()


def test_claims_stand_beside_what_was_judged() -> None:
    solution = fp.solve(tanh_cell(gain=0.8, seed=3), solver=TorchdeqPicard(tau=0.02), rtol=1e-2)
    claim = solution.extras["claimed"]
    assert isinstance(claim, Claim)
    assert claim.relative
    assert claim.tolerance == 1e-2
    assert claim.converged.all()
    assert solution.status == (Status.STALLED,) * 4
    error = (solution.error / solution.scale).amax(dim=1).numpy()
    assert (error > 20 * claim.residual).all()
    assert int((claim.converged & ~solution.converged).sum()) == 4


@EACH
def test_a_row_that_turns_nan_comes_back_with_its_best_point(solver: Solver) -> None:
    problem = Poisoned(tanh_cell(gain=0.8, seed=3), torch.arange(4) == 1, grace=3)
    solution = fp.solve(problem, solver=solver, rtol=1e-6, max_rounds=60)
    assert solution.status[1] is Status.NONFINITE
    assert bool(solution.state.isfinite().all())
    if "claimed" in solution.extras:
        assert not solution.extras["claimed"].converged[1]


@EACH
def test_an_absolute_tolerance_is_theirs_too(solver: Solver) -> None:
    solution = fp.solve(
        tanh_cell(gain=0.8, seed=3), solver=solver, termination=fp.Termination(rtol=0.0, atol=1e-5)
    ).raise_for_status()
    claim = solution.extras["claimed"]
    assert not claim.relative
    assert claim.tolerance == 1e-5
    assert bool((solution.error <= 1e-5).all())


@pytest.mark.parametrize(
    "termination",
    [
        fp.Termination(rtol=1e-5, relative_to="start"),
        fp.Termination(rtol=1e-5, atol=1e-5),
        fp.Termination(rtol=0.0, atol=1e-5, norm="rms"),
        fp.Termination(rtol=1e-5, norm="rms"),
        fp.Termination(rtol=0.0, atol=1e-5, norm="max"),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["auto", "abs", "rel"])
def test_other_terminations_are_put_in_their_terms(termination: fp.Termination, mode: str) -> None:
    method = registry.create("solver", {"name": "torchdeq-broyden", "stop_mode": mode})
    solution = fp.solve(tanh_cell(gain=0.8, seed=3), solver=method, termination=termination).raise_for_status()
    assert solution.counts.rounds < 30


@EACH
def test_exceptions_of_f_pass_as_they_are(solver: Solver) -> None:
    problem = tanh_cell(gain=0.8, seed=3)
    error = ValueError("of f")
    calls = []

    def f(z: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return problem(z)

    with pytest.raises(ValueError, match="of f") as caught:
        fp.solve(f, problem.initial(), solver=solver)
    assert caught.value is error
    assert error.__notes__ == ["raised by f in round 3 of the solve"]


def test_their_own_exceptions_say_where_they_come_from() -> None:
    cell = tanh_cell(gain=0.8, seed=3).astype(torch.bfloat16)
    with pytest.raises(NotImplementedError) as caught:
        fp.solve(cell, solver="torchdeq-anderson", rtol=1e-2)
    assert caught.value.__notes__ == ["raised inside torchdeq's anderson_solver, on a state of torch.bfloat16 on cpu"]


def test_nan_of_half_precision_is_a_status() -> None:
    cell = tanh_cell(gain=0.8, seed=3).astype(torch.float16)
    solution = fp.solve(cell, solver="torchdeq-broyden", rtol=1e-5, max_rounds=60)
    assert bool(solution.state.isfinite().all())
    assert Status.NONFINITE in solution.status
    assert not solution.extras["claimed"].converged.any()


def test_a_diverging_row_says_so() -> None:
    growing = affine_contraction((3.0, 0.5, -0.5), seed=4)
    solution = fp.solve(growing, solver="torchdeq-picard", max_rounds=60)
    assert solution.status == (Status.DIVERGED,) * 4


@EACH
def test_it_is_watched_round_by_round(solver: Solver) -> None:
    seen: list[tuple[int, float]] = []
    solution = fp.solve(
        tanh_cell(gain=0.8, seed=3),
        solver=solver,
        rtol=1e-4,
        on_round=lambda progress: seen.append((progress.round, progress.relative_error)),
    )
    assert [each[0] for each in seen] == list(range(1, solution.counts.rounds + 1))
    assert np.array_equal([each[1] for each in seen], solution.trace.relative.max(axis=1))


def test_misspelt_and_senseless_options_are_refused() -> None:
    with pytest.raises(TypeError, match="TorchdeqAnderson: memory is no option"):
        TorchdeqAnderson(memory=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"unknown option 'lamb'; did you mean .lam."):
        registry.create("solver", {"name": "torchdeq-anderson", "lamb": 1e-3})
    with pytest.raises(OptionError, match="m must be at least 2, got 1"):
        TorchdeqAnderson(m=1)
    with pytest.raises(OptionError, match="stop_mode must be one of"):
        TorchdeqPicard(stop_mode="relative")  # type: ignore[arg-type]


def test_unrolling_through_detached_iterates_is_refused() -> None:
    shift = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="detaches its iterates and cannot be unrolled"):
        fp.solve(lambda z: 0.5 * z + shift, torch.zeros(2, 3).double(), solver="torchdeq-picard", gradient="unrolled")


def test_the_one_step_gradient_goes_through() -> None:
    shift = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    start = torch.zeros(2, 3, dtype=torch.float64)
    fp.solve(lambda z: 0.5 * z + shift, start, solver="torchdeq-anderson", gradient="one-step").z.sum().backward()
    assert shift.grad is not None
    assert bool((shift.grad == 1.0).all())
