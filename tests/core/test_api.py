"""The front door: what ``solve`` takes, what it refuses, what it hands on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fixedpoint import Anderson, Picard, Status, Termination, solve
from fixedpoint.core.problem import FunctionProblem, check_row_independence
from fixedpoint.core.solution import Solution
from fixedpoint.testing.problems import DOTTIE, Cosine, affine_contraction


def _start():
    return torch.full((2, 3), 0.5, dtype=torch.float64)


REFUSED = {
    "no start": (lambda: solve(torch.cos), TypeError, "solve wants a start z0 for a plain function"),
    "a start for a problem": (
        lambda: solve(Cosine(_start()), _start()),
        TypeError,
        "a problem brings its own start; leave out z0",
    ),
    "rows for a problem": (lambda: solve(Cosine(_start()), rows="joint"), TypeError, "leave out rows"),
    "no function": (lambda: solve(3, _start()), TypeError, "f must be a function, got int"),
    "a start that is not finite": (
        lambda: solve(torch.cos, _start() / 0),
        ValueError,
        "z0 must be finite, got 6 entries that are NaN or Inf",
    ),
    "a solver that is none": (
        lambda: solve(torch.cos, _start(), solver=Termination()),
        TypeError,
        "solver must be a name, a mapping or a Solver, got Termination",
    ),
    "a gradient for a solver": (
        lambda: solve(torch.cos, _start(), solver="one-step"),
        ValueError,
        "unknown solver 'one-step'",
    ),
    "a tolerance out of range": (
        lambda: solve(torch.cos, _start(), rtol=-1.0),
        ValueError,
        "Termination: rtol must be at least 0.0, got -1.0",
    ),
    "a chain solver for no chain": (
        lambda: solve(torch.cos, _start(), solver="chain"),
        TypeError,
        "wants a (ChainProblem|chain)",
    ),
    "micro-batches of a plain function": (
        lambda: solve(torch.cos, _start(), max_batch=1),
        TypeError,
        "whose rows can be taken",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_are_refused_with_a_sentence(name):
    call, kind, sentence = REFUSED[name]
    with pytest.raises(kind, match=sentence):
        call()


def test_keywords_override_fields_of_the_termination():
    rule = Termination(rtol=1e-12, max_rounds=3)
    solution = solve(torch.cos, _start(), solver=Picard(), termination=rule, max_rounds=7)
    assert solution.counts.rounds == 7
    assert rule.max_rounds == 3
    loose = solve(torch.cos, _start(), solver=Picard(), termination=rule, rtol=0.3)
    assert loose.converged.all()


def test_zero_is_a_tolerance_like_any_other():
    solution = solve(lambda z: 0 * z + 2, _start(), solver=Picard(), rtol=0.0, atol=0.0)
    assert solution.status == (Status.CONVERGED,) * 2
    assert (solution.relative_error == 0).all()


def test_the_start_is_left_alone_and_not_shared():
    z0 = _start()
    kept = z0.clone()
    solution = solve(torch.cos, z0)
    assert torch.equal(z0, kept)
    solution.z.zero_()
    assert torch.equal(z0, kept)
    still = solve(lambda z: z, z0)
    still.z.zero_()
    assert torch.equal(z0, kept)


def test_a_problem_and_its_function_are_solved_alike():
    problem = affine_contraction((0.7, -0.2), seed=1)
    one = solve(problem)
    other = solve(problem.__call__, problem.initial(), rows="independent")
    assert torch.equal(one.z, other.z)
    assert one.status == other.status


def test_micro_batches_do_not_change_the_answer():
    problem = affine_contraction((0.7, -0.2), rows=5, seed=1)
    whole, parts = solve(problem), solve(problem, max_batch=2)
    assert torch.equal(whole.z, parts.z)
    assert parts.counts.calls > whole.counts.calls
    assert parts.counts.rounds == whole.counts.rounds
    assert (parts.evaluations == whole.evaluations).all()


def test_a_solution_says_what_was_judged():
    solution = solve(torch.cos, _start(), solver="anderson", rtol=1e-10)
    assert isinstance(solution, Solution)
    assert torch.equal(solution.fz, solution.z.cos())
    assert solution.solver == Anderson()
    assert np.allclose(solution.relative_error, 0, atol=1e-10)
    assert torch.allclose(solution.z, torch.full_like(solution.z, DOTTIE), rtol=1e-9)
    assert solution.trace.error.shape == (solution.counts.rounds, 2)
    assert solution.trace.relative[-1].max() <= 1e-10


def test_mixed_rows_are_found_out():
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fine = FunctionProblem(torch.cos, start)
    mixing = FunctionProblem(lambda z: z - z.mean(dim=0), start)
    assert check_row_independence(fine).tolist() == [True] * 4
    assert check_row_independence(mixing).tolist() == [False] * 4
