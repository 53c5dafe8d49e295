"""Parareal on diffusion chains (SRDS): the sequential chain, property-based, float64."""

from __future__ import annotations

import torch
from ddim_cases import Case, cases
from draws import examples
from hypothesis import given, settings
from hypothesis import strategies as st

import fixedpoint


@examples(15, 40)
@given(data=st.data(), case=cases(steps=st.integers(1, 120)), coarse_steps=st.integers(1, 3))
def test_it_converges_to_the_serial_chain(data: st.DataObject, case: Case, coarse_steps: int) -> None:
    blocks = data.draw(st.none() | st.integers(1, min(case.steps, 12)))
    problem = case.problem()
    serial = fixedpoint.solve(problem, solver="serial").z[:, -1]
    solver = fixedpoint.Parareal(blocks=blocks, coarse_steps=coarse_steps)
    solution = fixedpoint.solve(problem, solver=solver, rtol=1e-11)
    assert solution.converged.all(), solution.message
    assert ((solution.z[:, -1] - serial).norm(dim=1) <= 1e-9 * serial.norm(dim=1)).all()


@settings(max_examples=8)
@given(case=cases(steps=st.integers(5, 60)))
def test_alone_equals_in_a_batch_bit_for_bit(case: Case) -> None:
    problem = case.problem()
    together = fixedpoint.solve(problem, solver="parareal", rtol=1e-8)
    for row in range(case.batch):
        alone = fixedpoint.solve(problem.take(torch.tensor([row])), solver="parareal", rtol=1e-8)
        assert torch.equal(alone.z[0], together.z[row])
        assert alone.rounds[0] == together.rounds[row]
        assert alone.evaluations[0] == together.evaluations[row]


@settings(max_examples=10)
@given(case=cases(steps=st.just(100), eta=st.just(0.0), clip=st.just(False)))
def test_it_takes_few_sweeps(case: Case) -> None:
    """A deterministic chain is within a percent after half of the sweeps that always suffice."""
    solution = fixedpoint.solve(case.problem(), solver="parareal", rtol=1e-2)
    assert len(solution.trace.error) <= 6
