"""The evaluator: what it counts, cuts into micro-batches, leaves out and refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fixedpoint import Picard, Termination, solve
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.problem import FunctionProblem
from fixedpoint.testing.problems import affine_contraction
from fixedpoint.testing.wrappers import Counted, Tally


def _watched(rows: int = 5):
    tally = Tally()
    problem = affine_contraction((0.8, 0.5, -0.2), rows=rows, seed=1)
    return Counted(problem, tally), tally, problem


def test_an_evaluation_is_judged_at_its_own_point():
    problem = affine_contraction((0.8, 0.5, -0.2), seed=1)
    z = problem.initial()
    at = Evaluator(problem)(z)
    assert torch.equal(at.fz, problem(z))
    assert torch.equal(at.residual, problem(z) - z)
    assert torch.allclose(at.error[:, 0], torch.linalg.vector_norm(problem(z) - z, dim=1), rtol=1e-14)
    assert torch.allclose(at.scale[:, 0], torch.linalg.vector_norm(problem(z), dim=1), rtol=1e-14)
    assert at.finite.all()


@pytest.mark.parametrize(("norm", "order"), [("l2", 2.0), ("max", float("inf"))])
def test_norms_are_those_of_torch(norm, order):
    problem = affine_contraction((0.8, 0.5, -0.2), seed=2)
    z = problem.initial()
    error = Evaluator(problem, norm=norm)(z).error[:, 0]
    assert torch.allclose(error, torch.linalg.vector_norm(problem(z) - z, ord=order, dim=1), rtol=1e-14)


def test_rms_is_the_euclidean_norm_over_the_root_of_the_size():
    problem = affine_contraction((0.8, 0.5, -0.2), seed=2)
    z = problem.initial()
    error = Evaluator(problem, norm="rms")(z).error[:, 0]
    assert torch.allclose(error, (problem(z) - z).square().mean(dim=1).sqrt(), rtol=1e-14)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_norms_neither_underflow_nor_overflow(size):
    z = torch.full((1, 4), size, dtype=torch.float64)
    at = Evaluator(FunctionProblem(lambda z: 2 * z, z))(z)
    assert float(at.error) == pytest.approx(2 * size, rel=1e-12)
    assert at.finite.all()


@pytest.mark.parametrize(("max_batch", "parts"), [(None, [6]), (5, [6]), (2, [4, 2]), (1, [3, 1, 2])])
def test_a_function_of_entries_is_called_in_parts(max_batch, parts):
    evaluator = Evaluator(_watched()[0], max_batch=max_batch)
    row, x = np.array([0, 0, 0, 1, 4, 4]), torch.arange(6.0)
    sizes, memory = [], torch.empty(6)

    def shifted(x, by, row):
        sizes.append(len(x))
        return torch.add(x + by, row, out=memory[: len(x)])  # the next part overwrites it

    with torch.no_grad():
        value = evaluator.in_parts(shifted, x, 10 * x, row=row, calls=lambda entries: 10 + entries)
    assert torch.equal(value, 11 * x + torch.from_numpy(row))
    assert sizes == parts
    assert evaluator.counts.calls == sum(10 + size for size in parts)
    assert evaluator.counts.computed == 6
    assert evaluator.counts.rounds == evaluator.counts.evaluations.sum() == evaluator.counts.products.sum() == 0


@pytest.mark.parametrize("max_batch", [1, 2, 3, 5, 9])
def test_micro_batches_change_the_calls_and_nothing_else(max_batch):
    problem, tally, _ = _watched()
    z = problem.initial()
    whole = Evaluator(problem)(z)
    calls = tally.calls
    evaluator = Evaluator(problem, max_batch=max_batch)
    part = evaluator(z)
    assert torch.equal(part.fz, whole.fz)
    assert tally.calls - calls == evaluator.counts.calls == -(-5 // max_batch)
    assert evaluator.counts.rounds == 1
    assert evaluator.counts.evaluations.tolist() == [1] * 5
    assert evaluator.counts.computed == 5


def test_finished_rows_are_left_out_where_rows_can_be_taken():
    problem, tally, inner = _watched()
    evaluator = Evaluator(problem)
    z = problem.initial()
    evaluator.narrow(np.array([True, False, True, False, True]))
    at = evaluator(z)
    assert tally.rows == {0: 1, 2: 1, 4: 1}
    assert torch.equal(at.fz[[0, 2, 4]], inner(z)[[0, 2, 4]])
    assert torch.equal(at.fz[[1, 3]], z[[1, 3]])
    assert evaluator.counts.evaluations.tolist() == [1, 0, 1, 0, 1]
    assert evaluator.counts.computed == 3


def test_finished_rows_are_computed_but_not_counted_where_rows_cannot_be_taken():
    seen = []

    def f(z):
        seen.append(len(z))
        return 0.5 * z + 1

    z = torch.zeros(4, 2, dtype=torch.float64)
    evaluator = Evaluator(FunctionProblem(f, z))
    evaluator.narrow(np.array([True, False, False, True]))
    at = evaluator(z)
    assert seen == [4]
    assert evaluator.counts.evaluations.tolist() == [1, 0, 0, 1]
    assert evaluator.counts.computed == 4
    assert torch.equal(at.fz[1:3], z[1:3])


@pytest.mark.parametrize("take", [True, False])
def test_a_solve_counts_every_row_until_it_is_done(take):
    z = torch.tensor([[1.0], [1e3], [1e6]], dtype=torch.float64)
    problem = affine_contraction((0.5,), rows=3, seed=1)
    function = problem if take else problem.__call__
    start = () if take else (z,)
    if take:
        function = problem.starting_at(z)
    solution = solve(function, *start, solver=Picard(), atol=1e-3, rtol=0.0)
    taken = solution.evaluations
    assert taken[0] < taken[1] < taken[2] == solution.counts.rounds
    assert (solution.rounds == taken).all()
    assert solution.counts.computed == (taken.sum() if take else 3 * taken[2])
    assert np.isfinite(solution.trace.error[: taken[0], 0]).all()
    assert np.isnan(solution.trace.error[taken[0] :, 0]).all()


def test_the_best_point_of_every_row_is_kept():
    values = {1.0: 5.0, 2.0: 2.5, 3.0: 9.0}
    z = torch.tensor([[1.0]], dtype=torch.float64)
    evaluator = Evaluator(FunctionProblem(lambda z: torch.full_like(z, values[float(z)]), z))
    for point in values:
        evaluator(torch.full_like(z, point))
    assert evaluator.best is not None
    assert (float(evaluator.best.z), float(evaluator.best.fz), float(evaluator.best.error)) == (2.0, 2.5, 0.5)


def test_micro_batches_want_rows_that_can_be_taken():
    z = torch.zeros(2, 2)
    with pytest.raises(
        TypeError, match=r"max_batch requires a problem whose rows can be taken .*, got FunctionProblem"
    ):
        Evaluator(FunctionProblem(torch.cos, z), max_batch=1)
    with pytest.raises(ValueError, match="max_batch must be at least 1, got 0"):
        Evaluator(_watched()[0], max_batch=0)


WRONG = {
    "another shape": (lambda z: z[:, :1], ValueError, r"must have the shape of z0, \(2, 3\), got \(2, 1\)"),
    "another dtype": (lambda z: z.float(), TypeError, "must have the dtype of z0, torch.float64, got torch.float32"),
    "nothing": (lambda _: None, TypeError, "must be a tensor, an array or a float, got NoneType"),
    "its argument, changed": (lambda z: z.mul_(0.5), ValueError, "f changed its argument in place"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_f_returns_is_checked(name):
    f, kind, sentence = WRONG[name]
    with pytest.raises(kind, match=sentence):
        solve(f, torch.ones(2, 3, dtype=torch.float64))


def test_points_of_another_dtype_or_shape_are_refused_before_f_sees_them():
    problem, tally, _ = _watched()
    z = problem.initial()
    with pytest.raises(
        ValueError, match=r"must propose points of shape \(5, 3\), torch.float64, got \(5, 3\), torch.float32"
    ):
        Evaluator(problem)(z.float())
    with pytest.raises(ValueError, match=r"got \(4, 3\), torch.float64"):
        Evaluator(problem)(z[:4])
    assert tally.calls == 0


def test_memory_that_f_fills_anew_is_refused_while_autograd_records():
    buffer = torch.empty(2, 3, dtype=torch.float64)
    solver, start = Picard(relaxation=0.5), torch.ones(2, 3, dtype=torch.float64)

    def f(z):
        return torch.mul(z.detach(), 0.5, out=buffer)

    with pytest.raises(ValueError, match="filled memory anew that it had returned before; while autograd records"):
        solve(f, start, solver=solver, gradient="unrolled")
    assert torch.equal(solve(f, start, solver=solver).z, solve(lambda z: 0.5 * z, start, solver=solver).z)


def test_a_view_of_the_argument_is_taken_for_what_it_says():
    solution = solve(lambda z: z.flip(1).flip(1), torch.ones(2, 3, dtype=torch.float64))
    assert solution.converged.all()
    assert solve(lambda z: z, torch.ones(2, 3)).counts.rounds == 1


def test_an_exception_arrives_with_the_round_it_was_raised_in():
    def f(z):
        if float(z.max()) > 2:
            raise KeyError("no such thing")
        return z + 1

    with pytest.raises(KeyError) as caught:
        solve(f, torch.ones(1, 1, dtype=torch.float64), solver=Picard(), termination=Termination(rtol=1e-12))
    assert caught.value.__notes__ == ["raised by f in round 3 of the solve"]
