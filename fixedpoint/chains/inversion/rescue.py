r"""What is done for rows of an inversion whose steps do not contract: they are found, and solved as one end.

The plain inverse iteration of a step, ``x - (Phi_i(x) - x_{i+1}) / A_i``, contracts at the rate of the largest
eigenvalue of ``1 - J_i / A_i``. That is measured by a few power iterations, of all steps in one batch. The last steps
that contract slowly or not at all are the *end* of the row, whatever their number; their states are found by least
squares over all of them (``fixedpoint.chains.inversion.shooting``). The steps before are then inverted jointly, from
the state that was found.

The chain is run from the old start and from the new one, and the nearer of the two is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.inversion.problem import InverseProblem
from fixedpoint.chains.inversion.shooting import Shooting, difference_share
from fixedpoint.chains.inversion.workbench import AnySlope, Workbench
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.recurrence.linear import LinearPart
from fixedpoint.core.counts import Counts
from fixedpoint.core.progress import Progress
from fixedpoint.core.solver import Solver
from fixedpoint.core.termination import Termination

__all__ = ["solve_ends"]

STAGE = "least squares"
# Steps that contract at no better a rate than this belong to the end.
_CONTRACTS = 0.7
_POWERS = 8
# The end is solved to this share of the tolerance.
_ENOUGH = 0.5


def solve_ends(work: Workbench, solver: Solver, rule: Termination, preconditioner: AnySlope, vectors: int) -> None:
    """Invert the rows that miss the tolerance again, their ends by least squares; never to a worse round trip.

    Parameters
    ----------
    work
        The states so far, of all steps. What is nearer replaces them.
    solver, rule, preconditioner
        How the steps before the end are inverted.
    vectors
        Largest number of vectors of the least-squares problems of one row, from each of two starts; see
        :meth:`Shooting.minimise`.
    """
    all_rows = torch.arange(len(work.end), device=work.end.device)
    # What single steps leave is not amplified much on the way, or the joint part has not converged.
    doubtful = work.residuals.sum(dim=1) > _ENOUGH * work.tolerance
    usable = (doubtful & work.states.flatten(1).isfinite().all(dim=1)).nonzero().flatten()
    off = torch.full((len(all_rows),), torch.nan, dtype=torch.float64, device=work.end.device)
    if len(usable):
        off[usable] = _missed(work, work.states[usable, 0], usable)
    rows = (off > work.tolerance).nonzero().flatten()
    if not len(rows):
        return
    lengths = _ends(work, rows, preconditioner)
    for length in sorted(set(lengths.tolist())):
        some = rows[torch.from_numpy(lengths == length).to(rows.device)]
        _solve_end(work, int(length), some, off, (solver, rule, preconditioner, vectors))


def _solve_end(
    work: Workbench,
    length: int,
    rows: Int[Tensor, " k"],
    off: Float[Tensor, " B"],
    how: tuple[Solver, Termination, AnySlope, int],
) -> None:
    """Solve the last ``length`` steps of some rows by least squares, and the steps before them jointly."""
    solver, rule, preconditioner, vectors = how
    steps, on_host = range(work.chain.length - length, work.chain.length), rows.cpu().numpy()
    problem = ChainProblem(work.chain, work.end[rows], max_batch=work.max_batch, rows=rows)
    shooting = Shooting(problem, steps, _teller(work, len(rows)))
    enough = _ENOUGH * work.tolerance
    # Under much guidance the state that was found step by step is far from any that leads to the end, and the end
    # itself is the better start; under little it is the other way round.
    one = shooting.minimise(work.states[rows, steps.start], enough, vectors)
    other = one
    missed = (one.distance > enough).nonzero().flatten()
    if len(missed):
        start = one.states[:, 0].clone()  # where this is near enough, it ends at once
        start[missed] = work.end[rows[missed]]
        other = shooting.minimise(start, enough, vectors)
    first = one.distance <= other.distance
    found = torch.where(_along(first, one.states), one.states, other.states)
    work.spent(STAGE, shooting.counts, rows=on_host)
    states = work.states[rows]
    states[:, steps.start :] = found
    if steps.start:
        before = InverseProblem(
            work.chain,
            found[:, 0],
            preconditioner=preconditioner,
            max_batch=work.max_batch,
            rows=rows,
            steps=range(steps.start),
        )
        states[:, : steps.start] = work.solved(STAGE, before, solver, rule, rows=on_host).z
    nearer = _missed(work, states[:, 0], rows) < off[rows]
    if bool(nearer.any()):
        work.states[rows[nearer]] = states[nearer]
        work.look(STAGE, rows[nearer])


def _missed(work: Workbench, start: Float[Tensor, "k *event"], rows: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Return how far the chain ends from where it should, from these starts: rms, float64; by a serial run."""
    problem = ChainProblem(work.chain, work.end[rows], max_batch=work.max_batch, rows=rows)
    shooting = Shooting(problem, range(work.chain.length))
    distance = shooting.run(start).distance
    work.spent(STAGE, shooting.counts, rows=rows.cpu().numpy())
    return distance


def _ends(work: Workbench, rows: Int[Tensor, " k"], preconditioner: AnySlope) -> NDArray[np.int64]:
    """Return of how many steps the end of each row consists; at least those of the clean end, and one."""
    contracts = (_rates(work, rows, preconditioner) < _CONTRACTS).cpu().numpy()
    slow = np.cumsum(contracts[:, ::-1], axis=1) == 0
    found: NDArray[np.int64] = np.maximum(slow.sum(axis=1), max(work.clean, 1))
    return found


def _rates(work: Workbench, rows: Int[Tensor, " k"], preconditioner: AnySlope) -> Float[Tensor, "k N"]:
    """Return the rate at which the plain inverse iteration of each step contracts, by power iterations."""
    length, event = work.chain.length, work.end.shape[1:]
    problem = ChainProblem(work.chain, work.end[rows], max_batch=work.max_batch, rows=rows)
    linear = preconditioner.linear_part(problem, problem.x0)
    assert isinstance(linear, LinearPart)  # an inverse problem has checked it
    slopes = linear.slopes.to(work.end).view(1, -1, 1)
    states = work.states[rows].flatten(2)
    index = torch.arange(length, device=rows.device).repeat(len(rows))
    row = torch.arange(len(rows), device=rows.device).repeat_interleave(length)

    def values(points: Float[Tensor, "k N d"]) -> Float[Tensor, "k N d"]:
        return problem.pairs(points.reshape(-1, *event), index, row).view(points.shape)

    at = values(states)
    # The same direction for every row and step, so that neither depends on the others.
    direction = torch.randn(states.shape[2], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = direction.to(states).expand(states.shape)
    share = difference_share(states.dtype) * states.norm(dim=2, keepdim=True)
    rate = states.new_zeros(states.shape[:2])
    for _ in range(_POWERS):
        v = v / v.norm(dim=2, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
        v = v - (values(states + share * v) - at) / (share * slopes)
        rate = v.norm(dim=2)
    rounds, each = _POWERS + 1, (_POWERS + 1) * length
    evaluations = np.full(len(rows), each, dtype=np.int64)
    spent = Counts(
        rounds=rounds,
        calls=rounds * problem.calls(len(rows) * length),
        evaluations=evaluations,
        computed=each * len(rows),
        products=np.zeros(len(rows), dtype=np.int64),
    )
    work.spent(STAGE, spent, rows=rows.cpu().numpy())
    return rate


def _teller(work: Workbench, rows: int) -> Callable[[int, float], None] | None:
    tell = work.tell
    return None if tell is None else lambda number, distance: tell(STAGE, Progress(number, rows, distance))


def _along(chosen: Bool[Tensor, " k"], like: Tensor) -> Bool[Tensor, "k *ones"]:
    """Return one choice for each row in a shape that selects between states."""
    return chosen.view(-1, *[1] * (like.ndim - 1))
