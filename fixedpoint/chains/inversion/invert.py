"""``invert_chain``: finds the start of a chain that leads to a given last state, and measures how well it does.

    inversion = invert_chain(chain, x_N)
    inversion.latents            x_0, the start that was found
    inversion.reconstruction     the last state of the chain from x_0
    inversion.round_trip         distance of that from x_N, row by row
    inversion.message            how the rows ended

A given last state need not have a start that leads to it: the last steps of a trained model nearly project onto what
the model considers data. So the result is judged by running the chain from it, and reports the remaining errors: those
of single steps (``residuals``), of the clean end in total (``misfit``), and of the whole chain (``round_trip``).
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
from fixedpoint.core.inference import outside_of_inference_mode
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.core.termination import Termination
from fixedpoint.core.transfer import to_device

__all__ = ["Inversion", "InversionProgress", "InversionStatus", "invert_chain"]

# If the error of the joint part falls by less than this factor over its second half, it makes no progress.
_FALLS = 2.0
# Relative tolerance of the round trip.
_ROUND_TRIP = 1e-5


@dataclass(frozen=True)
class InversionProgress:
    """The progress of an inversion, for displays.

    Attributes
    ----------
    stage
        ``"clean end"``, ``"joint"``, ``"step by step"`` or ``"least squares"``, and at the end ``"round trip"``.
    round
        Number of rounds so far, over all stages.
    relative_error
        The largest relative error of any row, in this stage; by least squares, that of the last state.
    """

    stage: str
    round: int
    relative_error: float


@torch.no_grad()
@outside_of_inference_mode
def invert_chain(
    chain: Chain,
    x_N: Float[Tensor, "B *event"],
    *,
    method: Inverter | None = None,
    max_batch: int | None = None,
    tolerance: float = 2e-3,
    on_round: Callable[[InversionProgress], None] | None = None,
) -> Inversion:
    """Find the start of a chain from its last state, and run the chain from it to measure the result.

    The result carries no gradient; solve an ``InverseProblem`` with ``gradient="implicit"`` to get one.

    Parameters
    ----------
    chain
        The chain, for example DDIM with any eta and known noise, Euler steps of a flow, or recurrent cells.
    x_N
        The last state, shape ``(B, *event)``, floating-point dtype, finite. Rows are independent.
    method
        The method; default ``JointInversion()``. ``StepwiseInversion`` is meant for comparison.
    max_batch
        Largest number of (state, step) pairs in one call of ``chain.step``, at least 1; default: no limit.
    tolerance
        A row counts as inverted if the rms of ``reconstruction - x_N`` is at most this, in units of the states;
        positive. The default is a quarter of a grey level of images in [-1, 1].
    on_round
        Called with an :class:`InversionProgress` after every round.

    Returns
    -------
    Inversion
        The states, the round trip, and the status of every row.

    Raises
    ------
    TypeError
        When ``method`` is not an ``Inverter``, or another argument has a wrong type or dtype.
    ValueError
        When another argument is not as described, or when the chain has no inverse; the message says why.
    """
    method = JointInversion() if method is None else method
    if not isinstance(method, Inverter):
        raise TypeError(f"method must be an Inverter, JointInversion() say, got {method!r}")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    told = _Told(on_round)
    work = Workbench(chain, x_N, max_batch, told if on_round else None, method.clean_steps(chain), tolerance)
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
    """Calls ``on_round`` with the number of rounds over all stages."""

    def __init__(self, on_round: Callable[[InversionProgress], None] | None) -> None:
        self._on_round, self._rounds = on_round, 0

    def __call__(self, stage: str, progress: Progress) -> None:
        self._rounds += 1
        if self._on_round is not None:
            self._on_round(InversionProgress(stage, self._rounds, progress.relative_error))


def _round_trip(work: Workbench, tell: Callable[[str, Progress], None] | None) -> Float[Tensor, "B *event"]:
    """Run the chain from the start, as a joint solve from the states that were found; NaN in rows that fail."""
    # A start must be finite, also in rows whose inversion failed.
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
    told = zip(off.tolist(), misfit.tolist(), falls.tolist(), strict=True)  # the host waits for the device here
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
    """Return for each row whether it converged, or its error still fell in the second half of its own rounds."""
    errors = np.where(np.isfinite(solution.trace.relative), solution.trace.relative, np.inf)
    early = solution.trace.rounds[:, None] <= (solution.rounds + 1) // 2
    falls: NDArray[np.bool_] = errors.min(axis=0) * _FALLS < np.where(early, errors, np.inf).min(axis=0)
    return solution.converged | falls
