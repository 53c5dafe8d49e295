"""Jacobian-vector products: every call of the function is counted, whichever way of forward mode fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fixedpoint
from fixedpoint import Krylov, NewtonKrylov, Picard, Termination, solve
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.problem import FunctionProblem
from fixedpoint.testing.problems import HEquation, tanh_cell
from fixedpoint.testing.wrappers import Counted, Opaque, Tally


class _Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


BUFFER = torch.empty(3, 8, dtype=torch.float64)
# What a function may do that a way of forward mode cannot follow.
LACKING = {
    "an operation without forward mode": lambda y: _Backwards.apply(y),
    "memory given by out=": lambda y: torch.mul(y, 1.0, out=torch.empty_like(y)),
    "numpy": lambda y: torch.from_numpy(y.numpy().copy()),
    "numbers on the host": lambda y: torch.tensor(y.tolist(), dtype=torch.float64),
    "a buffer, and no forward mode": lambda y: _Backwards.apply(BUFFER.copy_(y)),
    "a buffer": lambda y: BUFFER.copy_(y) * 1.0,
    "nothing": lambda y: y,
}


def watched(through: Any = LACKING["nothing"]):
    generator = torch.Generator().manual_seed(0)
    weight = 0.33 * torch.randn(8, 8, generator=generator, dtype=torch.float64)
    gains = torch.tensor([[1.0], [0.5], [1.2]], dtype=torch.float64)
    calls = [0]

    def f(z: Tensor) -> Tensor:
        calls[0] += 1
        return torch.tanh(through(z @ weight * gains)) + 1.0

    return f, calls, torch.zeros(3, 8, dtype=torch.float64)


@pytest.mark.parametrize("limit", [2, 4, 1000])
@pytest.mark.parametrize("solver", ["newton-krylov", "krylov", {"name": "krylov", "method": "bicgstab"}], ids=str)
@pytest.mark.parametrize("through", LACKING)
def test_tries_of_forward_mode_are_calls_like_any(through: str, solver: Any, limit: int) -> None:
    f, calls, z0 = watched(LACKING[through])
    counts = solve(f, z0, solver=solver, max_rounds=limit, rtol=1e-10, rows="joint").counts
    assert counts.calls == counts.rounds == counts.computed == calls[0] <= limit
    assert (counts.evaluations + counts.products).tolist() == [calls[0]]


def test_every_row_is_counted_where_rows_are_taken_and_micro_batched() -> None:
    for problem in (
        tanh_cell(gain=0.9, seed=1),
        HEquation(torch.ones(4, 8).double(), torch.full((4, 1), 0.9).double()),
    ):
        for max_batch in (None, 1, 3):
            tally = Tally()
            solution = solve(Counted(Opaque(problem), tally), solver="newton-krylov", max_batch=max_batch, rtol=1e-10)
            counts = solution.counts
            assert solution.converged.all()
            assert counts.calls == tally.calls
            assert (counts.evaluations + counts.products).tolist() == [tally.rows[row] for row in range(4)]
            assert counts.computed == sum(tally.rows.values())


def test_products_take_micro_batches() -> None:
    seen = []

    class Watched(Counted):
        def __call__(self, z: Tensor) -> Tensor:
            seen.append(len(z))
            return super().__call__(z)

    solution = solve(Watched(tanh_cell(gain=0.9, seed=1)), solver="newton-krylov", max_batch=3, rtol=1e-10)
    assert solution.extras["jacobian"] == "forward"
    assert max(seen) == 3
    assert len(seen) == solution.counts.calls


def test_a_way_that_failed_is_not_tried_again() -> None:
    """Not by the part of the rows that goes on alone, either: one try in the whole solve."""
    tally = Tally()
    start = torch.tensor([[1.0], [1e3], [1e6], [1.0]], dtype=torch.float64)
    problem = Counted(Opaque(HEquation(torch.ones(4, 1).double(), start / 2e6)), tally)
    solution = solve(problem, solver="newton-krylov", rtol=1e-12)
    without = solve(problem.inner, solver=NewtonKrylov(jacobian="difference"), rtol=1e-12)
    assert solution.counts.calls == without.counts.calls + 1


def test_a_function_worked_out_on_the_host_has_no_zero_derivative() -> None:
    """``torch.func`` sees no dependence there and says zero: Newton's method would be plain iteration."""
    f, _, z0 = watched(LACKING["numbers on the host"])
    solution = solve(f, z0, solver="newton-krylov", rtol=1e-10)
    plain, _, _ = watched()
    reference = solve(plain, z0, solver="newton-krylov", rtol=1e-10)
    assert solution.extras["jacobian"] == "difference"
    assert solution.counts.rounds <= reference.counts.rounds + 3


def test_memory_of_its_own_within_a_function_keeps_forward_mode() -> None:
    f, _, z0 = watched(LACKING["a buffer"])
    plain, _, _ = watched()
    solution = solve(f, z0, solver="newton-krylov", rtol=1e-10)
    assert solution.extras["jacobian"] == "forward"
    assert solution.counts.calls == solve(plain, z0, solver="newton-krylov", rtol=1e-10).counts.calls + 1
    assert torch.allclose(solution.z, solve(plain, z0, rtol=1e-12).z)


def test_exact_products_raise_what_forward_mode_raises() -> None:
    f, _, z0 = watched(LACKING["an operation without forward mode"])
    with pytest.raises(RuntimeError) as caught:
        solve(f, z0, solver=NewtonKrylov(jacobian="forward"))
    assert caught.value.__notes__ == ["raised by f in round 2 of the solve"]
    constant = solve(lambda z: torch.ones_like(z), z0, solver=NewtonKrylov(jacobian="forward"))
    assert constant.converged.all()


def test_a_difference_is_within_the_square_root_of_rounding() -> None:
    f, _, z0 = watched()
    opaque, _, _ = watched(LACKING["an operation without forward mode"])
    v = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for function in (f, opaque):
        evaluator = Evaluator(FunctionProblem(function, z0))
        with torch.no_grad():
            at = evaluator(z0 + 0.1)
            found.append(evaluator.product(at, v))
        assert evaluator.counts.rounds == (2 if function is f else 3)
        assert evaluator.counts.evaluations.tolist() == [1 if function is f else 3] * 3
        assert evaluator.counts.products.tolist() == [1 if function is f else 0] * 3
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_exact_solvers_of_an_affine_map_count_the_try() -> None:
    f, calls, z0 = watched()
    assert solve(lambda z: 0.5 * z + 1, z0, solver=Krylov()).counts.calls == 3
    counted = [0]

    def affine(z: Tensor) -> Tensor:
        counted[0] += 1
        return 0.5 * _Backwards.apply(z) + 1

    solution = solve(affine, z0, solver=Krylov(), termination=Termination(rtol=1e-6))
    assert solution.counts.calls == counted[0] == 4
    assert np.all(solution.evaluations == 4)
    assert solve(f, z0, solver=Picard(), max_rounds=5).counts.calls == calls[0]
    assert fixedpoint.solve(np.cos, 1.0, solver="newton-krylov").counts.products.tolist() == [0]
