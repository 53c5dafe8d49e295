"""The conformance suites: does a solver, or a gradient estimator, keep what the library promises of its kind?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from fixedpoint.chains.joint.solver import ChainSolver
from fixedpoint.chains.methods.serial import Serial
from fixedpoint.core.fault import Fault
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
        The check.
    outcome
        ``"passed"``, ``"failed"``, ``"does not apply"``; for a check that was expected to fail, ``"expected failure"``
        where it did in the way that was declared, ``"failed"`` where it did in another, and ``"unexpected pass"`` where
        it did not.
    detail
        What was seen; where the solver failed; or why the check does not apply.
    explanation
        What the check demands, and why.
    """

    name: str
    outcome: Literal["passed", "failed", "does not apply", "expected failure", "unexpected pass"]
    detail: str
    explanation: str = ""

    @property
    def passed(self) -> bool:
        """As it should be: a check that does not apply counts as passed, and so does an expected failure."""
        return self.outcome not in ("failed", "unexpected pass")


@dataclass(frozen=True)
class CheckReport:
    """The outcome of all checks of one solver or gradient estimator."""

    subject: Options
    rows: tuple[CheckRow, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed, but those expected to, and all of those."""
        return all(row.passed for row in self.rows)

    def raise_for_failures(self) -> CheckReport:
        """This report, if no check failed.

        Raises
        ------
        AssertionError
            Otherwise, with every failure in a line.
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
    """Check a solver against everything the library promises of solvers.

    Solvers of chains (``ChainSolver``, ``Serial``, and any whose ``needs`` name ``"chain"``) are checked on chains;
    all others on affine maps, tanh cells, the H-equation and problems that have no solution.

    Parameters
    ----------
    solver
        The name of a registered solver, a mapping of ``name`` and options, or a solver.
    only
        Names of checks; by default all (``fixedpoint.testing.CHECKS``).
    expected
        Checks that are to fail, each with the fault that makes them; by default the solver's ``known_faults``. They
        are strict: one that passes, or no longer applies, is an ``"unexpected pass"``, which counts as a failure. So
        does an exception: what is expected is that the check's own demand is not met, or, of a :class:`Fault`, the
        exception that it names.

    Returns
    -------
    CheckReport
        ``report.raise_for_failures()`` makes a test of it.

    Raises
    ------
    TypeError, ValueError
        For what is no solver, and for a check of an unknown name.
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
    """Check a gradient estimator against everything the library promises of gradients.

    On affine maps, whose gradients are known in closed form, and tanh cells, against finite differences.

    Parameters
    ----------
    gradient
        The name of a registered estimator, a mapping of ``name`` and options, or an estimator.
    solver
        What finds the solutions that are differentiated; by default Anderson acceleration with a short memory.
    only
        Names of checks; by default all (``fixedpoint.testing.GRADIENT_CHECKS``).
    expected
        Checks that are to fail, each with the fault that makes them; by default the estimator's ``known_faults``: an
        approximation does not give the exact gradient. They are strict, as those of :func:`check_solver`.

    Returns
    -------
    CheckReport
        ``report.raise_for_failures()`` makes a test of it.

    Raises
    ------
    TypeError, ValueError
        For what is no estimator or no solver, a solver that does not provide what the estimator needs, and for a check
        of an unknown name.
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
    """The outcome of a check in the light of the fault that it is expected to show.

    Parameters
    ----------
    error
        What the check raised, or what it tests; None where it did not fail.
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
    """Whether a failure is the one that a fault declares: an exception it names, or else the check's own demand."""
    if isinstance(fault, Fault):
        return isinstance(error, fault.raises) and not isinstance(error, CheckFailedError)
    return isinstance(error, CheckFailedError) and not isinstance(error, UnsoundError)


def _outcome(check: Check[B], bench: B) -> tuple[CheckRow, Exception | None]:
    try:
        detail = check.body(bench)
    except NotApplicableError as reason:
        return CheckRow(check.name, "does not apply", str(reason), check.explanation), None
    except CheckFailedError as failure:
        return CheckRow(check.name, "failed", str(failure), check.explanation), failure
    except Exception as error:  # a stranger's code may raise anything; the check says what
        return CheckRow(check.name, "failed", f"raised {type(error).__name__}: {error}", check.explanation), error
    return CheckRow(check.name, "passed", detail, check.explanation), None
