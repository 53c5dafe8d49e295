"""Counted evaluations of the steps of a chain, and of their derivatives, at pairs of a state and a step."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.evaluator import Evaluator

__all__ = ["evaluate_derivatives", "evaluate_pairs"]


def evaluate_pairs(
    f: Evaluator,
    problem: ChainProblem,
    x: Float[Tensor, "P *event"],
    index: Int[Tensor, " P"],
    row: NDArray[np.int64],
    *,
    same_round: bool = False,
) -> Float[Tensor, "P *event"]:
    """Return ``Phi_index(x)`` for every pair, shape ``(P, *event)``; costs one round.

    Parameters
    ----------
    f
        The evaluator of the solve, which counts one evaluation of its row for each pair.
    problem
        The chain: the one that ``f`` solves, or one derived from it with the same rows.
    x
        Shape ``(P, *event)``: the state of each pair.
    index
        Shape ``(P,)``, int64: the step of each pair, from 0 to ``N - 1``.
    row
        Shape ``(P,)``, int64, on the host: the row that each pair belongs to, from 0 to ``B - 1``. Pairs of more than
        ``f.max_batch`` rows are evaluated in several parts; they must then be sorted by row.
    same_round
        Whether the pairs belong to the round of the previous ones, since they did not wait for its values.
    """
    f.counts.rounds += not same_round
    f.counts.evaluations += np.bincount(row, minlength=f.layout.rows)
    return f.in_parts(problem.pairs, x, index, row=row, calls=problem.calls, owns=True)


def evaluate_derivatives(
    f: Evaluator,
    problem: ChainProblem,
    x: Float[Tensor, "P *event"],
    index: Int[Tensor, " P"],
    row: NDArray[np.int64],
    *,
    full_jacobian: bool,
) -> Float[Tensor, "P d"] | Float[Tensor, "P d d"]:
    """Return the derivatives of the steps at pairs of a state and a step, given as for :func:`evaluate_pairs`.

    They cost no round, since they need not wait for the evaluation there. Each counts as one product of its row. With
    ``full_jacobian`` they are Jacobians, shape ``(P, d, d)``, else their diagonals, shape ``(P, d)``.

    Raises
    ------
    AbilityError
        When the chain provides no such derivatives.
    """
    f.counts.products += np.bincount(row, minlength=f.layout.rows)
    derive = functools.partial(problem.derivatives, full_jacobian=full_jacobian)
    return f.in_parts(derive, x, index, row=row, calls=problem.calls)
