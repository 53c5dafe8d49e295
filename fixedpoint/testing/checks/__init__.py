"""The checks of the conformance suite for solvers, grouped by subject; ``CHECKS`` lists them in order."""

from fixedpoint.testing.checks import answers, counts, rows, failures, invariance, values, form, claims  # isort: skip  # noqa: F401
from fixedpoint.testing.checks.table import CHECKS, Check

__all__ = ["CHECKS", "Check"]
