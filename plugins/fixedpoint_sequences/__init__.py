"""Recurrent networks and explicit Euler solves as chains, whose states are all solved for at once.

``recurrent_problem`` and ``euler_problem`` make problems that ``fixedpoint.solve`` solves; ``solution.z`` holds the
states after every step. Submodules are imported on first use, so that listing plugins stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fixedpoint._lazy import exported

if TYPE_CHECKING:
    from fixedpoint_sequences.euler import EulerChain as EulerChain
    from fixedpoint_sequences.euler import euler_problem as euler_problem
    from fixedpoint_sequences.recurrent import RecurrentChain as RecurrentChain
    from fixedpoint_sequences.recurrent import recurrent_problem as recurrent_problem

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "fixedpoint_sequences.euler": (
            "EulerChain",
            "euler_problem",
        ),
        "fixedpoint_sequences.recurrent": (
            "RecurrentChain",
            "recurrent_problem",
        ),
    },
)
