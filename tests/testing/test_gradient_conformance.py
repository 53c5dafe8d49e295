"""The conformance suite for gradient estimators passes what is right and fails what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from mutants.gradients import GRADIENT_MUTANTS

import fixedpoint as fp
from fixedpoint.gradients.estimator import GradientEstimator
from fixedpoint.testing import GRADIENT_CHECKS, check_gradient

ESTIMATORS: list[Any] = [
    "implicit",
    "one-step",
    "shine",
    "unrolled",
]
MORE: list[Any] = [
    {"name": "neumann", "terms": 3},
    {"name": "phantom", "steps": 2, "tau": 0.9},
    {"name": "chain-adjoint", "solver": "serial"},
    {"name": "implicit", "solver": {"name": "krylov", "method": "bicgstab"}, "termination": {"rtol": 1e-10}},
    {"name": "implicit", "solver": "anderson", "termination": {"rtol": 1e-10}},
    {"name": "implicit", "solver": "auto", "termination": {"rtol": 1e-10}},
    {"name": "chain-adjoint", "termination": {"rtol": 1e-10}},
    fp.Shine(refine=2),
    "checkpointed-unrolled",
    fp.CheckpointedUnrolled(every=1),
    fp.Neumann(terms=1),
    fp.Phantom(steps=1, tau=1.0),
]


@pytest.mark.parametrize(
    "gradient", [*ESTIMATORS, *(pytest.param(each, marks=pytest.mark.slow) for each in MORE)], ids=str
)
def test_the_librarys_own_estimators_pass(gradient: Any) -> None:
    report = check_gradient(gradient).raise_for_failures()
    assert [row.name for row in report.rows] == list(GRADIENT_CHECKS)


def test_every_check_has_a_mutant() -> None:
    assert set(GRADIENT_MUTANTS) == set(GRADIENT_CHECKS)


@pytest.mark.parametrize(
    ("name", "mutant"), [(name, each) for name, mutants in GRADIENT_MUTANTS.items() for each in mutants], ids=str
)
def test_every_mutant_fails_its_check(name: str, mutant: GradientEstimator) -> None:
    (row,) = check_gradient(mutant, only=[name], expected={}).rows
    assert row.outcome == "failed", f"{type(mutant).__name__} passed {name}: {row.detail}"
    assert not row.detail.startswith("raised"), row.detail


def test_what_makes_them_approximate_is_an_expected_failure_that_says_so() -> None:
    (row,) = check_gradient("one-step", only=["closed-form"]).rows
    assert (row.outcome, row.passed) == ("expected failure", True)
    assert row.detail.startswith("it leaves out the Jacobian of f in z (a relative error of ")
    (row,) = check_gradient("implicit", only=["closed-form"], expected={"closed-form": "a slip"}).rows
    assert row.outcome == "unexpected pass"


def test_every_check_explains_itself() -> None:
    for check in GRADIENT_CHECKS.values():
        assert len(check.explanation.split()) > 8, check.name


def test_the_solver_that_finds_the_solutions_can_be_chosen() -> None:
    assert check_gradient("implicit", solver="broyden", only=["closed-form", "rows"]).passed
    with pytest.raises(ValueError, match=r"Shine\(.*\) needs inverse, which Picard\(.*\) does not provide"):
        check_gradient("shine", solver="picard")


@dataclass(frozen=True)
class Crashing(GradientEstimator):
    def attach(self, f, solution):
        raise ZeroDivisionError("no luck")


def test_what_an_estimator_raises_is_the_failure() -> None:
    (row,) = check_gradient(Crashing(), only=["rows"]).rows
    assert (row.outcome, row.detail) == ("failed", "raised ZeroDivisionError: no luck")


def test_bad_input_is_refused() -> None:
    with pytest.raises(TypeError, match="gradient must be a name, a mapping or a GradientEstimator"):
        check_gradient(fp.Picard())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="solver must be a name, a mapping or a Solver"):
        check_gradient("implicit", solver=fp.OneStep())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown check 'row'; did you mean .rows."):
        check_gradient("implicit", only=["row"])


def test_a_crash_is_no_expected_failure() -> None:
    (row,) = check_gradient(Crashing(), only=["closed-form"], expected={"closed-form": "an approximation"}).rows
    assert (row.outcome, row.passed) == ("failed", False)
    assert "raised ZeroDivisionError: no luck; it was expected to fail in another way: an approximation" in row.detail


@dataclass(frozen=True)
class NaN(fp.OneStep):
    """Its gradients are NaN, which is beyond what an approximation is excused for."""

    def attach(self, f, solution):
        state = super().attach(f, solution)
        state.register_hook(lambda grad: grad * float("nan"))
        return state


def test_a_gradient_that_is_not_finite_is_no_expected_failure() -> None:
    (row,) = check_gradient(NaN(), only=["closed-form"]).rows
    assert row.outcome == "failed"
    assert row.detail.startswith("a gradient is not finite; it was expected to fail in another way: it leaves out")


@dataclass(frozen=True)
class Breaks(fp.OneStep):
    """Breaks in the second derivative, as a slip in its code would; torch raises RuntimeError for that, too."""

    def attach(self, f, solution):
        state = super().attach(f, solution)

        def broken(grad):
            if torch.is_grad_enabled():
                torch.ones(2, 3) @ torch.ones(2, 3)
            return grad

        state.register_hook(broken)
        return state


def test_a_crash_is_no_refusal_of_second_derivatives() -> None:
    (row,) = check_gradient(Breaks(), only=["second-derivatives"], expected={}).rows
    assert row.outcome == "failed"
    assert row.detail.startswith("raised RuntimeError: mat1 and mat2 shapes cannot be multiplied")
    (row,) = check_gradient("one-step", only=["second-derivatives"]).rows
    assert row.detail.startswith("refused: this gradient estimator gives first derivatives only")
