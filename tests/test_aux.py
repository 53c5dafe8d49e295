"""``has_aux``: what a function returns beside its value, at the point that is returned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fixedpoint import find_root, solve
from fixedpoint.testing.problems import affine_contraction

START = torch.full((2, 3), 0.5, dtype=torch.float64)


@pytest.mark.parametrize("solver", ["picard", "anderson", "auto", "newton-krylov", "krylov"])
def test_aux_belongs_to_the_returned_point(solver: str) -> None:
    """Rows end after different rounds, and the last evaluation is rarely the best: it is evaluated once more."""
    gains = torch.tensor([[0.2], [0.99]], dtype=torch.float64)
    seen = [0]

    def f(z: Tensor) -> tuple[Tensor, dict[str, Any]]:
        seen[0] += 1
        return gains * z.cos(), {"at": z.clone(), "words": ["anything", seen[0]]}

    for limit in (3, 1000):
        seen[0] = 0
        solution = solve(f, START, solver=solver, has_aux=True, max_rounds=limit)
        without = solve(lambda z: f(z)[0], START, solver=solver, max_rounds=limit)
        assert torch.equal(solution.aux["at"], solution.z)
        assert torch.equal(solution.z, without.z)
        assert solution.counts.rounds == without.counts.rounds + 1
        assert solution.counts.calls == without.counts.calls + 1
        assert (solution.evaluations == without.evaluations + 1).all()
        assert solution.counts.computed == without.counts.computed + 2
        assert without.aux is None


def test_aux_is_anything() -> None:
    assert solve(lambda z: (np.cos(z), None), np.ones(3), has_aux=True).aux is None
    assert solve(lambda z: (0.5 * z, (z, "x")), 1.0, has_aux=True, atol=1e-3).aux[1] == "x"
    aux = solve(lambda z: ((0.5 * z[0] + 1, z[0].cos()), {"k": 3}), (START, START), has_aux=True).aux
    assert aux == {"k": 3}


def test_aux_is_in_memory_of_its_own() -> None:
    solution = solve(lambda z: (z.cos(), z), START, has_aux=True)
    kept = solution.z.clone()
    solution.aux.zero_()
    assert torch.equal(solution.z, kept)


def test_aux_is_differentiable_where_a_gradient_is_asked() -> None:
    """``z = a cos(z)``, ``aux = a z``: through the solution, and through what it depends on beside that."""
    a = torch.tensor([[0.7], [0.3]], dtype=torch.float64, requires_grad=True)
    f = lambda z: (a * z.cos(), a * z)  # noqa: E731
    solution = solve(f, START[:, :1], gradient="implicit", has_aux=True, rtol=1e-13)
    z = solution.z.detach()
    slope = z.cos() / (1 + a * z.sin())
    (found,) = torch.autograd.grad(solution.aux.sum(), a)
    assert torch.allclose(found, z + a * slope, rtol=1e-5)
    assert not solve(f, START[:, :1], has_aux=True).aux.requires_grad
    with torch.no_grad():
        assert not solve(f, START[:, :1], gradient="implicit", has_aux=True).aux.requires_grad


def test_aux_of_a_root() -> None:
    root = find_root(lambda x: (x**3 - 5.0, {"square": x**2}), np.array([1.5]), has_aux=True, rtol=1e-12)
    assert root.z == pytest.approx(5 ** (1 / 3), rel=1e-9)
    assert np.array_equal(root.aux["square"], root.z**2)


def test_without_has_aux_a_tuple_is_a_state() -> None:
    solution = solve(lambda z: (z[1].cos(), z[0].cos()), (START, START), rtol=1e-10)
    assert isinstance(solution.z, tuple)
    assert solution.aux is None


REFUSED = {
    "not said": (lambda: solve(lambda z: (z.cos(), 3), START), r"must have the structure of z0.*say has_aux=True"),
    "not said, of arrays": (lambda: solve(lambda z: (np.cos(z), {}), np.ones(3)), "say has_aux=True"),
    "not said, of a float": (lambda: solve(lambda z: (z / 2, "x"), 1.0), r"f.z. is a pair \(value, aux\)"),
    "not said, of a structure": (lambda: solve(lambda z: (z, 1), [START, START]), "say has_aux=True"),
    "not said, of a root": (lambda: find_root(lambda z: (z, 1), 1.0), r"where g\(z\) is a pair \(value, aux\)"),
    "no pair": (lambda: solve(torch.cos, START, has_aux=True), r"f must return a tuple \(value, aux\), got Tensor"),
    "three": (lambda: solve(lambda z: (z, 1, 2), START, has_aux=True), r"\(value, aux\), got 3 of them"),
    "a wrong value": (lambda: solve(lambda z: (z.float(), 1), START, has_aux=True), "f.z. must have the dtype of z0"),
    "a problem": (
        lambda: solve(affine_contraction((0.5,), seed=0), has_aux=True),
        "has_aux is for plain functions",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pairs_that_are_none_are_refused_with_a_sentence(name: str) -> None:
    act, sentence = REFUSED[name]
    with pytest.raises(TypeError, match=sentence):
        act()
