"""States in pieces: quasi-Newton methods see one system in the solve and in its adjoint equation, however it is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from draws import examples
from gradient_cases import cotangent
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint as fp
from fixedpoint.testing.problems import affine_contraction
from fixedpoint.testing.strategies import affine_contractions, cuts

QUASI_NEWTON: list[Any] = [
    fp.Broyden(),
    fp.Broyden(update="bad"),
    fp.Broyden(memory=2),
    fp.Anderson(),
    fp.AndersonTypeOne(),
]


@pytest.mark.parametrize("seed", range(4))
def test_broyden_ends_on_two_unknowns_in_two_tensors(seed: int) -> None:
    """At most ``2 D`` steps on affine maps (Gay 1979), forward and backward: the secants are those of the whole."""
    problem = affine_contraction((0.9, -0.6), rows=3, normal=False, bound=1.5, seed=seed)
    offset = problem.offset.clone().requires_grad_()

    def f(z: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        value = (problem.matrix * torch.cat(z, dim=1).unsqueeze(1)).sum(-1) + offset
        return value.split(1, dim=1)

    start = tuple(problem.start.split(1, dim=1))
    estimator = {"name": "implicit", "solver": "broyden", "termination": {"rtol": 1e-9}}
    solution = fp.solve(f, start, solver="broyden", rtol=1e-9, gradient=estimator)
    assert solution.converged.all()
    assert solution.rounds.max() <= 2 * 2 + 2
    g = cotangent((3, 2))
    (u,) = torch.autograd.grad(torch.cat(solution.z, dim=1), offset, g)
    report = solution.extras["adjoint"]
    assert report.converged.all()
    assert report.rounds <= 2 * 2 + 2
    wanted = torch.linalg.solve(torch.eye(2, dtype=torch.float64) - problem.matrix.mT, g)
    assert torch.allclose(u, wanted, rtol=1e-7)


@examples(10, 25)
@given(st.data())
def test_the_adjoint_of_pieces_is_that_of_the_whole(data: st.DataObject) -> None:
    """The same cotangent, products and gradient, bit for bit, for any cut of the state."""
    problem = data.draw(affine_contractions(bound=0.9), label="problem")
    solver = data.draw(st.sampled_from(QUASI_NEWTON), label="solver")
    cut = data.draw(cuts(problem.layout.size), label="cut")
    estimator = fp.Implicit(solver=solver, termination=fp.Termination(rtol=1e-9, max_rounds=200))
    g = cotangent(problem.start.shape, seed=3)
    found = []
    for pieces in (False, True):
        offset = problem.offset.clone().requires_grad_()
        mapped = lambda z, offset=offset: (problem.matrix * z.unsqueeze(1)).sum(-1) + offset  # noqa: E731
        f = (lambda value, mapped=mapped: cut.apply(mapped(cut.ravel(value)))) if pieces else mapped
        start = cut.apply(problem.start) if pieces else problem.start
        solution = fp.solve(f, start, solver="picard", rows="independent", rtol=1e-10, gradient=estimator)
        z = cut.ravel(solution.z) if pieces else solution.z
        (u,) = torch.autograd.grad(z, offset, g)
        found.append((u, solution.extras["adjoint"]))
    (whole, one), (parts, other) = found
    assert torch.equal(parts, whole)
    assert other.products.tolist() == one.products.tolist()
    assert other.status == one.status
