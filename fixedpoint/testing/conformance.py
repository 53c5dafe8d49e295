"""The conformance suites: check that a solver or a gradient estimator keeps the promises the library makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from fixedpoint.chains.joint.solver import ChainSolver
from fixedpoint.chains.methods.serial import Serial
from fixedpoint.core.fault import Fault
from fixedpoint.core.foreign import foreign
from fixedpoint.core.options import Options, nearest
from fixedpoint.core.solver import Solver
from fixedpoint.gradients.estimator import GradientEstimator
from fixedpoint.registry import registry
from fixedpoint.testing.bench import Bench, CheckFailedError, NotApplicableError, UnsoundError
from fixedpoint.testing.chain_bench import ChainBench, SerialBench
from fixedpoint.testing.checks import CHECKS, Check
from fixedpoint.testing.gradients.bench import GradientBench
from fixedpoint.testing.gradients.chain_bench import ChainGradientBench
from fixedpoint.testing.gradients.checks import GRADIENT_CHECKS
from fixedpoint.testing.plain_bench import PlainBench

__all__ = ["CheckReport", "CheckRow", "check_gradient", "check_solver"]

B = TypeVar("B")


@dataclass(frozen=True)
class CheckRow:
    """The outcome of one check.

    Attributes
    ----------
    name
        The name of the check.
    outcome
        ``"passed"``, ``"failed"`` or ``"does not apply"``. A check that was expected to fail ends with
        ``"expected failure"`` if it failed as declared, ``"failed"`` if it failed in another way, and
        ``"unexpected pass"`` if it did not fail.
    detail
        What was measured, where the check failed, or why it does not apply.
    explanation
        What the check demands, and why.
    """

    name: str
    outcome: Literal["passed", "failed", "does not apply", "expected failure", "unexpected pass"]
    detail: str
    explanation: str = ""

    @property
    def passed(self) -> bool:
        """Whether the outcome counts as passed; checks that do not apply and expected failures do."""
        return self.outcome not in ("failed", "unexpected pass")


@dataclass(frozen=True)
class CheckReport:
    """The outcome of all checks of one solver or gradient estimator.

    Attributes
    ----------
    subject
        The solver or gradient estimator.
    rows
        One :class:`CheckRow` per check, in the order they ran.
    """

    subject: Options
    rows: tuple[CheckRow, ...]

    @property
    def passed(self) -> bool:
        """Whether all checks passed, and every check that was expected to fail failed as declared."""
        return all(row.passed for row in self.rows)

    def raise_for_failures(self) -> CheckReport:
        """Return this report if it passed, so that calls can be chained.

        Raises
        ------
        AssertionError
            When a check failed or passed unexpectedly; the message lists these checks, one per line.
        """
        failures = [f"  {row.name}: {row.detail}" for row in self.rows if not row.passed]
        if failures:
            listed = "\n".join(failures)
            raise CheckFailedError(f"{self.subject!r} fails {len(failures)} of {len(self.rows)} checks:\n{listed}")
        return self

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        return "\n".join(f"{row.name:<{width}}  {row.outcome}: {row.detail}" for row in self.rows)


def check_solver(
    solver: str | Mapping[str, Any] | Solver,
    *,
    only: Iterable[str] | None = None,
    expected: Mapping[str, str] | None = None,
) -> CheckReport:
    """Run the conformance checks for solvers.

    Solvers of chains (``ChainSolver``, ``Serial``, and any whose ``needs`` name ``"chain"``) are checked on chains;
    all others on affine maps, tanh cells, the H-equation and problems that have no solution.

    Parameters
    ----------
    solver
        A solver, the name of a registered one, or a mapping with ``name`` and its options.
    only
        Names of the checks to run; default: all of ``fixedpoint.testing.CHECKS``.
    expected
        Checks that are expected to fail, by name, each with its reason; default: the solver's ``known_faults``. The
        expectation is strict: a check that passes or does not apply is an ``"unexpected pass"``, which counts as a
        failure. The check must fail because its own demand is not met; another exception counts as a failure. If the
        reason is a :class:`Fault`, the check must raise the exception that the fault names.

    Returns
    -------
    CheckReport
        The outcomes; in a test call ``report.raise_for_failures()``.

    Raises
    ------
    TypeError
        When ``solver`` is not a solver.
    ValueError
        When no solver has this name, or no check has a name in ``only`` or ``expected``.
    """
    built = registry.create("solver", solver)
    if not isinstance(built, Solver):
        raise TypeError(f"solver must be a name, a mapping or a Solver, got {built!r}")
    return _report(built, built.known_faults if expected is None else expected, CHECKS, only, _bench(built))


def check_gradient(
    gradient: str | Mapping[str, Any] | GradientEstimator,
    *,
    solver: str | Mapping[str, Any] | Solver | None = None,
    only: Iterable[str] | None = None,
    expected: Mapping[str, str] | None = None,
) -> CheckReport:
    """Run the conformance checks for gradient estimators.

    The problems are affine maps, whose gradients are known in closed form, and tanh cells, whose gradients are compared
    with finite differences.

    Parameters
    ----------
    gradient
        An estimator, the name of a registered one, or a mapping with ``name`` and its options.
    solver
        The solver that finds the solutions to differentiate, given in the same way. Default: Anderson acceleration with
        memory 2; for estimators of chains, ``Serial``.
    only
        Names of the checks to run; default: all of ``fixedpoint.testing.GRADIENT_CHECKS``.
    expected
        Checks that are expected to fail, by name, each with its reason; default: the estimator's ``known_faults`` (an
        approximation, for example, does not give the exact gradient). The expectation is strict, as in
        :func:`check_solver`.

    Returns
    -------
    CheckReport
        The outcomes; in a test call ``report.raise_for_failures()``.

    Raises
    ------
    TypeError
        When ``gradient`` is not an estimator or ``solver`` is not a solver.
    ValueError
        When the solver does not provide what the estimator needs, or when no component or check has the given name.
    """
    built = registry.create("gradient", gradient)
    if not isinstance(built, GradientEstimator):
        raise TypeError(f"gradient must be a name, a mapping or a GradientEstimator, got {built!r}")
    method = None if solver is None else registry.create("solver", solver)
    if not isinstance(method, Solver | None):
        raise TypeError(f"solver must be a name, a mapping or a Solver, got {method!r}")
    bench = (ChainGradientBench if "trajectory" in built.needs else GradientBench)(built, method)
    lacking = built.needs - bench.solver.provides
    if lacking:
        raise ValueError(f"{built!r} needs {', '.join(sorted(lacking))}, which {bench.solver!r} does not provide")
    faults = built.known_faults if expected is None else expected
    return _report(built, faults, GRADIENT_CHECKS, only, bench)


def _report(
    subject: Options,
    faults: Mapping[str, str],
    checks: Mapping[str, Check[B]],
    only: Iterable[str] | None,
    bench: B,
) -> CheckReport:
    wanted = list(checks if only is None else only)
    for name in (*wanted, *faults):
        if name not in checks:
            raise ValueError(f"unknown check {name!r}; {nearest(name, checks)}")
    return CheckReport(subject, tuple(_against(faults.get(name), *_outcome(checks[name], bench)) for name in wanted))


def _bench(solver: Solver) -> Bench:
    if isinstance(solver, Serial):
        return SerialBench(solver)
    if isinstance(solver, ChainSolver) or "chain" in solver.needs:
        return ChainBench(solver)
    return PlainBench(solver)


def _against(fault: str | None, row: CheckRow, error: Exception | None) -> CheckRow:
    """Return the outcome of a check, given the fault that it is expected to show.

    Parameters
    ----------
    fault
        The reason of the expected failure; None if none is expected.
    row
        The outcome regardless of the fault.
    error
        The exception that the check raised; None if it did not fail.
    """
    if fault is None:
        return row
    if error is not None:
        if _shows(fault, error):
            return replace(row, outcome="expected failure", detail=f"{fault} ({row.detail})")
        wanted = f"raise {fault.raises.__name__}" if isinstance(fault, Fault) else "fail"
        return replace(row, detail=f"{row.detail}; it was expected to {wanted} in another way: {fault}")
    return replace(row, outcome="unexpected pass", detail=f"was expected to fail: {fault} ({row.detail})")


def _shows(fault: str, error: Exception) -> bool:
    """Return whether a failure is the declared one: the exception a ``Fault`` names, else an unmet demand."""
    if isinstance(fault, Fault):
        return isinstance(error, fault.raises) and not isinstance(error, CheckFailedError)
    return isinstance(error, CheckFailedError) and not isinstance(error, UnsoundError)


def _outcome(check: Check[B], bench: B) -> tuple[CheckRow, Exception | None]:
    try:
        with foreign():
            detail = check.body(bench)
    except NotApplicableError as reason:
        return CheckRow(check.name, "does not apply", str(reason), check.explanation), None
    except CheckFailedError as failure:
        return CheckRow(check.name, "failed", str(failure), check.explanation), failure
    except Exception as error:  # code of other packages may raise anything; the row says what
        return CheckRow(check.name, "failed", f"raised {type(error).__name__}: {error}", check.explanation), error
    return CheckRow(check.name, "passed", detail, check.explanation), None
