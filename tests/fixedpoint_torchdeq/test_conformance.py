"""torchdeq's solvers before the conformance suite: the faults they are known for, strictly, and no others."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fixedpoint.cli.main import app
from fixedpoint.core.solver import Solver
from fixedpoint.testing import check_solver
from fixedpoint_torchdeq import TorchdeqAnderson, TorchdeqBroyden, TorchdeqPicard

SOLVERS = [TorchdeqPicard(), TorchdeqAnderson(), TorchdeqBroyden()]
QUICK = ("counts", "exception", "max-rounds", "options", "solved-start", "structure")
LONG = "narrow-dtypes"


def named(solver: Solver) -> str:
    return type(solver).__name__


@pytest.mark.parametrize("solver", SOLVERS, ids=named)
def test_the_known_faults_show_and_no_others(solver: Solver) -> None:
    names = {*solver.known_faults, *QUICK} - {LONG}
    report = check_solver(solver, only=names).raise_for_failures()
    shown = {row.name for row in report.rows if row.outcome == "expected failure"}
    assert shown == set(solver.known_faults) - {LONG}


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS, ids=named)
def test_in_all_checks(solver: Solver) -> None:
    report = check_solver(solver).raise_for_failures()
    assert {row.name for row in report.rows if row.outcome == "expected failure"} == set(solver.known_faults)


def test_a_fault_that_is_cured_is_an_unexpected_pass() -> None:
    (row,) = check_solver(TorchdeqAnderson(lam=0.0), only=["scale"]).rows
    assert row.outcome == "unexpected pass"
    (row,) = check_solver(TorchdeqBroyden(LBFGS_thres=5), only=["memory"]).rows
    assert row.outcome == "unexpected pass"


def test_the_command_shows_the_faults_and_exits_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    import fixedpoint.testing

    def quick(spec: object) -> object:
        return check_solver(spec, only=["counts", "scale"])  # type: ignore[arg-type]

    monkeypatch.setattr(fixedpoint.testing, "check_solver", quick)
    done = CliRunner().invoke(app, ["check", "torchdeq-anderson"])
    assert done.exit_code == 0, done.output
    assert "expected failure" in " ".join(done.stdout.split())
    assert "1 known fault; all other checks passed" in done.stdout
    cured = CliRunner().invoke(app, ["check", "torchdeq-anderson", "lam=0.0"])
    assert cured.exit_code == 1
    assert "unexpected" in cured.stdout
    assert "1 of 2 checks failed" in cured.stdout
