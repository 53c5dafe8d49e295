"""For people who bring solvers: problems with known answers, and a suite that tells whether a solver is right.

``check_solver`` needs nothing beyond the base installation; ``fixedpoint.testing.strategies`` needs hypothesis.
"""

from fixedpoint.testing.checks import CHECKS
from fixedpoint.testing.conformance import CheckReport, CheckRow, check_solver

__all__ = ["CHECKS", "CheckReport", "CheckRow", "check_solver"]
