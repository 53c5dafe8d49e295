"""Chains of predictions with a memory: serial, joint, in windows, and what they refuse."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor

import fixedpoint
from fixedpoint.chains import (
    Affine,
    AffineChain,
    Banded,
    BlockSecant,
    ChainAdjoint,
    ChainProblem,
    ChainSolver,
    Coefficient,
    Held,
    InverseProblem,
    NestedStart,
    PredictionChain,
    Recurrence,
    Zero,
)
from fixedpoint.chains.joint.shift import Shift
from fixedpoint.chains.joint.window import Window
from fixedpoint.chains.recurrence import affine, blocks
from fixedpoint.chains.recurrence.recurrence import LowRank
from fixedpoint.core.problem import AbilityError

F64 = torch.float64


class Multistep(AffineChain):
    """Predictions ``0.3 tanh(W_j u)`` joined by a random recurrence, with constants for every row if asked for."""

    def __init__(self, length: int, history: int, size: int, seed: int, rows: int = 0, dense: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.length = length
        self.weights = torch.randn(length, size, size, generator=generator, dtype=F64) / size**0.5
        if dense:
            starts = 1.0 + 0.1 * torch.randn(length + 1, generator=generator, dtype=F64)
            table = torch.randn(length + 1, length, generator=generator, dtype=F64) / length
            self.recurrence = Affine.dense(starts, table)
        else:
            inputs = 0.2 * torch.randn(length, history, generator=generator, dtype=F64)
            inputs[:, 0] += 0.9
            outputs = torch.randn(length, history, generator=generator, dtype=F64) / length
            self.recurrence = Affine(inputs.tril(), outputs.tril())
        self.noise = 0.1 * torch.randn(rows, length, size, generator=generator, dtype=F64) if rows else None

    def predict(
        self, x: Float[Tensor, "P d"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P d"]:
        # A sum of products instead of a matrix product, so that the bits do not depend on the batch.
        mixed = (self.weights[index].to(x.dtype) * x.unsqueeze(1)).sum(dim=2)
        return torch.tanh(mixed)

    def constants(self, index: Int[Tensor, " P"], row: Int[Tensor, " P"]) -> Float[Tensor, "P d"] | None:
        return None if self.noise is None else self.noise[row, index]

    def reference_slopes(self) -> Float[Tensor, " K"]:
        return torch.zeros(self.length, dtype=F64)


def start(rows: int, size: int, seed: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def by_hand(chain: Multistep, x0: Tensor) -> Tensor:
    """The chain as its definition says it."""
    a, b = chain.recurrence.inputs, chain.recurrence.outputs
    u, p = [x0], []
    row = torch.arange(len(x0))
    for j in range(chain.length):
        p.append(chain.predict(u[j], torch.full_like(row, j), row))
        new = sum(a[j, i] * u[j - i] + b[j, i] * p[j - i] for i in range(min(a.shape[1], j + 1)))
        constants = chain.constants(torch.full_like(row, j), row)
        u.append(new if constants is None else new + constants)
    return torch.stack(u[1:], dim=1)


chains = st.builds(
    Multistep,
    length=st.integers(1, 14),
    history=st.integers(1, 4),
    size=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    rows=st.sampled_from([0, 3]),
    dense=st.booleans(),
)


@given(chain=chains, seed=st.integers(0, 10**6))
def test_the_serial_run_is_the_recurrence(chain: Multistep, seed: int) -> None:
    x0 = start(3, chain.weights.shape[1], seed)
    found = fixedpoint.solve(ChainProblem(chain, x0), solver="serial")
    torch.testing.assert_close(found.z, by_hand(chain, x0), rtol=1e-12, atol=1e-12)
    assert found.counts.rounds == chain.length
    assert found.converged.all()
    residual = ChainProblem(chain, x0)(found.state) - found.state
    assert residual.abs().max() <= 1e-13 * (1 + found.state.abs().max())


@settings(max_examples=30)
@given(
    chain=chains,
    seed=st.integers(0, 10**6),
    window=st.integers(1, 20),
    accelerator=st.sampled_from([fixedpoint.Picard(), fixedpoint.Anderson(memory=2), BlockSecant(), BlockSecant(2)]),
)
def test_joint_is_serial(chain: Multistep, seed: int, window: int, accelerator: fixedpoint.Solver) -> None:
    """In windows too; bit for bit where nothing is left unapplied, after at most K rounds."""
    x0 = start(3, chain.weights.shape[1], seed)
    width = window if chain.recurrence.slides else None
    serial = fixedpoint.solve(ChainProblem(chain, x0), solver="serial")
    solver = ChainSolver(accelerator=accelerator, window=width, slack=0.0)
    exact = fixedpoint.solve(ChainProblem(chain, x0), solver=solver, rtol=0.0)
    assert torch.equal(exact.z, serial.z)
    assert exact.counts.rounds <= chain.length
    loose = fixedpoint.solve(ChainProblem(chain, x0), solver=ChainSolver(accelerator=accelerator, window=width))
    assert loose.converged.all()
    assert loose.counts.rounds <= chain.length + 1
    difference = (loose.z - serial.z).flatten(1).norm(dim=1) / serial.z.flatten(1).norm(dim=1)
    assert difference.max() <= 1e-2


@given(chain=chains, seed=st.integers(0, 10**6), window=st.integers(1, 20))
def test_rows_do_not_depend_on_their_batch(chain: Multistep, seed: int, window: int) -> None:
    x0 = start(3, chain.weights.shape[1], seed)
    solver = ChainSolver(accelerator=BlockSecant(), window=window if chain.recurrence.slides else None)
    problem = ChainProblem(chain, x0)
    together = fixedpoint.solve(problem, solver=solver)
    for row in range(3):
        alone = fixedpoint.solve(problem.take(torch.tensor([row])), solver=solver)
        assert torch.equal(alone.z[0], together.z[row])


class Parametric(Multistep):
    """Predictions ``scale tanh(W_j u)``, whose parameters and constants may require a gradient."""

    def __init__(self, *args: int, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)
        self.weights.requires_grad_()
        self.scale = torch.tensor(0.8, dtype=F64, requires_grad=True)
        if self.noise is not None:
            self.noise.requires_grad_()

    def predict(
        self, x: Float[Tensor, "P d"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P d"]:
        return self.scale * super().predict(x, index, row)

    @property
    def parameters(self) -> list[Tensor]:
        return [self.scale, self.weights, *([] if self.noise is None else [self.noise])]


@settings(max_examples=20)
@given(
    length=st.integers(1, 9),
    history=st.integers(1, 4),
    rows=st.sampled_from([0, 3]),
    dense=st.booleans(),
    several=st.booleans(),
    idle=st.booleans(),
    max_batch=st.sampled_from([None, 4]),
    seed=st.integers(0, 10**6),
)
@example(length=6, history=2, rows=3, dense=False, several=False, idle=False, max_batch=4, seed=1)
@example(length=6, history=1, rows=3, dense=True, several=True, idle=True, max_batch=None, seed=2)
def test_the_adjoint_is_backpropagation(length, history, rows, dense, several, idle, max_batch, seed):
    """By the start, parameters and constants, of a loss of the last state or of all.

    Also where the result does not depend on the last prediction.
    """
    chain = Parametric(length, history, 4, seed, rows=rows, dense=dense)
    if idle:
        outputs = chain.recurrence.outputs.clone()
        outputs[-1, 0] = 0.0
        chain.recurrence = Affine(chain.recurrence.inputs, outputs, slides=not dense)
    x0 = start(3, 4, seed + 1).requires_grad_()
    weights = start(3, 4 * length, seed + 2).view(3, length, 4)
    if not several:
        weights[:, :-1] = 0.0

    def gradients(z: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((weights * z.sin()).sum(), [x0, *chain.parameters])

    wanted = gradients(by_hand(chain, x0))
    tight = fixedpoint.Termination(rtol=1e-12)
    for solver in ("serial", ChainSolver(accelerator=BlockSecant())):
        gradient = ChainAdjoint(solver=ChainSolver(slack=0.0), termination=tight)
        solution = fixedpoint.solve(
            ChainProblem(chain, x0, max_batch=max_batch), solver=solver, rtol=1e-12, gradient=gradient
        )
        for found, expected in zip(gradients(solution.z), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@settings(max_examples=30)
@given(
    chain=st.builds(
        Multistep, length=st.integers(6, 14), history=st.integers(1, 4), size=st.just(4), seed=st.integers(0, 10**6)
    ),
    seed=st.integers(0, 10**6),
    window=st.integers(1, 9),
    slack=st.sampled_from([0.02, 0.5]),
    keep=st.sampled_from(["all", "last"]),
)
def test_what_is_not_applied_is_carried_on(chain, seed, window, slack, keep):
    """With a large slack most states keep values that are a little off; the result is within the tolerance still."""
    x0 = start(3, 4, seed)
    exact = by_hand(chain, x0)
    problem = ChainProblem(chain, x0, keep=keep)
    found = fixedpoint.solve(problem, solver=ChainSolver(window=window, slack=slack), rtol=1e-4)
    assert found.converged.all()
    error = (found.z[:, -1] - exact[:, -1]).norm(dim=1) / exact[:, -1].norm(dim=1)
    assert error.max() <= 1e-3
    if keep == "all":
        changes = (found.z - exact).norm(dim=2) / exact.norm(dim=2)
        assert changes.max() <= 1e-3


def test_a_prediction_whose_input_did_not_move_is_not_evaluated_again() -> None:
    chain = Multistep(40, 2, 4, seed=1)
    problem = ChainProblem(chain, start(3, 4, 2))
    all_of_them = fixedpoint.solve(problem, solver=ChainSolver(accelerator=BlockSecant(), slack=0.0))
    fewer = fixedpoint.solve(problem, solver=ChainSolver(accelerator=BlockSecant(), slack=0.02))
    assert fewer.counts.rounds <= all_of_them.counts.rounds + 1
    assert fewer.evaluations.sum() < 0.9 * all_of_them.evaluations.sum()


REFUSED = {
    "zero": ChainSolver(preconditioner=Zero()),
    "banded": ChainSolver(preconditioner=Banded(order=2)),
    "coefficient": ChainSolver(preconditioner=Coefficient()),
    "nested": ChainSolver(start=NestedStart(steps=4)),
    "parareal": fixedpoint.Parareal(),
    "deq-ddim": fixedpoint.DEQDDIM(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_requires_steps_without_memory_says_so(name: str) -> None:
    problem = ChainProblem(Multistep(8, 2, 3, seed=0), start(2, 3, 1))
    with pytest.raises(AbilityError, match=f"{name}.* requires .*, and Multistep|requires a chain that"):
        fixedpoint.solve(problem, solver=REFUSED[name])


def test_a_window_of_dense_tables_is_refused() -> None:
    chain = Multistep(8, 1, 3, seed=0, dense=True)
    with pytest.raises(AbilityError, match="window=4 requires a recurrence of few pairs, and Multistep needs all 8"):
        fixedpoint.solve(ChainProblem(chain, start(2, 3, 1)), solver=ChainSolver(window=4))


def test_an_inverse_of_a_chain_with_a_memory_is_refused() -> None:
    chain = Multistep(8, 2, 3, seed=0)
    with pytest.raises(TypeError, match="only steps without memory are inverted"):
        InverseProblem(chain, start(2, 3, 1))  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize(
    ("inputs", "outputs", "sentence"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 1), "must both have shape"),
        (torch.full((3, 1), torch.nan), torch.zeros(3, 1), "must be finite"),
        (torch.ones(3, 2), torch.zeros(3, 2), "pairs before the start"),
    ],
)
def test_tables_are_checked(inputs: Tensor, outputs: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Affine(inputs, outputs)


def test_the_tables_fit_the_chain() -> None:
    chain = Multistep(8, 2, 3, seed=0)
    chain.length = 7
    with pytest.raises(ValueError, match="must have as many rows in its tables, got 8"):
        ChainProblem(chain, start(2, 3, 1))


class Nonlinear(Recurrence):
    """``u_{j+1} = sin(u_j) + p_j p_{j-1} / 4``: cheap and known, but not affine."""

    history = 2

    def next_input(self, index, inputs, predictions):
        before = predictions[1] if len(predictions) > 1 else torch.zeros_like(predictions[0])
        return inputs[0].sin() + predictions[0] * before / 4

    def values(self, held: Held) -> Float[Tensor, "B p d"]:
        inputs, now, before = self._lagged(held)
        return inputs.sin() + now * before / 4

    def carried(self, held, defects, slopes=None, respond=None, earlier=None):
        """The change of what ``values`` makes, one state after another, with changed predictions."""
        inputs, now, before = self._lagged(held)
        gone = torch.zeros_like(defects[:, :1])
        changes, answers = [gone[:, 0]], [gone[:, 0]]
        for slot in range(defects.shape[1]):
            change = changes[-1]
            answer = slopes[slot] * change if slopes is not None else torch.zeros_like(change)
            answers.append(answer if respond is None or slot == 0 else answer + respond(slot, change))
            new = (inputs[:, slot] + change).sin() - inputs[:, slot].sin()
            new = new + (now[:, slot] + answers[-1]) * (before[:, slot] + answers[-2]) / 4
            changes.append(defects[:, slot] + new - now[:, slot] * before[:, slot] / 4)
        return torch.stack(changes[1:], dim=1)

    slides = False

    @staticmethod
    def _lagged(held: Held) -> tuple[Tensor, Tensor, Tensor]:
        inputs = torch.cat([held.base[:, -1:], held.states[:, :-1]], dim=1)
        before = torch.cat([torch.zeros_like(held.base[:, -1:]), held.predictions[:, :-1]], dim=1)
        return inputs, held.predictions, before


class Open(PredictionChain):
    """The predictions of ``Multistep`` in a recurrence of its own."""

    def __init__(self, length: int, seed: int) -> None:
        self.inner, self.length, self.recurrence = Multistep(length, 1, 3, seed), length, Nonlinear()

    def predict(self, x, index, row):
        return self.inner.predict(x, index, row)

    def reference_slopes(self) -> Float[Tensor, " K"]:
        return torch.zeros(self.length, dtype=F64)


@settings(max_examples=20)
@given(length=st.integers(1, 10), seed=st.integers(0, 10**6))
def test_any_recurrence_can_join_predictions(length: int, seed: int) -> None:
    problem = ChainProblem(Open(length, seed), start(2, 3, seed))
    serial = fixedpoint.solve(problem, solver="serial")
    for accelerator in (fixedpoint.Picard(), BlockSecant()):
        solver = ChainSolver(accelerator=accelerator, slack=0.0)
        joint = fixedpoint.solve(problem, solver=solver, rtol=0.0)
        assert joint.counts.rounds <= length
        torch.testing.assert_close(joint.z, serial.z, rtol=1e-12, atol=1e-12)
    with pytest.raises(AbilityError, match=r"^gradient 'chain-adjoint' requires an affine recurrence, got Nonlinear"):
        fixedpoint.solve(problem, solver=solver, gradient="chain-adjoint")


def test_a_serial_run_can_be_unrolled() -> None:
    chain = Parametric(5, 2, 4, seed=0, rows=3)
    x0 = start(3, 4, 1).requires_grad_()
    solution = fixedpoint.solve(ChainProblem(chain, x0), solver="serial", gradient="unrolled")
    found = torch.autograd.grad(solution.z.sum(), [x0, *chain.parameters])
    wanted = torch.autograd.grad(by_hand(chain, x0).sum(), [x0, *chain.parameters])
    torch.testing.assert_close(found, wanted)
    assert solution.trace.error.shape == (1, 3)


@pytest.mark.parametrize("accelerator", [fixedpoint.Picard(), BlockSecant()], ids=repr)
def test_a_joint_solve_can_be_unrolled(accelerator: fixedpoint.Solver) -> None:
    """After K rounds without slack the states are the serial ones, and so are their derivatives."""
    chain = Parametric(5, 2, 4, seed=0, rows=3)
    x0 = start(3, 4, 1).requires_grad_()
    for window in (None, 2):
        solver = ChainSolver(accelerator=accelerator, window=window, slack=0.0)
        solution = fixedpoint.solve(ChainProblem(chain, x0), solver=solver, rtol=0.0, gradient="unrolled")
        found = torch.autograd.grad(solution.z.sum(), [x0, *chain.parameters])
        wanted = torch.autograd.grad(by_hand(chain, x0).sum(), [x0, *chain.parameters])
        torch.testing.assert_close(found, wanted)


@settings(max_examples=30)
@given(
    length=st.integers(1, 30),
    history=st.integers(1, 5),
    block=st.integers(5, 40),
    rank=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
def test_blocks_sweep_as_the_loop_does(length: int, history: int, block: int, rank: int, seed: int) -> None:
    """Also across blocks, and with the same bits for a row alone."""
    chain = Multistep(length, history, 4, seed)
    generator = torch.Generator().manual_seed(seed)
    defects, base = (torch.randn(3, n, 4, generator=generator, dtype=F64) for n in (length, 1))
    slopes = 0.5 * torch.randn(length, generator=generator, dtype=F64)
    parts = 0.4 * torch.randn(2 * rank, 3, length, 4, generator=generator, dtype=F64)
    correction = LowRank(tuple(parts[:rank]), tuple(parts[rank:])) if rank else None

    def swept(rows: slice, correction: object) -> Tensor:
        held = Held(base[rows], defects[rows], base[rows, :0], defects[rows])
        return chain.recurrence.carried(held, defects[rows], slopes, correction)

    with torch.no_grad(), mock.patch.object(blocks, "BLOCK", block), mock.patch.object(affine, "BLOCK", block):
        found = swept(slice(None), correction)
        expected = swept(
            slice(None), lambda slot, change: 0 * change if correction is None else correction(slot, change)
        )
        assert float((found - expected).abs().max()) <= 1e-12 * float(expected.abs().max())
        for row in range(3):
            own = LowRank(tuple(parts[:rank, row : row + 1]), tuple(parts[rank:, row : row + 1])) if rank else None
            assert torch.equal(swept(slice(row, row + 1), own)[0], found[row])


def test_a_chain_that_has_not_set_its_recurrence_is_told() -> None:
    class Unjoined(AffineChain):
        length = 3

        def predict(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
            return x

        def reference_slopes(self) -> Tensor:
            return torch.ones(3, dtype=torch.float64)

    with pytest.raises(TypeError, match=r"^Unjoined has no recurrence; set it in __init__$"):
        ChainProblem(Unjoined(), torch.zeros(2, 3))


class Tamed(AffineChain):
    """The recurrence lets a change grow at every step, and the predictions take that back."""

    def __init__(self, length: int, growth: float) -> None:
        inputs, outputs = (torch.zeros(length, 2, dtype=F64) for _ in range(2))
        inputs[:, 0], inputs[1:, 1], outputs[:, 0] = growth, 0.01, 1.0
        self.length, self.growth, self.recurrence = length, growth, Affine(inputs, outputs)

    def predict(
        self, x: Float[Tensor, "P d"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P d"]:
        wave = torch.tanh(2.0 * x.roll(1, dims=1) + 0.1 * index.to(x.dtype).unsqueeze(1))
        return (1.0 - self.growth) * x + 4.0 / self.length * wave

    def reference_slopes(self) -> Float[Tensor, " K"]:
        return torch.zeros(self.length, dtype=F64)


@pytest.mark.parametrize(("length", "growth", "dtype"), [(150, 2.0, F64), (100, 1.5, torch.float32)])
def test_growth_that_the_predictions_take_back_makes_no_false_claim(
    length: int, growth: float, dtype: torch.dtype
) -> None:
    """A sweep in blocks would drown in the rounding of responses that cancel."""
    problem = ChainProblem(Tamed(length, growth), start(3, 4, 1, dtype))
    serial = fixedpoint.solve(problem, solver="serial")
    found = fixedpoint.solve(problem, solver=ChainSolver(accelerator=BlockSecant()), rtol=1e-5)
    assert found.converged.all()
    assert found.counts.rounds <= length
    difference = (found.z[:, -1] - serial.z[:, -1]).norm(dim=1) / serial.z[:, -1].norm(dim=1)
    assert difference.max() <= 3e-5


def test_the_adjoint_in_half_precision_is_that_of_its_trajectory() -> None:
    """Transposed coefficients cancel, so the cotangents are carried in float32."""
    chain = Multistep(12, 3, 4, seed=5)
    x0 = start(3, 4, 6)
    gradients = []
    for dtype in (torch.bfloat16, F64):
        begun = x0.to(torch.bfloat16).to(dtype).requires_grad_()
        solution = fixedpoint.solve(ChainProblem(chain, begun), solver="serial", gradient=ChainAdjoint())
        gradients += torch.autograd.grad(solution.z[:, -1].float().square().sum(), begun)
    assert gradients[0].dtype == torch.bfloat16
    assert float((gradients[0].double() - gradients[1]).norm() / gradients[1].norm()) <= 0.05


def test_a_window_takes_along_what_is_behind_it() -> None:
    """The pairs before it, and the changes that were not applied there, at another place in every row."""
    problem = ChainProblem(Multistep(9, 3, 2, seed=0), start(2, 2, 1))
    window = Window.opened(problem, start(2, 8, 2).view(2, 4, 2), np.zeros(2, dtype=np.int64), 4)
    before = torch.cat([window.base, window.states], dim=1)
    changes = torch.cat([torch.zeros_like(window.base), start(2, 8, 3).view(2, 4, 2)], dim=1)
    by = np.array([1, 4])
    window.slide(Shift(torch.tensor(by), 4), by, changes[:, 3:].clone())
    assert window.earlier is not None
    for row, moved in enumerate(by.tolist()):
        assert torch.equal(window.base[row], before[row, moved : moved + 3])
        assert torch.equal(window.earlier[row], changes[row, moved : moved + 3])
