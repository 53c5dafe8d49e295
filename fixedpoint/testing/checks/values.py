"""Checks in narrow floating-point formats."""

from __future__ import annotations

import torch

from fixedpoint.testing.bench import Bench, independent_error, require, sound
from fixedpoint.testing.checks.table import check

_NARROW = (torch.float32, torch.bfloat16, torch.float16)
# A contraction by 0.8 multiplies the rounding of f by 5, and f sums six rounded products.
_FLOOR = 32.0


@check("narrow-dtypes")
def narrow_dtypes(bench: Bench) -> str:
    """In float32, bfloat16 and float16, a solve with a tolerance that cannot be met ends near the best possible error.

    That is an error of a few units of rounding of the dtype. The solve must end before the limit of rounds.
    """
    for dtype in _NARROW:
        for name, problem in bench.contractions(dtype).items():
            named = f"{name}, {dtype}"
            solution = bench.solve(problem, rtol=1e-14, max_rounds=2000)
            sound(solution, named)
            require(solution.state.dtype == dtype, f"{named}: the answer is {solution.state.dtype}")
            error, size = independent_error(problem, solution.state)
            reached = float((error / (size * torch.finfo(dtype).eps)).max())
            require(reached <= _FLOOR, f"{named}: an error of {reached:.1f} roundings is left")
            require(solution.counts.rounds < 2000, f"{named}: went on to the limit of rounds")
    return "float32, bfloat16, float16"


@check("dtype-drift")
def dtype_drift(bench: Bench) -> str:
    """The function is called with points of the start's dtype in every round, and the answer has that dtype."""
    for dtype in (*_NARROW, torch.float64):
        for name, problem in bench.contractions(dtype).items():
            watched, tally = bench.counted(problem)
            solution = bench.solve(watched, rtol=1e-3, max_rounds=50)
            seen = ", ".join(sorted(str(kind) for kind in tally.dtypes | {solution.state.dtype}))
            require(tally.dtypes == {dtype} == {solution.state.dtype}, f"{name}, {dtype}: saw {seen}")
    return "no other dtype was seen"
