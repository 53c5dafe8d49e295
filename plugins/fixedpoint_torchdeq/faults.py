"""The faults of the solvers of torchdeq 0.1.0 that the conformance suite shows, by the check that shows each.

Other faults are hidden because the solvers are judged from outside. Tests of torchdeq itself show them
(``test_faults.py``).
"""

from __future__ import annotations

from collections.abc import Mapping

from fixedpoint.core.fault import Fault

_BATCH = {
    "row-alone": "a row's answer depends on its batch: all rows go on until the worst is within the tolerance",
    "nonfinite-neighbour": "one NaN row stops the stopping test for all: the worst of the batch is NaN ever after",
    "diverging-neighbour": "a row's answer depends on its batch: beside a diverging row none ever stops",
}
_IMAGE = {
    "claimed-error": "the residual reported is not that of the point returned, which is f of the point it belongs to",
}

PICARD: Mapping[str, str] = {
    **_BATCH,
    **_IMAGE,
    "best-returned": "f of the best point is returned, which is worse than the point where f does not contract",
    "relaxation": "damping loosens the tolerance: the damped step is held against it",
}

ANDERSON: Mapping[str, str] = {
    **_BATCH,
    **_IMAGE,
    "scale": "the ridge is absolute: the rounds depend on the units of the state",
    "solved-start": "two evaluations are made before anything is looked at, and a third before it may stop",
    "best-returned": "max_iter of 2 or less returns the start, whatever was evaluated; later, f of the best point",
    "narrow-dtypes": "rows at the rounding floor are never given up, and half precision cannot be solved on a CPU",
    "dtype-drift": Fault(
        "bfloat16 and float16 cannot be solved on a CPU: the small system is solved in the state's dtype",
        raises=NotImplementedError,
    ),
}

BROYDEN: Mapping[str, str] = {
    **_BATCH,
    "solved-start": "the start is evaluated but not looked at: a step is taken first",
    "best-returned": "the start is never the answer, even where every later point is worse",
    "memory": "two states are set aside for every round of the limit before the first step",
    "narrow-dtypes": "rows at the rounding floor are only given up near the tolerance, so they go on to the limit",
}
