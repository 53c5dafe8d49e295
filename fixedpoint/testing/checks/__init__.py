"""The checks of the conformance suite, grouped by what they protect; ``CHECKS`` lists them all in order."""

from fixedpoint.testing.checks import answers, counts, rows, failures, invariance, values, form, claims  # isort: skip  # noqa: F401
from fixedpoint.testing.checks.table import CHECKS, Check

__all__ = ["CHECKS", "Check"]
