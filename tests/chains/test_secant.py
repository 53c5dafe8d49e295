"""Block secants: the slopes they make, what they end finitely, and what they save."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.joint.accelerator import View
from fixedpoint.chains.joint.solver import BlockSecant, ChainSolver
from fixedpoint.chains.joint.window import Window
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.recurrence.linear import LinearPart
from fixedpoint.chains.slope.preconditioner import Banded
from fixedpoint.core.options import OptionError
from fixedpoint.testing.chains import wave_chain


class Affine(Chain):
    """``x_{i+1} = W_i x_i + b_i``."""

    def __init__(self, length: int, size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.length = length
        self.weights = torch.randn(length, size, size, generator=generator, dtype=torch.float64) / size
        self.offsets = torch.randn(length, size, generator=generator, dtype=torch.float64)

    def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return (self.weights[index] @ x.unsqueeze(2)).squeeze(2) + self.offsets[index]


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=40)
@given(
    length=st.integers(2, 9),
    size=st.integers(1, 4),
    memory=st.integers(1, 3),
    exact=st.integers(0, 2),
    kind=st.sampled_from(["zero", "identity"]),
    seed=st.integers(0, 2**31),
)
def test_the_sweep_is_that_of_the_corrected_slopes(length, size, memory, exact, kind, seed):
    """Against a dense solve with ``A + (dPhi - A dX) dX^+``, the secants of the last moves by a pseudo-inverse."""
    slope = 1.0 if kind == "identity" else 0.0
    solver, linear = BlockSecant(memory=memory), LinearPart(torch.full((length,), slope, dtype=torch.float64))
    exact = min(exact, length - 1)
    rounds = memory + 2
    states, values = normal(rounds, 2, length, size, seed=seed), normal(rounds, 2, length, size, seed=seed + 1)
    changing = (torch.arange(length) >= exact).view(1, -1)
    state = None
    for k in range(rounds):
        base = torch.zeros_like(states[k][:, 0])
        problem = ChainProblem(Affine(length, size, seed), base)
        window = Window(
            problem,
            base.unsqueeze(1),
            states[k].clone(),
            base[:, None, :][:, :0],
            values[k].clone(),
            np.zeros(2, dtype=np.int64),
        )
        view = View(
            window=window,
            known=changing.expand(2, -1),
            carried_change=torch.zeros_like(states[k][:, :1]),
            begins=torch.tensor([exact, length + exact]),
            fresh=None,
            linear=linear,
            implied=None,
        )
        state = solver.init(view) if state is None else state
        proposal, state = solver.propose(view, state)
    found = proposal - states[-1]
    used = min(memory, size)
    for row in range(2):
        change = torch.where(changing.unsqueeze(2), values[-1] - states[-1], 0.0)[row]
        for i in range(exact + 1, length):
            inputs, outputs = states[:, row, i - 1].diff(dim=0), values[:, row, i].diff(dim=0)
            moves, misses = inputs[-used:].T, (outputs - slope * inputs)[-used:].T
            matrix = slope * torch.eye(size, dtype=torch.float64) + misses @ torch.linalg.pinv(moves)
            change[i] = change[i] + matrix @ change[i - 1]
            # a move that is nearly in the span of newer ones is left out: then there is no one answer to compare with
            if torch.linalg.cond(moves / moves.norm(dim=0)) > 8:
                return
        torch.testing.assert_close(found[row], change, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_affine_chain_ends_once_every_direction_was_seen(size):
    problem = ChainProblem(Affine(length=60, size=size, seed=size), normal(3, size, seed=1))
    solution = fixedpoint.solve(problem, solver=ChainSolver(accelerator=BlockSecant(memory=size)), rtol=1e-10)
    assert solution.converged.all()
    serial = fixedpoint.solve(problem, solver="serial").z
    assert torch.allclose(solution.z, serial, rtol=1e-8, atol=1e-8)
    assert solution.counts.rounds <= 2 * size + 6
    plain = fixedpoint.solve(problem, solver="picard", rtol=1e-10)
    assert solution.counts.rounds < plain.counts.rounds


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 2])
def test_it_saves_rounds_on_a_curved_chain(size, seed):
    problem = ChainProblem(wave_chain(length=40, rows=4, size=size, seed=seed), normal(4, size, seed=seed))
    solver = ChainSolver(accelerator=BlockSecant(memory=size))
    solution, plain = (fixedpoint.solve(problem, solver=s, rtol=1e-8) for s in (solver, ChainSolver()))
    assert solution.converged.all()
    assert solution.counts.rounds < plain.counts.rounds


def test_by_name_it_accelerates_a_chain():
    problem = ChainProblem(wave_chain(length=20, rows=2, seed=3), normal(2, 3, seed=3))
    solution = fixedpoint.solve(problem, solver={"name": "block-secant", "memory": 2}, rtol=1e-8)
    assert solution.solver == ChainSolver(accelerator=BlockSecant(memory=2))
    assert solution.converged.all()


def test_a_plain_problem_is_refused_before_any_work():
    def never(z: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    with pytest.raises(TypeError, match=r"block-secant requires a chain \(ChainProblem\)"):
        fixedpoint.solve(never, torch.ones(2, 2), solver="block-secant")


@pytest.mark.parametrize("kind", ["diagonal", "jacobian", Banded(3)], ids=str)
def test_where_no_slopes_are_known_it_is_refused(kind):
    name = kind if isinstance(kind, str) else "banded"
    with pytest.raises(OptionError, match=f"accelerator must not be block-secant with preconditioner '{name}'"):
        ChainSolver(preconditioner=kind, accelerator=BlockSecant())
