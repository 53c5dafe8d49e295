"""The joint fixed point is the sequential chain: property-based, float64, on mixtures with exact scores."""

from __future__ import annotations

import pytest
import torch
from ddim_cases import Case, cases
from draws import examples
from hypothesis import given, settings
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.chains.joint.solver import BlockSecant
from fixedpoint.chains.joint.start import NestedStart, OneJumpStart

JOINT = {
    "picard, zero": fixedpoint.ChainSolver(preconditioner="zero"),
    "picard, coefficient": fixedpoint.ChainSolver(preconditioner="coefficient"),
    "picard, identity": fixedpoint.ChainSolver(preconditioner="identity"),
    "anderson": fixedpoint.ChainSolver(accelerator=fixedpoint.Anderson(memory=3)),
    "broyden": fixedpoint.ChainSolver(accelerator=fixedpoint.Broyden(memory=10)),
    "anderson, nested start": fixedpoint.ChainSolver(
        accelerator=fixedpoint.Anderson(memory=2), start=NestedStart(5, 2)
    ),
}

# Their sweeps are a loop over the steps: short chains, so that the tests do not take all day.
SECANT = {
    "block-secant": fixedpoint.ChainSolver(accelerator=BlockSecant()),
    "block-secant, one jump": fixedpoint.ChainSolver(accelerator=BlockSecant(memory=3), start=OneJumpStart()),
}


def worst(solution: fixedpoint.Solution, serial: fixedpoint.Solution) -> float:
    """Largest relative difference of any state of any row from the sequential chain's."""
    difference = (solution.z - serial.z).norm(dim=2) / serial.z.norm(dim=2)
    return float(difference[:, -1].amax())


@pytest.mark.parametrize(
    "name",
    # Plain rounds take as many as there are steps: the dearest.
    [pytest.param(name, marks=pytest.mark.slow if name == "picard, zero" else ()) for name in JOINT],
)
@settings(max_examples=7)
@given(case=cases())
def test_every_joint_solver_converges_to_the_serial_chain(name: str, case: Case) -> None:
    problem = case.problem()
    serial = fixedpoint.solve(problem, solver="serial")
    solution = fixedpoint.solve(problem, solver=JOINT[name], rtol=1e-11)
    assert solution.converged.all(), solution.message
    assert solution.counts.rounds <= case.steps + 1
    assert worst(solution, serial) <= 1e-9


@pytest.mark.parametrize("name", SECANT)
@settings(max_examples=5)
@given(case=cases(steps=st.integers(1, 30)))
def test_block_secants_converge_to_the_serial_chain(name: str, case: Case) -> None:
    problem = case.problem()
    serial = fixedpoint.solve(problem, solver="serial")
    solution = fixedpoint.solve(problem, solver=SECANT[name], rtol=1e-11)
    assert solution.converged.all(), solution.message
    assert solution.counts.rounds <= case.steps + 1
    assert worst(solution, serial) <= 1e-9
    for row in range(case.batch):
        alone = fixedpoint.solve(problem.take(torch.tensor([row])), solver=SECANT[name], rtol=1e-11)
        assert torch.equal(alone.z[0], solution.z[row])


@pytest.mark.parametrize("name", ["picard, identity", "anderson"])
@examples(6, 12)
@given(case=cases(eta=st.just(0.0), steps=st.integers(50, 300), clip=st.just(False)))
def test_deterministic_chains_take_at_most_half_their_length(name: str, case: Case) -> None:
    problem = case.problem()
    solution = fixedpoint.solve(problem, solver=JOINT[name], rtol=1e-11)
    assert solution.converged.all()
    assert solution.counts.rounds <= case.steps / 2


@pytest.mark.parametrize("name", JOINT)
@settings(max_examples=3)
@given(case=cases(steps=st.integers(5, 60)))
def test_alone_equals_in_a_batch_bit_for_bit(name: str, case: Case) -> None:
    problem = case.problem()
    together = fixedpoint.solve(problem, solver=JOINT[name], rtol=1e-8)
    for row in range(case.batch):
        alone = fixedpoint.solve(problem.take(torch.tensor([row])), solver=JOINT[name], rtol=1e-8)
        assert torch.equal(alone.z[0], together.z[row])
        assert alone.rounds[0] == together.rounds[row]


@pytest.mark.slow
@pytest.mark.parametrize("name", JOINT)
@settings(max_examples=200)
@given(case=cases())
def test_every_joint_solver_converges_to_the_serial_chain_at_length(name: str, case: Case) -> None:
    test_every_joint_solver_converges_to_the_serial_chain.hypothesis.inner_test(name, case)


@pytest.mark.slow
@pytest.mark.parametrize("name", SECANT)
@settings(max_examples=40)
@given(case=cases(steps=st.integers(1, 30)))
def test_block_secants_converge_to_the_serial_chain_at_length(name: str, case: Case) -> None:
    test_block_secants_converge_to_the_serial_chain.hypothesis.inner_test(name, case)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOINT)
@settings(max_examples=40)
@given(case=cases(steps=st.integers(5, 60)))
def test_alone_equals_in_a_batch_bit_for_bit_at_length(name: str, case: Case) -> None:
    test_alone_equals_in_a_batch_bit_for_bit.hypothesis.inner_test(name, case)
