"""Testing tools for authors of solvers and gradient estimators: conformance suites, problems with known answers.

``check_solver`` and ``check_gradient`` work with the base installation; ``fixedpoint.testing.strategies`` requires
hypothesis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fixedpoint._lazy import exported

if TYPE_CHECKING:
    from fixedpoint.core.fault import Fault as Fault
    from fixedpoint.testing.checks import CHECKS as CHECKS
    from fixedpoint.testing.conformance import CheckReport as CheckReport
    from fixedpoint.testing.conformance import CheckRow as CheckRow
    from fixedpoint.testing.conformance import check_gradient as check_gradient
    from fixedpoint.testing.conformance import check_solver as check_solver
    from fixedpoint.testing.gradients.checks import GRADIENT_CHECKS as GRADIENT_CHECKS
    from fixedpoint.testing.problems import KnownProblem as KnownProblem
    from fixedpoint.testing.problems import affine_contraction as affine_contraction
    from fixedpoint.testing.problems import tanh_cell as tanh_cell

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "fixedpoint.core.fault": ("Fault",),
        "fixedpoint.testing.checks": ("CHECKS",),
        "fixedpoint.testing.conformance": (
            "CheckReport",
            "CheckRow",
            "check_gradient",
            "check_solver",
        ),
        "fixedpoint.testing.gradients.checks": ("GRADIENT_CHECKS",),
        "fixedpoint.testing.problems": (
            "KnownProblem",
            "affine_contraction",
            "tanh_cell",
        ),
    },
)
