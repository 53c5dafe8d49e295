"""The traces of a chain's states: a sample of the errors of all states after all rounds, for records and plots."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fixedpoint.chains.step_errors import StepErrors
from fixedpoint.core.solution import Solution

__all__ = ["step_trace"]

# Limits on rows, rounds and steps of a trace, so that records stay small.
_ROWS = 4
_ROUNDS = _STEPS = 256


def step_trace(solution: Solution) -> dict[str, NDArray[np.number[Any]]]:
    """Return the traces of the steps of a solution; empty if the solver reports none, as the serial one.

    Returns
    -------
    ``step_errors``
        Shape ``(b, R, n)``, float32: the relative change that the defects imply at every state after every round, for
        the first 4 rows at most. Rows are not merged, since each has its own window. NaN outside the window, and after
        the row has ended. At most 256 rounds and 256 steps: of more, every k-th is taken, including the last one.
    ``step_errors.rounds``
        Shape ``(R,)``, int64: the numbers of these rounds, from 1.
    ``step_errors.steps``
        Shape ``(n,)``, int64: the numbers of these states, from 1 to N.
    """
    errors = solution.extras.get("step_errors")
    if not isinstance(errors, StepErrors):
        return {}
    values, rounds, steps = errors.thinned(_ROWS, _ROUNDS, _STEPS)
    return {"step_errors": values, "step_errors.rounds": rounds, "step_errors.steps": steps}
