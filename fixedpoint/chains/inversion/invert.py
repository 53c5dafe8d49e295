"""Inversion of a chain: the start that leads to a given end, and how well it does.

    inversion = invert_chain(chain, x_N)
    inversion.latents            x_0, of which the chain makes inversion.reconstruction
    inversion.round_trip         how far that is from x_N, row by row
    inversion.message            what became of the rows

An end need not have a start that leads to it: a trained model's last steps nearly project onto what it takes for data.
So the answer is judged by what the chain makes of it, and says what is left and where: of single steps
(``residuals``), of the clean end in all (``misfit``), and of the whole (``round_trip``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.chain import Chain
from fixedpoint.chains.inversion.methods import Inverter, JointInversion
from fixedpoint.chains.inversion.result import Inversion, InversionStatus
from fixedpoint.chains.inversion.workbench import Workbench
from fixedpoint.chains.joint.solver import ChainSolver
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.core.termination import Termination
from fixedpoint.core.transfer import to_device

__all__ = ["Inversion", "InversionProgress", "InversionStatus", "invert_chain"]

# A joint part whose error has fallen by less than this factor over its second half gets no nearer.
_FALLS = 2.0
# The change of any state, of its size, to which the round trip is computed.
_ROUND_TRIP = 1e-5


@dataclass(frozen=True)
class InversionProgress:
    """Where an inversion stands: for progress displays.

    Attributes
    ----------
    stage
        ``"clean end"``, ``"joint"``, ``"round trip"``; ``"step by step"``.
    round
        Rounds so far, of all stages.
    relative_error
        The largest of any row, in this stage.
    """

    stage: str
    round: int
    relative_error: float


@torch.no_grad()
def invert_chain(
    chain: Chain,
    x_N: Float[Tensor, "B *event"],
    *,
    method: Inverter | None = None,
    max_batch: int | None = None,
    tolerance: float = 2e-3,
    on_round: Callable[[InversionProgress], None] | None = None,
) -> Inversion:
    """Find the start of a chain from its end, and see what the chain makes of it.

    No gradient passes through; ``InverseProblem`` with ``gradient="implicit"`` has one.

    Parameters
    ----------
    chain
        The chain: DDIM with any eta and known noise, Euler steps of a flow, recurrent cells.
    x_N
        Its end, shape ``(B, *event)``. Rows are independent.
    method
        How; default ``JointInversion()``. ``StepwiseInversion`` is what it is compared with.
    max_batch
        Evaluate at most this many (state, step) pairs in one call of ``chain.step``.
    tolerance
        The rms of ``reconstruction - x_N``, in units of the states, within which a row counts as inverted. Default: a
        quarter of a grey level of images in [-1, 1].
    on_round
        Told after every round.

    Raises
    ------
    TypeError, ValueError
        For anything that is not as described; for a chain without an inverse, which says why.
    """
    method = JointInversion() if method is None else method
    if not isinstance(method, Inverter):
        raise TypeError(f"method must be an Inverter, JointInversion() say, got {method!r}")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    told = _Told(on_round)
    work = Workbench(chain, x_N, max_batch, told if on_round else None, method.clean_steps(chain))
    method.fill(work)
    back = _round_trip(work, told if on_round else None)
    off = (back - x_N).flatten(1).double().square().mean(dim=1).sqrt()
    misfit = work.clean_end_defect.flatten(1).double().square().mean(dim=1).sqrt()
    return Inversion(
        states=work.states,
        reconstruction=back,
        residuals=work.residuals,
        misfit=misfit,
        round_trip=off,
        tolerance=tolerance,
        status=_judged(work, off, misfit, tolerance),
        counts=work.counts,
        stages=work.stages,
        joint=work.joint,
    )


class _Told:
    """Tells of rounds, counted over all stages."""

    def __init__(self, on_round: Callable[[InversionProgress], None] | None) -> None:
        self._on_round, self._rounds = on_round, 0

    def __call__(self, stage: str, progress: Progress) -> None:
        self._rounds += 1
        if self._on_round is not None:
            self._on_round(InversionProgress(stage, self._rounds, progress.relative_error))


def _round_trip(work: Workbench, tell: Callable[[str, Progress], None] | None) -> Float[Tensor, "B *event"]:
    """What the chain makes of the start, jointly from the states that were found; NaN in rows that are lost."""
    start = work.states[:, 0].nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    along = torch.cat([work.states[:, 1:], work.end.unsqueeze(1)], dim=1)
    problem = ChainProblem(work.chain, start, max_batch=work.max_batch, start=along)
    on_round = None if tell is None else lambda progress: tell("round trip", progress)
    rule = Termination(rtol=max(_ROUND_TRIP, 64 * torch.finfo(start.dtype).eps))
    solution = ChainSolver().solve(Evaluator(problem), problem.initial(), rule, on_round)
    work.spent("round trip", solution.counts)
    lost = to_device(~solution.converged, start.device).view(-1, *[1] * (start.ndim - 1))
    back: Tensor = solution.z[:, -1].masked_fill(lost, torch.nan)
    return back


def _judged(
    work: Workbench, off: Float[Tensor, " B"], misfit: Float[Tensor, " B"], tolerance: float
) -> tuple[InversionStatus, ...]:
    falls = np.ones(len(off), dtype=np.bool_) if work.joint is None else _falls(work.joint)
    told = zip(off.tolist(), misfit.tolist(), falls.tolist(), strict=True)  # the host waits here
    return tuple(_status(*each, tolerance) for each in told)


def _status(off: float, misfit: float, falls: bool, tolerance: float) -> InversionStatus:
    if not np.isfinite(off):
        return InversionStatus.NONFINITE
    if off <= tolerance:
        return InversionStatus.INVERTED
    if not falls:
        return InversionStatus.NOT_CONTRACTIVE
    return InversionStatus.MISFIT if misfit >= 0.5 * off else InversionStatus.UNFINISHED


def _falls(solution: Solution) -> NDArray[np.bool_]:
    """Whether each row has converged, or was still getting nearer in the second half of its own rounds."""
    errors = np.where(np.isfinite(solution.trace.relative), solution.trace.relative, np.inf)
    early = solution.trace.rounds[:, None] <= (solution.rounds + 1) // 2
    falls: NDArray[np.bool_] = errors.min(axis=0) * _FALLS < np.where(early, errors, np.inf).min(axis=0)
    return solution.converged | falls
