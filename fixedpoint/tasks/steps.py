"""Steps: what is kept of the errors of all states of a chain after all rounds of its solve."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fixedpoint.chains.step_errors import StepErrors
from fixedpoint.core.solution import Solution

__all__ = ["step_trace"]

_ROWS = 4
_ROUNDS = _STEPS = 256


def step_trace(solution: Solution) -> dict[str, NDArray[np.number[Any]]]:
    """The traces of a solution's steps; none where the solver tells nothing of them, as the serial one.

    Returns
    -------
    ``step_errors``
        Shape ``(b, R, n)``, float32: the relative change implied at every state after every round, of each of the
        first 4 rows at most: rows are not merged, as each has a window of its own. NaN outside of the window, and once
        the row had ended. At most 256 rounds and 256 steps: of more, every k-th is taken, the last one included.
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
