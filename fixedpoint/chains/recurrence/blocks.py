r"""The sweep of an affine recurrence in blocks, with a few operations each instead of some for every prediction.

Let ``D_n`` be the change of input ``u_{n+1}``, ``r_n`` the defect there, and ``w_ni = a_ni + b_ni S_{n-i}``. A
correction of low rank adds ``C_n = sum_j e_nj (q_nj . D_{n-1})`` to the change of prediction ``n``:

    D_n = r_n + sum_i w_ni D_{n-1-i} + sum_i b_ni C_{n-i}

With the known lower-triangular matrices ``W`` and ``V``, the responses of all ``D`` to all ``r`` and to all ``C``,
``D = W r + V C``. So the inner products ``c_nj = q_nj . D_{n-1}`` solve a triangular system of numbers,

    c_nj = q_nj . (W r)_{n-1} + sum_{k<n} V_{n-1,k} sum_l (q_nj . e_kl) c_kl

which takes the Gram matrix of moves and misses. This costs ``p`` products of states per prediction of a block of ``p``,
where the loop takes one, and a fixed number of operations per block and row. What a block passes on to the next is
carried by the recurrence itself. It also takes the memory of a few more states of the block, so it is for windows that
hold the whole chain.

Where the known numbers let changes grow and the corrections, or the defects themselves, take that back, the sums above
cancel: their rounding is that of the largest response, and the loop's is not. Then the loop is the way to sweep.

Rows are multiplied one by one: a row has the same bits whatever its batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.chains.recurrence.recurrence import LowRank
from fixedpoint.core.reduce import block_dots

__all__ = ["BLOCK", "Responses", "swept"]

# Predictions in a block: enough to make operations few, and not so many that their products with one another count.
BLOCK = 512


@dataclass(frozen=True, eq=False)
class Responses:
    """How inputs respond to defects and to changes of predictions.

    Attributes
    ----------
    factors, gains
        Shape ``(K, q)``: ``w`` and ``b``.
    of_defects, of_predictions
        Shape ``(K, K)``, lower triangular: ``W`` and ``V``.
    bounded
        Whether ``W`` is so small that half of the digits of a change are left where it cancels.
    """

    factors: Float[Tensor, "K q"]
    gains: Float[Tensor, "K q"]
    of_defects: Float[Tensor, "K K"]
    of_predictions: Float[Tensor, "K K"]
    bounded: bool = True

    @classmethod
    def of(cls, factors: Float[Tensor, "K q"], gains: Float[Tensor, "K q"], like: Tensor) -> Responses:
        """Return the responses of a recurrence, computed in float64, on the device and in the dtype of ``like``."""
        count, q = factors.shape
        carried, spread = torch.zeros(2, count, count, dtype=torch.float64, device="cpu")
        for i in range(min(q, count)):
            carried += torch.diag_embed(factors[1 + i :, i], -1 - i) if i + 1 < count else 0.0
            spread += torch.diag_embed(gains[i:, i], -i)
        unit = torch.eye(count, dtype=torch.float64, device="cpu")
        of_defects = torch.linalg.solve_triangular(unit - carried, unit, upper=False, unitriangular=True)
        tables = [table.to(like.device, like.dtype) for table in (factors, gains, of_defects, of_defects @ spread)]
        bounded = bool(of_defects.abs().max() <= torch.finfo(like.dtype).eps ** -0.5)  # False for NaN
        return cls(tables[0], tables[1], tables[2], tables[3], bounded)


def swept(responses: Responses, defects: Float[Tensor, "B K d"], correction: LowRank | None) -> Float[Tensor, "B K d"]:
    """Return ``D`` of a window that holds the whole chain, in the memory of ``defects``.

    The history ``q`` must not be longer than a block, unless one block holds the chain.

    Parameters
    ----------
    responses
        Those of the recurrence.
    defects
        Shape ``(B, K, d)``: ``r``.
    correction
        The moves ``q`` and misses ``e`` of the predictions; None: no correction.
    """
    count, q = responses.factors.shape
    answers: Tensor | None = None  # the corrections ``C`` of the last block
    for begin in range(0, count, BLOCK):
        part = slice(begin, min(begin + BLOCK, count))
        factors, gains, block = responses.factors[part], responses.gains[part], defects[:, part]
        for lag in range(min(q, begin)):  # what the last block passes on to the first of this one
            reached = min(lag + 1, len(factors))
            earlier = defects[:, begin - 1 - lag :][:, :reached]
            block[:, :reached].addcmul_(factors[:reached, lag, None], earlier)
            if answers is not None and lag > 0:
                reached = min(lag, len(gains))
                block[:, :reached].addcmul_(gains[:reached, lag, None], answers[:, -lag:][:, :reached])
        changes = _by_rows(responses.of_defects[part, part], block)
        if correction is not None:
            before = defects[:, begin - 1 : begin] if begin else torch.zeros_like(block[:, :1])
            before = torch.cat([before, changes[:, :-1]], dim=1)
            of_predictions = responses.of_predictions[part, part]
            answers = _answers(of_predictions, before, correction.moves, correction.misses, part)
            changes += _by_rows(of_predictions, answers)
        block.copy_(changes)
    return defects


def _answers(
    of_predictions: Float[Tensor, "p p"],
    before: Float[Tensor, "B p d"],
    moves: tuple[Tensor, ...],
    misses: tuple[Tensor, ...],
    part: slice,
) -> Float[Tensor, "B p d"]:
    """Return ``C`` of a block, given what the inputs before each prediction change by without corrections there."""
    rows, count, _ = before.shape
    rank = len(moves)
    q, e = ([each[:, part] for each in parts] for parts in (moves, misses))
    known = torch.cat([block_dots(each.flatten(1).unsqueeze(1), before.flatten(1), count) for each in q], dim=2)
    gram = torch.stack(
        [
            torch.stack([torch.stack([one[row] @ other[row].T for other in e], dim=2) for one in q], dim=1)
            for row in range(rows)
        ]
    )
    # Row n of the response of the inputs before: that of ``D_{n-1}``, so the first row is zero.
    later = torch.cat([torch.zeros_like(of_predictions[:1]), of_predictions[:-1]]).double()
    system = -(later.view(1, count, 1, count, 1) * gram).view(rows, count * rank, count * rank)
    numbers = torch.linalg.solve_triangular(system, known.view(rows, -1, 1), upper=False, unitriangular=True)
    along = numbers.to(before.dtype).view(rows, count, rank, 1)
    answer: Tensor = e[0] * along[:, :, 0]
    for j in range(1, rank):
        answer = torch.addcmul(answer, e[j], along[:, :, j])
    return answer


def _by_rows(table: Float[Tensor, "p p"], states: Float[Tensor, "B p d"]) -> Float[Tensor, "B p d"]:
    """Return the product of a table with the states of each row, one row at a time."""
    return torch.stack([table @ each for each in states])
