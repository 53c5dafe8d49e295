"""A loop that goes on with the rows still running, against one that keeps all of them to the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor

import fixedpoint as fp
import fixedpoint.core.loop
from fixedpoint.core.history import History
from fixedpoint.core.layout import Layout
from fixedpoint.core.problem import HasTake, Problem
from fixedpoint.core.subset import select_rows
from fixedpoint.registry import registry

SOLVERS = [
    "picard",
    {"name": "picard", "relaxation": 0.7},
    "anderson",
    {"name": "anderson", "memory": 3, "adaptive": "distance", "surprise": 2.0},
    "anderson-type1",
    "broyden",
    {"name": "broyden", "memory": 3, "update": "bad"},
    "aitken",
    "squarem",
    {"name": "squarem", "scheme": "squarem"},
    "newton-krylov",
    "krylov",
    {"name": "restarted", "every": 4},
    {"name": "damped", "solver": "broyden", "damping": 0.8},
]


class Tanh(Problem, HasTake):
    """``tanh(gain W z + x)`` with a gain and an ``x`` for every row, so that rows take different numbers of rounds."""

    def __init__(self, weight: Tensor, gain: Tensor, x: Tensor) -> None:
        self.weight, self.gain, self.x = weight, gain, x
        self.layout = Layout.of(x, "independent")
        self.seen: list[int] = []

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        self.seen.append(len(z))
        return torch.tanh(self.gain[:, None] * (self.weight * z.unsqueeze(1)).sum(-1) + self.x)

    def initial(self) -> Float[Tensor, "B D"]:
        return torch.zeros_like(self.x)

    def take(self, rows: Int[Tensor, " k"]) -> Tanh:
        part = Tanh(self.weight, self.gain[rows], self.x[rows])
        part.seen = self.seen
        return part


def tanh(rows: int = 16, size: int = 12, seed: int = 0) -> Tanh:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, size, generator=generator, dtype=torch.float64)
    weight = weight / torch.linalg.matrix_norm(weight, 2)
    order = torch.randperm(rows, generator=generator)
    gain = torch.linspace(0.05, 0.97, rows, dtype=torch.float64)[order]
    return Tanh(weight, gain, torch.randn(rows, size, generator=generator, dtype=torch.float64))


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A solve whose loop keeps all rows."""

    def solve(*given: Any, **options: Any) -> fp.Solution:
        with monkeypatch.context() as patched:
            patched.setattr(fixedpoint.core.loop, "is_small", lambda _: False)
            return fp.solve(*given, **options)

    return solve


def same(one: fp.Solution, other: fp.Solution) -> None:
    assert one.status == other.status
    for name in ("state", "fstate", "error", "scale"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name in ("rounds", "evaluations", "relative_error"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    for name in ("error", "relative", "rounds"):
        assert np.array_equal(getattr(one.trace, name), getattr(other.trace, name), equal_nan=True), name
    counts, others = one.counts, other.counts
    assert np.array_equal(counts.products, others.products)
    assert (counts.rounds, counts.calls, counts.computed) == (others.rounds, others.calls, others.computed)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_every_bit_is_that_of_the_loop_with_all_rows(solver: Any, whole: Any) -> None:
    made = registry.create("solver", solver)
    assert isinstance(made, fp.Krylov) or made.supports_row_selection
    for rtol, limit in ((1e-9, 400), (1e-9, 9), (1e-3, None)):
        termination = fp.Termination(rtol=rtol, max_rounds=limit)
        same(*(solve(tanh(), solver=solver, termination=termination) for solve in (fp.solve, whole)))


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_rows_that_do_not_stay_finite_and_rows_that_diverge_are_told_as_ever(solver: str, whole: Any) -> None:
    class Poisoned(Tanh):
        def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
            value = super().__call__(z)
            far = (self.gain > 0.6) & (z.abs().amax(1) > 0.3)
            return torch.where(far[:, None], torch.nan, value) + torch.where(self.gain > 0.9, 3.0, 0.0)[:, None] * z

        def take(self, rows: Int[Tensor, " k"]) -> Poisoned:
            part = super().take(rows)
            return Poisoned(part.weight, part.gain, part.x)

    plain = tanh(seed=3)
    found = [
        solve(Poisoned(plain.weight, plain.gain, plain.x), solver=solver, rtol=1e-8, max_rounds=80)
        for solve in (fp.solve, whole)
    ]
    assert len(set(found[0].status)) > 1
    same(*found)


@settings(max_examples=20)
@given(rows=st.integers(2, 40), seed=st.integers(0, 2**16), max_batch=st.none() | st.integers(1, 8))
def test_a_row_is_solved_as_if_it_were_alone(rows: int, seed: int, max_batch: int | None) -> None:
    problem = tanh(rows, seed=seed)
    together = fp.solve(problem, solver="anderson", rtol=1e-8, max_batch=max_batch)
    for row in {0, rows // 2, rows - 1}:
        alone = fp.solve(problem.take(torch.tensor([row])), solver="anderson", rtol=1e-8)
        assert torch.equal(alone.state[0], together.state[row])
        assert alone.evaluations[0] == together.evaluations[row]


def test_what_is_told_of_a_round_is_of_all_rows(whole: Any) -> None:
    def followed(solve: Any) -> list[tuple[Any, ...]]:
        told: list[tuple[Any, ...]] = []

        def note(progress: Any) -> None:
            latest = progress.latest.clone()
            told.append(
                (progress.round, progress.running, progress.relative_error, progress.evaluations.tolist(), latest)
            )

        solve(tanh(), solver="anderson", rtol=1e-9, on_round=note)
        return told

    ours, theirs = followed(fp.solve), followed(whole)
    assert [each[:4] for each in ours] == [each[:4] for each in theirs]
    assert all(each[4].shape == (16, 12) for each in ours)
    answer = fp.solve(tanh(), solver="anderson", rtol=1e-9)
    assert torch.equal(ours[-1][4][answer.rounds < 8], answer.fstate[answer.rounds < 8])  # ended long before


def test_what_f_raises_still_says_in_which_round() -> None:
    class Raising(Tanh):
        def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
            if len(z) <= 4:
                raise RuntimeError("enough")
            return super().__call__(z)

        def take(self, rows: Int[Tensor, " k"]) -> Raising:
            part = super().take(rows)
            return Raising(part.weight, part.gain, part.x)

    plain = tanh()
    reference = fp.solve(plain, solver="picard", rtol=1e-6)
    first = next(n for n in range(1, 200) if (reference.rounds >= n).sum() <= 4)
    with pytest.raises(RuntimeError, match="enough") as raised:
        fp.solve(Raising(plain.weight, plain.gain, plain.x), solver="picard", rtol=1e-6)
    assert f"raised by f in round {first} of the solve" in raised.value.__notes__


def test_where_somebody_wants_the_last_state_of_all_rows_all_rows_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(fixedpoint.core.loop, "is_small", lambda _: bool(asked.append(True)))
    fp.solve(tanh(), solver="broyden", gradient="shine", rtol=1e-6)
    assert not asked
    fp.solve(tanh(), solver="broyden", rtol=1e-6)
    assert asked


@pytest.mark.parametrize("solver", [each for each in SOLVERS if "krylov" not in each], ids=str)
def test_gradients_through_the_rounds_are_those_of_the_loop_with_all_rows(solver: Any, whole: Any) -> None:
    cotangent = torch.randn(16, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def differentiated(solve: Any) -> tuple[fp.Solution, list[Tensor]]:
        plain = tanh()
        given = [each.clone().requires_grad_() for each in (plain.weight, plain.x)]
        problem = Tanh(given[0], plain.gain, given[1])
        found = solve(problem, solver=solver, gradient="unrolled", rtol=1e-6, max_rounds=40)
        first = torch.autograd.grad((found.z * cotangent).sum(), given, create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), given)
        return found, [*first, *second]

    (ours, ours_gradients), (theirs, their_gradients) = differentiated(fp.solve), differentiated(whole)
    same(ours, theirs)
    for one, other in zip(ours_gradients, their_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.detach().abs().max()))


def test_one_tensor_in_two_places_is_one_tensor_still() -> None:
    tensor, index = torch.arange(12.0).reshape(4, 3), torch.tensor([1, 3])
    pair, table = select_rows(((tensor, "kept"), {"again": [tensor, None]}), index)
    assert torch.equal(pair[0], tensor[[1, 3]])
    assert pair[0] is table["again"][0]
    assert (pair[1], table["again"][1]) == ("kept", None)


def test_a_column_that_is_written_before_rows_are_dropped_goes_with_them() -> None:
    """On a device the loop reads the sums of a step, and so the newest column, before it decides about the rows."""
    generator = torch.Generator().manual_seed(0)
    first, second, none = (
        torch.randn(4, 3, generator=generator),
        torch.randn(4, 3, generator=generator),
        torch.zeros(4, 3),
    )
    everywhere = np.ones(4, dtype=np.bool_)
    with torch.no_grad():
        history = History.empty(none, 5, groups=1, on_host=True).push_differences((first, none), valid=everywhere)
        history.push_differences((second, none), valid=everywhere)  # what is written, not what is noted
        rows = np.array([1, 3])
        part = history.select_rows(torch.from_numpy(rows), rows).noted(everywhere[rows])
    assert part.valid.tolist() == [[True, True]] * 2
    assert torch.equal(part.columns[0][:, part.newest], second[rows])
    assert torch.equal(part.columns[0][:, part.order[1]], first[rows])
