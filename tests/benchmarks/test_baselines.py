"""The published methods of ``benchmarks/baselines.py``: with tolerance zero they are the sequential chain."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ddim_cases import Case, cases
from draws import examples
from hypothesis import given, settings
from hypothesis import strategies as st

import fixedpoint
from fixedpoint_diffusion import DDIMChain

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from baselines import Round, ddpm_variance, paradigms, parataa

METHODS: dict[str, Callable[..., Iterator[Round]]] = {"paradigms": paradigms, "parataa": parataa}
LENGTHS = st.integers(1, 60)


@pytest.mark.parametrize("name", METHODS)
@examples(10, 25)
@given(case=cases(steps=LENGTHS), window=st.none() | st.integers(1, 60))
def test_with_tolerance_zero_they_reproduce_the_serial_chain(name: str, case: Case, window: int | None) -> None:
    problem = case.problem()
    assert isinstance(problem.chain, DDIMChain)
    serial = fixedpoint.solve(problem, solver="serial").z[:, -1]
    for row in range(case.batch):
        rounds = list(METHODS[name](problem.chain, problem.x0[row], row, window=window, tolerance=0.0))
        assert len(rounds) <= case.steps
        torch.testing.assert_close(rounds[-1].last, serial[row], rtol=1e-8, atol=1e-8)


@settings(max_examples=15)
@given(case=cases(steps=LENGTHS, clip=st.just(False)), order=st.integers(1, 60), memory=st.integers(1, 5))
def test_any_order_and_memory_of_parataa(case: Case, order: int, memory: int) -> None:
    problem = case.problem()
    assert isinstance(problem.chain, DDIMChain)
    serial = fixedpoint.solve(problem, solver="serial").z[:, -1]
    rounds = list(parataa(problem.chain, problem.x0[0], order=order, memory=memory, tolerance=0.0))
    torch.testing.assert_close(rounds[-1].last, serial[0], rtol=1e-8, atol=1e-8)


@settings(max_examples=10)
@given(case=cases(steps=st.integers(2, 40), eta=st.just(0.0), clip=st.just(False)))
def test_without_tolerance_window_or_memory_they_are_known_rounds(case: Case) -> None:
    """ParaDiGMS over the whole chain is the identity preconditioner; ParaTAA of order 1 without memory is Jacobi."""
    problem = case.problem()
    assert isinstance(problem.chain, DDIMChain)
    methods = {
        "identity": paradigms(problem.chain, problem.x0[0], tolerance=0.0),
        "zero": parataa(problem.chain, problem.x0[0], order=1, memory=1, tolerance=0.0),
        "coefficient": parataa(problem.chain, problem.x0[0], memory=1, tolerance=0.0),
    }
    for preconditioner, method in methods.items():
        seen = [round_.last for round_, _ in zip(method, range(6), strict=False)]
        solution = fixedpoint.solve(
            problem, solver=fixedpoint.ChainSolver(preconditioner=preconditioner), rtol=0.0, max_rounds=len(seen)
        )
        if len(seen) < case.steps and len(seen) > 1:  # the solver's last round judges what the one before made
            torch.testing.assert_close(solution.z[0, -1], seen[-2], rtol=1e-9, atol=1e-9)


@settings(max_examples=10)
@given(case=cases(steps=st.integers(20, 60), eta=st.just(0.0), clip=st.just(False)))
def test_a_tolerance_ends_them_sooner_and_near(case: Case) -> None:
    problem = case.problem()
    assert isinstance(problem.chain, DDIMChain)
    serial = fixedpoint.solve(problem, solver="serial").z[:, -1]
    rounds = list(paradigms(problem.chain, problem.x0[0], tolerance=0.1))
    assert len(rounds) < case.steps
    assert float((rounds[-1].last - serial[0]).norm() / serial[0].norm()) < 0.2
    assert rounds[-1].evaluations < case.steps * len(rounds)


def test_the_variance_is_that_of_the_ddpm_posterior() -> None:
    from fixedpoint_diffusion import DDIMSchedule

    schedule = DDIMSchedule()
    chain = DDIMChain(lambda x, _: x, schedule, 1000)
    table = schedule.alphas_cumprod
    beta = 1 - table[1:] / table[:-1]
    expected = beta * (1 - table[:-1]) / (1 - table[1:])
    torch.testing.assert_close(ddpm_variance(chain)[:-1], expected.flip(0), rtol=1e-9, atol=1e-12)
