"""The joint fixed point of a chain: exact prefixes, bounds on rounds, counts, independence of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from draws import examples
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.chains.capabilities import HasCoefficients
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.status import Status

PRECONDITIONERS = ("zero", "identity", "coefficient")
COEFFICIENT = {"name": "chain", "preconditioner": "coefficient"}


class TanhChain(Chain, HasCoefficients):
    """``x' = c_i x + tanh(W_i x + b_row)``: a nonlinear chain with known slopes and conditioning per row."""

    def __init__(self, length: int, size: int, seed: int, rows: int = 8, gain: float = 0.3) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.length = length
        self.slopes = 0.7 + 0.4 * torch.rand(length, generator=generator, dtype=torch.float64)
        self.weight = gain * torch.randn(length, size, size, generator=generator, dtype=torch.float64) / size**0.5
        self.bias = torch.randn(rows, size, generator=generator, dtype=torch.float64)
        self.broken: dict[int, tuple[int, float]] = {}  # row -> (step, value it returns there)
        self.pairs = 0
        self.calls = 0

    def coefficients(self) -> torch.Tensor:
        return self.slopes

    def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.pairs += len(x)
        # Products one by one and summed along the row: the same bits whatever the batch.
        mixed = (self.weight[index].to(x) * x.unsqueeze(1)).sum(-1)
        value = self.slopes[index].unsqueeze(1).to(x) * x + torch.tanh(mixed + self.bias[row].to(x))
        for which, (step, fault) in self.broken.items():
            value = torch.where(((row == which) & (index == step)).unsqueeze(1), fault, value)
        return value


def start(rows: int, size: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def serial(problem: ChainProblem) -> torch.Tensor:
    """The states by a loop of its own, independent of the solvers."""
    x, states = problem.x0, []
    for i in range(problem.length):
        x = problem.chain.step(x, torch.full((len(x),), i), problem.rows)
        states.append(x)
    return torch.stack(states, dim=1)


@pytest.mark.parametrize("preconditioner", PRECONDITIONERS)
def test_after_k_rounds_the_first_k_states_are_exact(preconditioner: str) -> None:
    problem = ChainProblem(TanhChain(12, 5, seed=0), start(3, 5))
    exact = serial(problem)
    solver = fixedpoint.ChainSolver(preconditioner=preconditioner, slack=0.0)
    for k in range(1, 13):  # judged in round k + 1 are the states that k rounds made
        solution = fixedpoint.solve(problem, solver=solver, rtol=0.0, max_rounds=k + 1)
        assert torch.equal(solution.z[:, :k], exact[:, :k])


@pytest.mark.parametrize("preconditioner", PRECONDITIONERS)
@pytest.mark.parametrize("accelerator", ["picard", "anderson", "broyden"])
def test_equals_the_sequential_chain(preconditioner: str, accelerator: str) -> None:
    problem = ChainProblem(TanhChain(40, 6, seed=3), start(4, 6))
    solution = fixedpoint.solve(
        problem,
        solver={"name": "chain", "preconditioner": preconditioner, "accelerator": accelerator},
        rtol=1e-12,
    )
    assert solution.status == (Status.CONVERGED,) * 4
    assert torch.allclose(solution.z, serial(problem), rtol=1e-9, atol=1e-9)
    assert solution.counts.rounds <= 41


@examples(10, 20)
@given(length=st.integers(1, 30), gain=st.floats(0.1, 8.0), seed=st.integers(0, 10**6))
def test_never_more_than_n_rounds_however_wild_the_chain(length: int, gain: float, seed: int) -> None:
    problem = ChainProblem(TanhChain(length, 3, seed=seed, gain=gain), start(2, 3, seed))
    for accelerator in ("picard", "anderson", "broyden"):
        solution = fixedpoint.solve(problem, solver=accelerator, rtol=0.0)
        assert solution.counts.rounds <= length
        assert solution.status == (Status.CONVERGED,) * 2
        assert torch.equal(solution.z, serial(problem))  # a tolerance of zero is met by the exact prefix alone


def test_a_plain_solver_becomes_the_accelerator() -> None:
    problem = ChainProblem(TanhChain(20, 4, seed=1), start(2, 4))
    plain = fixedpoint.solve(problem, solver="anderson", rtol=1e-10)
    assert plain.solver == fixedpoint.ChainSolver(accelerator=fixedpoint.Anderson())


def test_the_serial_solver_takes_n_rounds_of_one_evaluation() -> None:
    chain = TanhChain(15, 4, seed=2)
    problem = ChainProblem(chain, start(3, 4))
    solution = fixedpoint.solve(problem, solver="serial")
    assert torch.equal(solution.z, serial(ChainProblem(TanhChain(15, 4, seed=2), start(3, 4))))
    assert (solution.counts.rounds, solution.counts.calls) == (15, 15) == (chain.calls, chain.calls)
    assert solution.evaluations.tolist() == [15, 15, 15]
    assert solution.converged.all()
    assert solution.relative_error.max() == 0.0


@pytest.mark.parametrize("max_batch", [None, 1, 7, 64])
def test_what_is_counted_is_what_was_evaluated(max_batch: int | None) -> None:
    chain = TanhChain(20, 4, seed=5)
    problem = ChainProblem(chain, start(3, 4), max_batch=max_batch)
    solution = fixedpoint.solve(problem, solver=fixedpoint.ChainSolver(slack=0.0), rtol=1e-6)
    assert solution.counts.calls == chain.calls
    assert solution.counts.computed == chain.pairs == solution.evaluations.sum()
    # A solved step is not evaluated again: round k evaluates N - k + 1 steps of every running row.
    for row in range(3):
        assert solution.evaluations[row] == sum(20 - k for k in range(solution.rounds[row]))


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden", COEFFICIENT])
@pytest.mark.parametrize("max_batch", [None, 5])
def test_a_row_alone_equals_the_row_in_a_batch_bit_for_bit(solver: object, max_batch: int | None) -> None:
    x0 = start(5, 6)
    together = fixedpoint.solve(ChainProblem(TanhChain(25, 6, seed=4), x0, max_batch=max_batch), solver=solver)
    for row in range(5):
        alone = fixedpoint.solve(
            ChainProblem(TanhChain(25, 6, seed=4), x0[row : row + 1], rows=torch.tensor([row])), solver=solver
        )
        assert torch.equal(alone.z[0], together.z[row])
        assert alone.rounds[0] == together.rounds[row]
        assert alone.evaluations[0] == together.evaluations[row]


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden", "serial"])
def test_a_broken_row_leaves_the_others_alone(fault: float, solver: str) -> None:
    x0 = start(4, 6)
    sound = fixedpoint.solve(ChainProblem(TanhChain(20, 6, seed=6), x0), solver=solver)
    chain = TanhChain(20, 6, seed=6)
    chain.broken = {2: (9, fault)}
    beside = fixedpoint.solve(ChainProblem(chain, x0), solver=solver)
    assert [status.label for status in beside.status] == ["converged", "converged", "nonfinite", "converged"]
    for row in (0, 1, 3):
        assert torch.equal(sound.z[row], beside.z[row])
        assert sound.rounds[row] == beside.rounds[row]
    assert beside.z.isfinite().all()
    assert np.isinf(beside.relative_error[2])
    # Up to the step that fails it is the chain's own.
    assert torch.allclose(beside.z[2, :9], serial(ChainProblem(TanhChain(20, 6, seed=6), x0))[2, :9], rtol=1e-5)


def test_overflow_at_states_that_are_still_wrong_is_no_failure() -> None:
    class Narrow(Chain):
        """Not finite outside a ball that the trajectory never leaves, but its start does."""

        length = 10

        def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
            halved = x / 2
            late = (index >= 5) & (x.abs().amax(1) > 0.5)
            return halved.masked_fill(late.unsqueeze(1), float("nan"))

    problem = ChainProblem(Narrow(), torch.full((1, 2), 4.0, dtype=torch.float64))
    for accelerator in ("picard", "anderson", "broyden"):
        solution = fixedpoint.solve(problem, solver=accelerator, rtol=1e-10)
        assert solution.status == (Status.CONVERGED,)
        assert torch.allclose(solution.z, serial(problem), rtol=1e-9)


@pytest.mark.parametrize("size", [1e300, 1.7e308])
def test_states_about_to_overflow_are_not_within_a_tolerance_of_their_own_size(size: float) -> None:
    """Their norm may be infinite, and any error is within a part of that."""

    class Bounded(Chain):
        length = 10

        def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
            return torch.where((index == 0).unsqueeze(1), size, torch.tanh(x))

    problem = ChainProblem(Bounded(), torch.ones(1, 3, dtype=torch.float64))
    solution = fixedpoint.solve(problem, solver=fixedpoint.ChainSolver(), rtol=1e-6)
    assert solution.converged.all()
    assert torch.equal(solution.z, serial(problem))


def test_affine_chain_with_its_own_coefficients_needs_one_sweep() -> None:
    class Affine(Chain, HasCoefficients):
        length = 30

        def coefficients(self) -> torch.Tensor:
            return torch.linspace(0.5, 1.4, 30, dtype=torch.float64)

        def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
            return self.coefficients()[index].unsqueeze(1) * x + (index.unsqueeze(1) + 1.0) / 10

    problem = ChainProblem(Affine(), start(2, 3))
    solution = fixedpoint.solve(problem, solver=COEFFICIENT, rtol=1e-10)
    assert solution.counts.rounds == 2
    assert torch.allclose(solution.z, serial(problem), rtol=1e-10)


def test_the_error_is_what_is_still_to_come_at_the_last_state() -> None:
    problem = ChainProblem(TanhChain(60, 6, seed=9, gain=0.05), start(3, 6))
    exact = serial(problem)[:, -1]
    for rounds in range(1, 7):
        solution = fixedpoint.solve(problem, solver=fixedpoint.ChainSolver(slack=0.0), rtol=0.0, max_rounds=rounds)
        ratio = solution.error[:, 0] / (solution.z[:, -1] - exact).norm(dim=1)
        assert ((ratio > 0.1) & (ratio < 10)).all()


def test_rows_taken_keep_their_conditioning() -> None:
    chain = TanhChain(10, 4, seed=11)
    problem = ChainProblem(chain, start(5, 4))
    z = problem.initial()
    picked = torch.tensor([3, 1])
    assert torch.equal(problem.take(picked)(z[picked]), problem(z)[picked])
    assert torch.equal(problem.take(picked).take(torch.tensor([1]))(z[1:2]), problem(z)[1:2])


def test_fewer_rounds_than_needed_end_with_the_latest_states() -> None:
    problem = ChainProblem(TanhChain(40, 6, seed=3), start(2, 6))
    solution = fixedpoint.solve(problem, solver="picard", rtol=1e-14, max_rounds=3)
    assert solution.status == (Status.MAX_ROUNDS,) * 2
    assert torch.equal(solution.fz, problem(solution.state).unflatten(1, (40, 6)))


class NoCoefficients(Chain):
    length = 3

    def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return x / 2


class Unmeasured(Chain):
    def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return x


class OtherShape(NoCoefficients):
    def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return x[:, :1]


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: ChainProblem(Unmeasured(), torch.zeros(2, 3)), "Unmeasured has no length; set it in __init__"),
        (lambda: ChainProblem(NoCoefficients(), torch.zeros(3)), "x0 must have a batch dimension"),
        (lambda: ChainProblem(NoCoefficients(), torch.zeros(2, 3, dtype=torch.int64)), "floating-point dtype"),
        (lambda: ChainProblem(NoCoefficients(), torch.zeros(2, 3), max_batch=0), "max_batch must be at least 1"),
        (
            lambda: fixedpoint.solve(
                ChainProblem(NoCoefficients(), torch.ones(2, 3)),
                solver=COEFFICIENT,
            ),
            "take 'identity'",
        ),
        (lambda: fixedpoint.solve(ChainProblem(OtherShape(), torch.ones(2, 3))), "a step must return shape"),
        (lambda: fixedpoint.solve(lambda z: z / 2, torch.ones(2, 3), solver="chain"), "requires a chain"),
        (lambda: fixedpoint.solve(lambda z: z / 2, torch.ones(2, 3), solver="serial"), "requires a chain"),
        (
            lambda: fixedpoint.ChainSolver(preconditioner="diag"),
            "preconditioner must be 'zero' or 'identity' or Banded or",
        ),
    ],
)
def test_bad_input_is_a_sentence(act: object, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        act()


def test_a_step_that_raises_says_in_which_round() -> None:
    class Failing(NoCoefficients):
        def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of order")

    for solver, when in (("picard", "by f in round 1"), ("auto", "while calls of the step were timed, before round 1")):
        with pytest.raises(RuntimeError, match="out of order") as caught:
            fixedpoint.solve(ChainProblem(Failing(), torch.ones(2, 3)), solver=solver)
        assert f"raised {when} of the solve" in caught.value.__notes__


def test_termination_is_judged_on_the_chain_whatever_the_preconditioner() -> None:
    """The same point has the same error under every preconditioner."""
    problem = ChainProblem(TanhChain(12, 5, seed=0), start(3, 5))
    errors = [
        fixedpoint.solve(problem, solver=fixedpoint.ChainSolver(preconditioner=kind), max_rounds=1).error
        for kind in PRECONDITIONERS
    ]
    assert torch.equal(errors[0], errors[1])
    assert torch.equal(errors[0], errors[2])


@given(length=st.integers(2, 12), rounds=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_jacobi_rounds_carry_one_step_a_round(length: int, rounds: int, seed: int) -> None:
    """After k plain rounds with the preconditioner zero every state is what the last k steps make of the start."""
    rounds = min(rounds, length)
    chain = TanhChain(length, 3, seed)
    problem = ChainProblem(chain, torch.randn(2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    solver = fixedpoint.ChainSolver(preconditioner="zero", slack=0.0)
    solution = fixedpoint.solve(problem, solver=solver, rtol=0.0, max_rounds=rounds)
    x, row = problem.x0, torch.arange(2)
    for step in range(length - rounds, length):
        x = problem.pairs(x, torch.full_like(row, step), row)
    torch.testing.assert_close(solution.fz[:, -1], x, rtol=1e-13, atol=1e-13)


def test_a_step_that_raises_says_which_step_of_which_row() -> None:
    class Failing(TanhChain):
        def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
            if bool(((index == 5) & (row == 2)).any()):
                raise RuntimeError("no memory")
            return super().step(x, index, row)

    problem = ChainProblem(Failing(9, 3, 0), torch.zeros(4, 3, dtype=torch.float64), max_batch=7)
    for solver in ("picard", "serial"):
        with pytest.raises(RuntimeError, match="no memory") as caught:
            fixedpoint.solve(problem, solver=solver)
        assert "in step 5 of 9, row 2 (both counted from 0)" in caught.value.__notes__


def test_a_step_that_fails_only_in_a_batch_says_so() -> None:
    class Crowded(TanhChain):
        def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
            if len(x) > 4:
                raise RuntimeError("no memory")
            return super().step(x, index, row)

    problem = ChainProblem(Crowded(9, 3, 0), torch.zeros(4, 3, dtype=torch.float64), max_batch=12)
    with pytest.raises(RuntimeError, match="no memory") as caught:
        fixedpoint.solve(problem, solver="picard")
    assert "in a batch of 6: steps 0 to 5 of 9, rows 0 to 0 (counted from 0)" in caught.value.__notes__
