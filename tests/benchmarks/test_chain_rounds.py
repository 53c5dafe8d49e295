"""Rounds, work and verdicts of ``benchmarks/chain_rounds.py``: by hand, and against solves that count themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from ddim_cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

import fixedpoint
from fixedpoint_diffusion import DDIMSchedule
from fixedpoint_diffusion.models.choices import MixtureModel

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from cells import Cell, End, Store, cell_of, reached
from chain_methods import METHODS, TOLERANCES, Jacobi, Joint, Outcome, Seen
from recorded import Recorded, jacobi_rounds, record, serial
from verdict import fewest_rounds, least_work, verdict

SMALL = cases(steps=st.integers(2, 20), clip=st.just(False))


def done(rounds: int | None) -> Cell:
    """A cell that took so many rounds to 1e-3."""
    return Cell((1, 2, rounds), (250, 500, None if rounds is None else 250 * rounds))


def test_reached_is_the_first_round_of_those_that_stay_near_for_the_worst_image() -> None:
    wavering = [Seen(1, 10, 0.5), Seen(2, 20, 0.05), Seen(3, 28, 0.2), Seen(4, 30, 0.04)]
    steady = [Seen(1, 10, 0.09), Seen(2, 33, 0.08), Seen(3, 34, 0.07), Seen(4, 35, 0.01)]
    assert reached([wavering], 0.1) == (4, 30)
    assert reached([steady], 0.1) == (1, 10)
    assert reached([wavering, steady], 0.3) == (2, 20)
    assert reached([wavering, steady], 0.04) == (4, 35)
    assert reached([wavering, steady], 0.03) is None
    assert reached([[Seen(1, 1, float("nan"))]], 0.1) is None


@settings(max_examples=3)
@given(case=SMALL)
def test_every_method_starts_far_and_those_without_a_tolerance_arrive(case: Case) -> None:
    problem = case.problem()
    target = serial(problem)
    for name, method in METHODS.items():
        outcome = method(problem, target)
        for history in outcome.histories:
            assert [seen.rounds for seen in history] == sorted({seen.rounds for seen in history})
            assert [seen.evaluations for seen in history] == sorted(seen.evaluations for seen in history)
        cell = cell_of(outcome)
        if not outcome.ended and outcome.histories and name != "deq-ddim":  # which nothing keeps within N rounds
            assert cell is not None
            assert cell.close
            if name != "srds":  # whose coarse steps are rounds, too
                assert cell.rounds[-1] <= case.steps


@settings(max_examples=5)
@given(case=SMALL)
def test_a_solver_that_ends_by_itself_is_told_as_its_solution_is(case: Case) -> None:
    problem = case.problem()
    target = serial(problem)
    for name in ("jump-0.02", "nested-0.3"):
        method = METHODS[name]
        assert isinstance(method, Joint)
        solution = fixedpoint.solve(problem, solver=method.solver, rtol=method.rtol)
        last = solution.fz[:, -1].flatten(1)
        error = (last - target.flatten(1)).norm(dim=1) / target.flatten(1).norm(dim=1)
        cell = cell_of(method(problem, target))
        assert cell is not None
        assert cell.end is not None
        assert (cell.end.rounds, cell.end.evaluations) == (solution.rounds.max(), solution.evaluations.max())
        assert cell.end.error == pytest.approx(float(error.max()), rel=1e-6, abs=1e-12)


@settings(max_examples=5)
@given(case=cases(steps=st.integers(2, 20), clip=st.just(False), eta=st.just(0.0)))
def test_rounds_of_zero_not_carried_out_are_those_carried_out(case: Case) -> None:
    problem = case.problem()
    target = serial(problem)
    seen = record(problem, target, Jacobi().solver, problem.length)
    for tolerance in TOLERANCES:
        rounds = seen.rounds_to(tolerance)
        assert rounds is not None
        if torch.stack(seen.errors).amax(dim=1).diff().le(0).all():  # bisection requires an error that falls
            assert jacobi_rounds(problem, target, tolerance) == rounds
        assert int(seen.spent[rounds - 1].max()) == rounds * case.steps - rounds * (rounds - 1) // 2


def test_a_recording_goes_on_for_some_rounds_once_it_is_near() -> None:
    problem = Case(DDIMSchedule(clip_sample=False), 30, 0.0, 2, MixtureModel(), 3).problem()
    target = serial(problem)
    short, long = (record(problem, target, fixedpoint.ChainSolver(), 31, 1e-2, more=more) for more in (0, 3))
    assert isinstance(short, Recorded)
    assert short.rounds[-1] == short.rounds_to(1e-2) == long.rounds_to(1e-2)
    assert long.rounds[-1] == short.rounds[-1] + 3
    assert short.solution is None


def test_the_verdict_on_rounds() -> None:
    assert fewest_rounds({"deq-ddim": done(20), "identity": done(10), "anderson": done(10)}).holds  # ties count
    assert not fewest_rounds({"deq-ddim": done(20), "identity": done(9), "anderson": done(10)}).holds
    assert fewest_rounds({"deq-ddim": done(20), "anderson": done(12)}).holds
    assert not fewest_rounds({"deq-ddim": done(20), "anderson": done(13)}).holds  # more than 0.6 of them
    assert fewest_rounds({"deq-ddim": done(None), "paradigms": None, "anderson": done(13)}).holds
    assert not fewest_rounds({"anderson": done(13)}).holds
    assert not fewest_rounds({"deq-ddim": done(20), "anderson": done(None)}).holds


@pytest.mark.parametrize(
    ("end", "holds"),
    [
        (End(13, 1000, 1e-3), True),
        (End(14, 900, 1e-4), False),  # too late
        (End(11, 1001, 1e-4), False),  # too much
        (End(11, 900, 1.1e-3), False),  # not near enough
    ],
)
def test_the_verdict_on_work(end: End, holds: bool) -> None:
    column = {"anderson": done(10), "jump-0.3": Cell((5, 8, 11), (500, 800, 990), end)}
    finding = least_work(250, column)
    assert finding.holds == holds
    said = list(verdict({100: column, 250: column}))
    assert said[-1].endswith("yes" if holds else "no")
    assert sum(sentence.startswith("N = 100") for sentence in said) == 1  # short chains have no verdict on work


def test_cells_are_found_once_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    kept = {"a": done(3), "b": done(None), "c": None, "d": Cell((1, 2, 3), (4, 5, 6), End(7, 8, 0.5))}
    store = Store(path)
    for key, cell in kept.items():
        assert store.get(key, lambda cell=cell: cell) == cell
    again = Store(path)
    assert {key: again.get(key, lambda: pytest.fail("found again")) for key in kept} == kept


def test_a_method_with_nothing_to_tell_has_no_cell() -> None:
    assert cell_of(Outcome([], ended=False)) is None
