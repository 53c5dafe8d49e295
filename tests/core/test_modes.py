"""Modes of torch that a caller may have set: inference mode, another default device, half precision by default."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import fixedpoint as fp
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.solution import Solution
from fixedpoint.layers import EquilibriumLayer
from fixedpoint.registry import registry
from fixedpoint.testing.chains import linear_chain

SOLVERS = [name for name, entry in registry.components("solver").items() if not entry.missing()]


@contextlib.contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "inference mode": torch.inference_mode,
    "another default device": lambda: default_device("meta"),
    "half precision by default": lambda: default_dtype(torch.float16),
}


def contraction() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """An affine contraction in double precision, and its start."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    matrix *= 0.5 / torch.linalg.matrix_norm(matrix, 2)
    shift = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    return lambda z: z @ matrix.T + shift, torch.zeros(3, 5, dtype=torch.float64)


def solved(name: str, mode: Callable[[], contextlib.AbstractContextManager[object]], inside: bool) -> Solution:
    """The solution in a mode; ``inside``: what is solved is made in the mode, too."""
    solver = registry.create("solver", name)
    chains = "chain" in solver.needs

    def made() -> tuple[Callable[[Tensor], Tensor], Tensor] | ChainProblem:
        if not chains:
            return contraction()
        start = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return ChainProblem(linear_chain(rows=2, length=6, size=3), start)

    before = None if inside else made()
    with mode():
        given = before or made()
        if isinstance(given, tuple):
            return fp.solve(given[0], given[1], solver=solver, rtol=1e-8)
        return fp.solve(given, solver=solver, rtol=1e-8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_finds_the_same_in_every_mode(name: str, mode: str) -> None:
    expected = solved(name, contextlib.nullcontext, inside=False)
    assert expected.converged.all()
    found = solved(name, MODES[mode], inside=False)
    assert found.converged.all(), found
    assert found.z.dtype == torch.float64
    assert found.z.device.type == "cpu"
    torch.testing.assert_close(found.z, expected.z, rtol=1e-12, atol=1e-12)
    assert found.evaluations.tolist() == expected.evaluations.tolist()


@pytest.mark.parametrize("name", SOLVERS)
def test_what_is_made_in_inference_mode_is_solved_in_it(name: str) -> None:
    expected = solved(name, contextlib.nullcontext, inside=False)
    found = solved(name, torch.inference_mode, inside=True)
    torch.testing.assert_close(found.z, expected.z, rtol=1e-7, atol=1e-7)
    assert found.converged.all()
    assert not found.z.is_inference()  # so that it can be written into, and go into a graph


@pytest.mark.parametrize("solver", ["anderson", "newton-krylov", "picard"])
def test_a_function_may_use_inference_mode_itself(solver: str) -> None:
    f, start = contraction()
    expected = fp.solve(f, start, solver=solver, rtol=1e-8).z
    found = fp.solve(torch.inference_mode()(f), start, solver=solver, rtol=1e-7)
    assert found.converged.all()
    torch.testing.assert_close(found.z, expected, rtol=1e-5, atol=1e-5)


def test_the_modes_are_left_as_they_were() -> None:
    f, start = contraction()
    with torch.inference_mode():
        fp.solve(f, start)
        assert torch.is_inference_mode_enabled()
    with default_dtype(torch.float16):
        fp.solve(f, start, solver="torchdeq-anderson")
        assert torch.get_default_dtype() == torch.float16


def test_the_function_sees_the_default_dtype_of_the_caller() -> None:
    f, start = contraction()
    seen = set()

    def looking(z: Tensor) -> Tensor:
        seen.add(torch.get_default_dtype())
        return f(z)

    with default_dtype(torch.float16):
        fp.solve(looking, start, solver="torchdeq-broyden")
    assert seen == {torch.float16}


def test_a_layer_and_a_root_in_inference_mode() -> None:
    torch.manual_seed(0)

    class Cell(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(0.5 * self.linear(z) + x)

    layer, x = EquilibriumLayer(Cell()).eval(), torch.randn(3, 4)
    expected = layer(x).detach()
    with torch.inference_mode():
        torch.testing.assert_close(layer(x * 1.0), expected)
    with torch.inference_mode():
        root = fp.find_root(lambda z: z**3 - 2.0, torch.ones(2, 1, dtype=torch.float64))
    torch.testing.assert_close(root.z, torch.full((2, 1), 2.0 ** (1 / 3), dtype=torch.float64))
