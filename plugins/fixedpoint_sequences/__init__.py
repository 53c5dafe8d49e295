"""Recurrent networks and explicit Euler solves as chains: all their states at once.

``recurrent_problem`` and ``euler_problem`` make problems that ``fixedpoint.solve`` solves; ``solution.z`` holds the
states after every step. Nothing heavy is imported until it is used, so that listing plugins stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fixedpoint_sequences.euler import EulerChain as EulerChain
    from fixedpoint_sequences.euler import euler_problem as euler_problem
    from fixedpoint_sequences.recurrent import RecurrentChain as RecurrentChain
    from fixedpoint_sequences.recurrent import recurrent_problem as recurrent_problem

_EXPORTS = {
    "EulerChain": "fixedpoint_sequences.euler",
    "RecurrentChain": "fixedpoint_sequences.recurrent",
    "euler_problem": "fixedpoint_sequences.euler",
    "recurrent_problem": "fixedpoint_sequences.recurrent",
}

__all__ = ["EulerChain", "RecurrentChain", "euler_problem", "recurrent_problem"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'fixedpoint_sequences' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
