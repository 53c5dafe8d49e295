"""Values in memory that the function keeps and fills anew: the same solve as with fresh memory, and no copy of that."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fixedpoint import Picard, find_root, solve
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.layout import Layout
from fixedpoint.core.memory import Receiver
from fixedpoint.core.problem import Problem
from fixedpoint.core.solution import Solution

SIZE = 40
WEIGHT = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WEIGHT = 0.9 * (WEIGHT + WEIGHT.T) / torch.linalg.matrix_norm(WEIGHT + WEIGHT.T, 2)
SHIFT = torch.randn(1, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
START = torch.zeros(1, SIZE, dtype=torch.float64)
SOLVERS = ["auto", "anderson", "broyden", "squarem", "picard", "newton-krylov", "aitken", "anderson-type1"]


def value(z: Tensor) -> Tensor:
    return torch.tanh(z @ WEIGHT) + SHIFT


class Rotating:
    """Hands out buffers in turn."""

    def __init__(self, make: Callable[[int], Any], count: int) -> None:
        self.buffers = [make(k) for k in range(count)]
        self.calls = 0

    def next(self) -> Any:
        self.calls += 1
        return self.buffers[self.calls % len(self.buffers)]


def whole(count: int) -> Callable[[Tensor], Tensor]:
    buffers = Rotating(lambda _: torch.empty(1, SIZE, dtype=torch.float64), count)
    return lambda z: buffers.next().copy_(value(z))


def views(count: int) -> Callable[[Tensor], Tensor]:
    large = torch.empty(count * SIZE + 3, dtype=torch.float64)
    buffers = Rotating(lambda k: large[3 + k * SIZE : 3 + (k + 1) * SIZE].view(1, SIZE), count)
    return lambda z: buffers.next().copy_(value(z))


def unseen(count: int) -> Callable[[Tensor], Tensor]:
    """Aliases that autograd does not know to be views."""
    buffers = Rotating(lambda _: torch.empty(1, SIZE, dtype=torch.float64), count)
    return lambda z: buffers.next().copy_(value(z)).data


def storages(count: int) -> Callable[[Tensor], Tensor]:
    """No tensor is kept, only what tensors are made of."""
    buffers = Rotating(lambda _: torch.empty(SIZE, dtype=torch.float64).untyped_storage(), count)
    return lambda z: torch.empty(0, dtype=torch.float64).set_(buffers.next(), 0, (1, SIZE)).copy_(value(z))


def arrays(count: int) -> Callable[[Tensor], Tensor]:
    """Memory of numpy's, in tensors that are new each time."""
    buffers = Rotating(lambda _: np.empty((1, SIZE)), count)

    def f(z: Tensor) -> Tensor:
        buffer = torch.from_numpy(buffers.next())
        return buffer.copy_(value(z))

    return f


def steps(count: int) -> Callable[[Tensor], Tensor]:
    """Works in the buffer itself, from a copy of its argument there."""
    buffers = Rotating(lambda _: torch.empty(1, SIZE, dtype=torch.float64), count)

    def f(z: Tensor) -> Tensor:
        buffer = buffers.next().copy_(z)
        return buffer.copy_(buffer @ WEIGHT).tanh_().add_(SHIFT)

    return f


KINDS = {kind.__name__: kind for kind in (whole, views, unseen, storages, arrays, steps)}


@functools.cache
def reference(solver: str, hidden: bool) -> Solution:
    """With fresh memory; from what ``data`` gives forward mode gets nothing, whoever holds it."""
    return solve(lambda z: value(z).data if hidden else value(z), START, solver=solver, rtol=1e-8)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_static_buffers_take_the_evaluations_of_fresh_memory(kind: str, count: int) -> None:
    for name in SOLVERS:
        fresh = reference(name, kind == "unseen")
        reused = solve(KINDS[kind](count), START, solver=name, rtol=1e-8)
        assert reused.counts.calls == fresh.counts.calls, name
        assert torch.equal(reused.z, fresh.z), name
        assert torch.equal(reused.fz, fresh.fz), name


@pytest.mark.parametrize("solver", ["picard", "anderson", "newton-krylov"])
def test_structures_of_buffers(solver: str) -> None:
    kept = {"a": torch.empty(2, 3, dtype=torch.float64), "b": (torch.empty(2, 1, dtype=torch.float64),)}

    def fresh(z: Any) -> Any:
        return {"a": 0.5 * z["a"].cos() + z["b"][0], "b": (0.3 * z["a"].sum(1, keepdim=True).sin(),)}

    def reused(z: Any) -> Any:
        found = fresh(z)
        return {"a": kept["a"].copy_(found["a"]), "b": (kept["b"][0].copy_(found["b"][0]),)}

    start = {"a": torch.zeros(2, 3, dtype=torch.float64), "b": (torch.zeros(2, 1, dtype=torch.float64),)}
    one, other = (solve(f, start, solver=solver, rtol=1e-10) for f in (fresh, reused))
    assert torch.equal(one.state, other.state)
    assert abs(one.counts.calls - other.counts.calls) <= 1  # one try of forward mode, which is refused such memory


def test_a_problem_that_keeps_its_memory() -> None:
    class Keeping(Problem):
        def __init__(self) -> None:
            self.layout, self.f = Layout.of(START), whole(1)

        def initial(self) -> Tensor:
            return START

        def __call__(self, z: Tensor) -> Tensor:
            return self.f(z)

    assert torch.equal(solve(Keeping(), solver="picard").z, solve(value, START, solver="picard").z)


def test_numpy_buffers() -> None:
    buffer = np.empty(5)
    reused = solve(lambda z: np.cos(z, out=buffer), np.ones(5), rtol=1e-10)
    assert np.array_equal(reused.z, solve(np.cos, np.ones(5), rtol=1e-10).z)


def test_a_root_of_a_function_with_a_buffer() -> None:
    buffer = torch.empty(3, dtype=torch.float64)
    start = torch.ones(3, dtype=torch.float64)
    reused = find_root(lambda z: torch.sub(z.cos(), z, out=buffer), start, rtol=1e-10)
    assert torch.equal(reused.z, find_root(lambda z: z.cos() - z, start, rtol=1e-10).z)


@pytest.mark.parametrize("max_batch", [None, 2])
@pytest.mark.parametrize("solver", ["serial", "chain", "picard", {"name": "chain", "window": 4}], ids=str)
def test_a_chain_whose_steps_share_one_buffer(solver: Any, max_batch: int | None) -> None:
    """Micro-batches of one round are all there before any of them is used: one must not overwrite another."""

    class Steps(Chain):
        length = 9
        buffer: Tensor | None = None

        def step(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
            made = torch.tanh(0.9 * x + 0.1 * index.view(-1, 1)) + 0.3
            return made if self.buffer is None else self.buffer[: len(x)].copy_(made)

    x0 = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fresh, reused = Steps(), Steps()
    reused.buffer = torch.empty(100, 4, dtype=torch.float64)
    one, other = (solve(ChainProblem(c, x0, max_batch=max_batch), solver=solver, rtol=1e-9) for c in (fresh, reused))
    assert torch.equal(one.z, other.z)
    assert one.counts.calls == other.counts.calls


GRADIENTS = ["implicit", "one-step", "neumann", "shine", "phantom", "unrolled", "checkpointed-unrolled"]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_of_a_function_with_buffers_are_right_or_refused(gradient: str, count: int) -> None:
    shift = SHIFT.clone().requires_grad_()

    def loss(through: Callable[[Tensor], Tensor]) -> Tensor:
        f = lambda z: through(torch.tanh(z @ WEIGHT) + shift)  # noqa: E731
        (found,) = torch.autograd.grad(solve(f, START, solver="broyden", gradient=gradient).z.sum(), shift)
        return found

    buffers = Rotating(lambda _: torch.empty(1, SIZE, dtype=torch.float64), count)
    fresh = loss(lambda y: y)
    # One recorded evaluation; checkpointed rounds are not taken again where all rows are solved.
    if gradient in ("implicit", "one-step", "neumann", "shine", "checkpointed-unrolled"):
        assert torch.equal(loss(lambda y: buffers.next().detach().copy_(y)), fresh)
        return
    with pytest.raises(ValueError, match="f filled memory anew that it had returned before; while autograd records"):
        loss(lambda y: buffers.next().detach().copy_(y))


def test_what_is_said_of_a_changed_argument_is_true() -> None:
    """A buffer that comes back as the next argument is not told for one, a changed argument is."""
    start = torch.ones(1, 3, dtype=torch.float64, requires_grad=True)
    buffer = torch.empty(1, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="memory anew") as caught:
        solve(lambda z: buffer.copy_(0.5 * z.detach()), start, solver=Picard(), gradient="unrolled")
    assert "changed its argument" not in str(caught.value)
    for gradient in (None, "unrolled"):
        with pytest.raises(ValueError, match="f changed its argument in place"):
            solve(lambda z: z.mul_(0.5), torch.ones(1, 3), gradient=gradient)


def test_fresh_values_are_not_copied() -> None:
    """Whatever shape they have been given, and whoever looked at their memory before."""
    given: list[int] = []

    def noted(y: Tensor) -> Tensor:
        given.append(y.data_ptr())
        return y

    fresh: dict[str, Callable[[], Tensor]] = {
        "new": lambda: noted(torch.ones(3, 4) * 2),
        "a view": lambda: noted((torch.ones(4, 3) * 2).T.reshape(3, 4)),
        "of a list": lambda: noted([torch.ones(12) * 2][0].view(3, 4)),
        "by a module": lambda: noted(torch.nn.Linear(4, 4)(torch.ones(3, 4))),
        "with a graph of its own": lambda: _with_graph(noted),
    }
    with torch.no_grad():
        for name, make in fresh.items():
            receive = Receiver()
            value = receive(make)
            assert not receive.copied, name
            assert value.data_ptr() == given[-1], name
            assert not value.requires_grad
        held = torch.ones(3, 4)
        for make in (lambda: held, lambda: held.view(4, 3), lambda: held[:2], held.detach):
            receive = Receiver()
            assert receive(make).data_ptr() != held.data_ptr()
            assert receive.copied


def _with_graph(noted: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.enable_grad():
        x = torch.ones(3, 4, requires_grad=True)
        return noted(x.exp().tanh())


def test_a_solve_of_fresh_values_copies_none() -> None:
    """No more memory is written than the loop itself requires: what f returned is what is judged."""
    places: list[int] = []
    judged: list[int] = []

    def f(z: Tensor) -> Tensor:
        y = value(z)
        places.append(y.data_ptr())
        return y

    solve(f, START, solver="picard", on_round=lambda progress: judged.append(progress.latest.data_ptr()))
    assert judged == places
