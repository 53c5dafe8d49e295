"""The conformance suite passes what is right and fails what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from mutants import MUTANTS

import fixedpoint as fp
from fixedpoint.chains.joint.solver import BlockSecant
from fixedpoint.chains.joint.start import NestedStart
from fixedpoint.core.solver import Solver
from fixedpoint.registry import Component, hookimpl, registry
from fixedpoint.testing import CHECKS, CheckReport, CheckRow, Fault, check_solver

SOLVERS: list[Any] = [
    "picard",
    "anderson",
    "newton-krylov",
    "newton",
    "trust-region",
    "serial",
    "deq-ddim",
    "parareal",
    "chain",
    {"name": "chain", "preconditioner": "coefficient", "accelerator": {"name": "broyden", "memory": 3}},
]
MORE_SOLVERS: list[Any] = [
    {"name": "broyden", "memory": 2},
    {"name": "chain", "preconditioner": "diagonal"},
    {"name": "parareal", "blocks": 1},
    fp.Picard(relaxation=0.5),
    fp.Anderson(memory=1),
    fp.Anderson(memory=10, relaxation=0.5),
    "broyden",
    fp.Broyden(memory=5, update="bad"),
    "auto",
    "anderson-type1",
    fp.AndersonTypeOne(memory=2),
    fp.Anderson(memory=20, filter=0.1, ridge=1e-3),
    fp.Anderson(adaptive="distance"),
    fp.Anderson(adaptive="gain", mixing="block"),
    fp.NewtonKrylov(jacobian="difference", memory=5),
    fp.Newton(jacobian="difference"),
    fp.Newton(damping="none", slow=0.0),
    fp.TrustRegion(jacobian="difference", slow=0.5),
    "roots",
    "aitken",
    fp.Squarem(scheme="squarem"),
    fp.Squarem(scheme="cyclic"),
    "damped",
    fp.Restarted(solver=fp.Broyden(), every=7),
    "polyalgorithm",
    fp.Polyalgorithm(first=fp.Picard(), then=fp.Anderson()),
    fp.ChainSolver(accelerator=fp.AndersonTypeOne()),
    fp.ChainSolver(accelerator=fp.Aitken()),
    "block-secant",
    fp.ChainSolver(preconditioner="zero", accelerator=BlockSecant(memory=2), start=NestedStart(3, 2)),
    fp.ChainSolver(preconditioner="zero", accelerator=fp.Anderson()),
    fp.ChainSolver(preconditioner="diagonal", accelerator=fp.Anderson(memory=2)),
    fp.ChainSolver(preconditioner="jacobian"),
    {"name": "chain", "preconditioner": {"name": "banded", "order": 5}, "accelerator": "anderson"},
    fp.ChainSolver(accelerator=fp.Anderson(memory=2, relaxation=0.7)),
]


@pytest.mark.parametrize(
    "solver", [*SOLVERS, *(pytest.param(solver, marks=pytest.mark.slow) for solver in MORE_SOLVERS)], ids=str
)
def test_the_librarys_own_solvers_pass(solver):
    report = check_solver(solver).raise_for_failures()
    assert report.passed
    assert [row.name for row in report.rows] == list(CHECKS)


def test_every_check_has_a_mutant():
    assert set(MUTANTS) == set(CHECKS)


@pytest.mark.parametrize(
    ("name", "mutant"), [(name, mutant) for name, mutants in MUTANTS.items() for mutant in mutants], ids=str
)
def test_every_mutant_fails_its_check(name: str, mutant: Solver):
    (row,) = check_solver(mutant, only=[name]).rows
    assert row.outcome == "failed", f"{type(mutant).__name__} passed {name}: {row.detail}"
    assert not row.passed
    assert row.detail


def test_checks_that_do_not_apply_say_why():
    (row,) = check_solver("broyden", only=["relaxation"]).rows
    assert row.passed
    assert row.outcome == "does not apply"
    assert row.detail == "the solver has no option named relaxation"
    serial = {row.name for row in check_solver("serial").rows if row.outcome == "does not apply"}
    assert serial == {
        *("solved-start", "max-rounds", "diverging", "relaxation", "structure"),
        *("best-returned", "memory", "claimed-error", "claimed-convergence"),
    }


def test_every_check_explains_itself():
    for check in CHECKS.values():
        assert len(check.explanation.split()) > 8, check.name
        assert "\n" not in check.explanation


def test_a_failing_report_raises_with_every_failure():
    good = CheckRow("counts", "passed", "fine")
    bad = CheckRow("scale", "failed", "7 rounds in place of 5")
    report = CheckReport(fp.Picard(), (good, bad))
    assert not report.passed
    with pytest.raises(AssertionError, match="fails 1 of 2 checks:\n  scale: 7 rounds in place of 5"):
        report.raise_for_failures()
    assert str(report).splitlines() == ["counts  passed: fine", "scale   failed: 7 rounds in place of 5"]


def test_what_is_no_solver_is_refused():
    with pytest.raises(TypeError, match="solver must be a name, a mapping or a Solver"):
        check_solver(fp.OneStep())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"did you mean .anderson."):
        check_solver("andersen")


def test_an_unknown_check_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"unknown check 'row-alonee'; did you mean .row-alone."):
        check_solver("picard", only=["row-alonee"])


def test_expected_failures_are_strict() -> None:
    mutant = MUTANTS["scale"][0]
    known = {"scale": "the ridge is absolute", "counts": "cannot count"}
    scale, counts, strides = check_solver(mutant, only=["scale", "counts", "strides"], expected=known).rows
    assert (scale.outcome, scale.passed) == ("expected failure", True)
    assert scale.detail.startswith("the ridge is absolute (")
    assert (counts.outcome, counts.passed) == ("unexpected pass", False)
    assert counts.detail.startswith("was expected to fail: cannot count (")
    assert (strides.outcome, strides.passed) == ("passed", True)
    assert check_solver(mutant, only=["scale"], expected=known).passed
    with pytest.raises(AssertionError, match="fails 1 of 2 checks:\n  counts: was expected to fail"):
        check_solver(mutant, only=["scale", "counts"], expected=known).raise_for_failures()


def test_a_fault_that_does_not_apply_is_no_expected_failure() -> None:
    (row,) = check_solver("broyden", only=["relaxation"], expected={"relaxation": "loosened"}).rows
    assert row.outcome == "unexpected pass"


def test_expected_failures_of_unknown_checks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown check 'scales'; did you mean .scale."):
        check_solver("picard", only=["counts"], expected={"scales": "a slip"})


@dataclass(frozen=True)
class Known(fp.Picard):
    """Names a fault it has, and one that it has not."""

    @property
    def known_faults(self) -> dict[str, str]:
        return {"counts": "no fault of this one"}


def test_the_solvers_own_table_is_the_default() -> None:
    assert not check_solver(Known(), only=["counts"]).passed
    assert check_solver(Known(), only=["counts"], expected={}).passed
    assert check_solver(Known(), only=["scale"]).passed


@dataclass(frozen=True)
class Crashing(fp.Solver):
    def solve(self, f, z0, termination, on_round=None):
        raise ZeroDivisionError("no luck")


def test_a_solver_that_raises_fails_with_what_it_raised():
    (row,) = check_solver(Crashing(), only=["contractions"]).rows
    assert row.outcome == "failed"
    assert row.detail == "raised ZeroDivisionError: no luck"


@dataclass(frozen=True)
class ChainsOnly(fp.Serial):
    """A stranger's solver that says by ``needs`` what it requires."""

    needs = frozenset({"chain"})


def test_needs_pick_the_bench():
    assert check_solver(ChainsOnly(), only=["contractions", "counts"]).raise_for_failures()


def test_a_strangers_broken_solver_does_not_fail_another() -> None:
    class Plugin:
        """Brings a solver that cannot be imported, and one that cannot even be found."""

        @hookimpl
        def fixedpoint_solvers(self) -> list[Component]:
            return [Component("a-broken", "no_such_module:Solver"), Component("b-broken", "json:NoSuchSolver")]

    plugin = Plugin()
    registry.register(plugin, name="broken solvers")
    try:
        assert check_solver("picard", only=["options"]).passed
        assert check_solver(fp.Anderson(memory=3), only=["options"]).passed
    finally:
        registry.unregister(plugin)


@pytest.mark.parametrize("name", ["scale", "exception", "contractions"])
def test_a_crash_is_no_expected_failure(name: str) -> None:
    (row,) = check_solver(Crashing(), only=[name], expected={name: "some fault of its nature"}).rows
    assert (row.outcome, row.passed) == ("failed", False)
    assert row.detail.startswith(
        "raised ZeroDivisionError: no luck; it was expected to fail in another way: some fault"
    )


def test_an_assertion_of_the_solver_is_a_crash_too() -> None:
    @dataclass(frozen=True)
    class Asserting(fp.Picard):
        def solve(self, f, z0, termination, on_round=None):
            raise AssertionError("never")

    (row,) = check_solver(Asserting(), only=["scale"], expected={"scale": "a fault"}).rows
    assert row.outcome == "failed"


def test_what_is_wrapped_is_the_checks_own_failure() -> None:
    (row,) = check_solver(MUTANTS["exception"][0], only=["exception"], expected={"exception": "it wraps them"}).rows
    assert row.outcome == "expected failure"


@pytest.mark.parametrize(
    ("solver", "fault", "outcome"),
    [
        (Crashing(), Fault("divides", raises=ZeroDivisionError), "expected failure"),
        (Crashing(), Fault("divides", raises=ArithmeticError), "expected failure"),
        (Crashing(), Fault("divides", raises=OverflowError), "failed"),
        (MUTANTS["scale"][0], Fault("divides", raises=ZeroDivisionError), "failed"),
        (MUTANTS["scale"][0], Fault("divides", raises=AssertionError), "failed"),
        (fp.Picard(), Fault("divides", raises=ZeroDivisionError), "unexpected pass"),
    ],
)
def test_an_exception_is_expected_only_where_it_is_declared(solver: Solver, fault: Fault, outcome: str) -> None:
    (row,) = check_solver(solver, only=["scale"], expected={"scale": fault}).rows
    assert row.outcome == outcome
    assert row.passed is (outcome == "expected failure")
    assert "divides" in row.detail


def test_an_answer_that_is_not_finite_is_no_expected_failure() -> None:
    @dataclass(frozen=True)
    class Vanishes(fp.Picard):
        def solve(self, f, z0, termination, on_round=None):
            solution = super().solve(f, z0, termination, on_round)
            solution.state.fill_(float("nan"))
            return solution

    (row,) = check_solver(Vanishes(), only=["diverging"], expected={"diverging": "it goes on too long"}).rows
    assert row.outcome == "failed"
    assert "the returned point is not finite; it was expected to fail in another way" in row.detail
