"""The joint fixed point is the serial chain, whatever the cell, the field, the length and the solver."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from draws import examples
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.core.status import Status
from fixedpoint.registry import registry
from fixedpoint.tasks.task import Context
from fixedpoint_sequences.euler_task import EulerODE
from fixedpoint_sequences.fields import Decay, Lorenz, LotkaVolterra, VanDerPol
from fixedpoint_sequences.recurrent_task import RecurrentNetwork
from fixedpoint_sequences.task import SequenceTask

PRECONDITIONERS = ("zero", "identity", "diagonal", "jacobian")
FIELDS = (Lorenz(), VanDerPol(), VanDerPol(mu=8.0), LotkaVolterra(), Decay(size=4, fastest=20.0))
CELLS = st.builds(
    RecurrentNetwork,
    cell=st.sampled_from(["tanh", "gru"]),
    length=st.integers(1, 40),
    size=st.integers(1, 8),
    features=st.integers(1, 3),
    spectral_radius=st.sampled_from([0.5, 0.9, 1.0, 1.5]),
    input_scale=st.sampled_from([0.1, 1.0]),
    batch=st.integers(1, 3),
    max_batch=st.sampled_from([None, 7]),
)
SOLVES = st.builds(
    EulerODE,
    field=st.sampled_from(FIELDS),
    length=st.integers(1, 40),
    duration=st.floats(0.05, 1.0),
    batch=st.integers(1, 3),
    max_batch=st.sampled_from([None, 7]),
)


@pytest.mark.parametrize("preconditioner", PRECONDITIONERS)
@pytest.mark.parametrize("accelerator", ["picard", "anderson", "broyden"])
@examples(4, 8)
@given(task=CELLS | SOLVES, seed=st.integers(0, 10**6))
def test_joint_equals_serial(preconditioner: str, accelerator: str, task: SequenceTask, seed: int) -> None:
    problem = task.problem(seed)
    serial = fixedpoint.solve(problem, solver="serial")
    spec = {"name": "chain", "preconditioner": preconditioner, "accelerator": accelerator}
    solution = fixedpoint.solve(problem, solver=spec, rtol=1e-13)
    assert solution.status == (Status.CONVERGED,) * task.batch
    assert solution.counts.rounds <= task.length + 1
    size = serial.z.norm(dim=2).amax(1)
    last = (solution.z - serial.z)[:, -1].norm(dim=1)
    assert (last <= 1e-9 * size).all()


@pytest.mark.parametrize(
    "task", [RecurrentNetwork(length=50), RecurrentNetwork(cell="gru"), EulerODE(length=60)], ids=str
)
def test_a_task_judges_by_the_serial_chain(task: SequenceTask) -> None:
    solvers: list[Any] = ["serial", {"name": "chain", "preconditioner": "jacobian"}]
    for spec in solvers:
        solver = registry.create("solver", spec)
        result = task.run(Context(solver=solver, termination=fixedpoint.Termination(rtol=1e-8), seed=1))
        assert result.status == {"converged": 4}
        derivatives = result.metrics.pop("derivatives")
        assert list(result.metrics) == ["relative_error", "trajectory_error"]
        assert max(result.metrics.values()) <= (0.0 if spec == "serial" else 1e-7)
        assert (derivatives == 0) if spec == "serial" else (result.evaluations / 2 < derivatives < result.evaluations)
    rough = fixedpoint.Termination(rtol=0.0, max_rounds=1)
    result = task.run(Context(solver=fixedpoint.ChainSolver(), termination=rough, seed=1))
    assert min(result.metrics["relative_error"], result.metrics["trajectory_error"]) > 0.01


@pytest.mark.parametrize("task", [RecurrentNetwork(), RecurrentNetwork(cell="gru"), EulerODE()], ids=str)
def test_rows_do_not_depend_on_how_many_there_are(task: SequenceTask) -> None:
    state = torch.get_rng_state()
    four = task.problem(3)
    one = type(task)(**{**vars(task), "batch": 1}).problem(3)
    assert torch.equal(torch.get_rng_state(), state)  # seeds of their own, not the user's
    assert torch.equal(four.x0[:1], one.x0)
    x = four.x0[:1]
    row = torch.zeros(1, dtype=torch.int64)
    for i in (0, 7, 199):
        assert torch.equal(four.chain.step(x, torch.tensor([i]), row), one.chain.step(x, torch.tensor([i]), row))
    other = task.problem(4)
    rows = torch.arange(len(four.x0))
    first = torch.zeros_like(rows)
    assert not torch.equal(other.pairs(other.x0, first, rows), four.pairs(four.x0, first, rows))


@pytest.mark.parametrize("task", [RecurrentNetwork(length=20), EulerODE(length=20)], ids=str)
def test_in_single_precision(task: SequenceTask) -> None:
    single = type(task)(**{**vars(task), "dtype": "float32"})
    wide, narrow = (fixedpoint.solve(each.problem(2), solver="serial").z for each in (task, single))
    for kind in PRECONDITIONERS:
        solver = fixedpoint.ChainSolver(preconditioner=kind)
        solution = fixedpoint.solve(single.problem(2), solver=solver, rtol=1e-5)
        assert solution.z.dtype == torch.float32
        assert solution.converged.all()
        torch.testing.assert_close(solution.z, narrow, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-3, atol=1e-3)
