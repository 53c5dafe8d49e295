"""For people who bring solvers and gradients: problems with known answers, and suites that tell what is right.

``check_solver`` and ``check_gradient`` need nothing beyond the base installation,
``fixedpoint.testing.strategies`` needs hypothesis.
"""

from fixedpoint.core.fault import Fault
from fixedpoint.testing.checks import CHECKS
from fixedpoint.testing.conformance import CheckReport, CheckRow, check_gradient, check_solver
from fixedpoint.testing.gradients.checks import GRADIENT_CHECKS

__all__ = ["CHECKS", "GRADIENT_CHECKS", "CheckReport", "CheckRow", "Fault", "check_gradient", "check_solver"]
