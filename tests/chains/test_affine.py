"""Chains of predictions with a memory: serial, joint, in windows, and what they refuse."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor

import fixedpoint
from fixedpoint.chains import (
    Affine,
    AffineChain,
    BlockSecant,
    ChainProblem,
    ChainSolver,
)

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


@settings(max_examples=60)
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
