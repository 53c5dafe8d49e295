"""How a solver that owns its loop is watched while it runs, and judged at the very point it returned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.progress import Progress
from fixedpoint.core.status import Status
from fixedpoint.core.termination import Judge, Termination

__all__ = ["Exhausted", "StopMode", "Watch", "statuses", "tolerance"]

StopMode = Literal["abs", "rel"]


class Exhausted(Exception):  # noqa: N818  # ends a foreign loop; nobody sees it
    """The limit on rounds is reached, and the loop that is watched requires one more evaluation."""


class Watch:
    """Stands between an evaluator and a loop that is not ours, which sees a plain function of values like ``start``.

    The first evaluation is made here, at the start, where every one of these loops evaluates first; it is handed on
    without another one.

    Attributes
    ----------
    first, last
        The first and the latest evaluation.
    asked
        How often the loop has called, the first time included.
    error
        What f raised, if it did.
    """

    def __init__(
        self,
        f: Evaluator,
        z0: Float[Tensor, "B D"],
        mode: StopMode,
        limit: int,
        on_round: Callable[[Progress], None] | None,
    ) -> None:
        self._f = f
        self._limit = limit
        self._on_round = on_round
        self.asked = 0
        self.error: Exception | None = None
        self.first = self.last = self._kept(f(z0))
        self._mode = mode
        self._measure = self._measured(self.first)
        # A loop returns the point at which it saw the smallest residual, or the value there, which may be the point
        # evaluated after it. These two are held, so that neither is evaluated again.
        self._best = self._after = self.first
        self._improved, self._any_improved = torch.ones_like(self.first.finite), True
        self._told()

    def __call__(self, z: Tensor) -> Tensor:
        """``f(z)``, in the shape of ``z``.

        Raises
        ------
        Exhausted
            When the limit on rounds is reached.
        """
        self.asked += 1
        if self.asked > 1:
            self._evaluate(z.reshape(self.first.z.shape))
        elif not _same(z.reshape(self.first.z.shape), self.first.z).all():
            raise RuntimeError("torchdeq did not evaluate the start first; this version of it is not known here")
        return self.last.fz.view(z.shape)

    def at(self, z: Float[Tensor, "B D"]) -> Evaluated:
        """The evaluation of ``z``: one that was made, or one more. Rows that are not finite give way to their best."""
        sound = z.isfinite().all(dim=1)
        best = self._f.best
        z = torch.where(sound.unsqueeze(1), z, best.z)
        answer, missing = best, torch.ones_like(sound)
        for known in (best, self._best, self._after, self.last):
            found = missing & _same(known.z, z)
            answer, missing = known.where(found, answer), missing & ~found
        if bool(missing.any()) and self._f.counts.rounds < self._limit:
            answer = self._f(z)
            self._told()
        return answer

    def best(self) -> Float[Tensor, "B D"]:
        """The point of the smallest residual, as the loop measures it."""
        return self._best.z

    def _evaluate(self, z: Tensor) -> None:
        if self._f.counts.rounds >= self._limit:
            raise Exhausted
        try:
            self.last = self._kept(self._f(z))
        except Exception as error:
            self.error = error
            raise
        if self._any_improved:
            self._after = self.last.where(self._improved, self._after)
        measure = self._measured(self.last)
        self._improved = measure < self._measure
        self._any_improved = bool(self._improved.any())  # torchdeq waits for the device in every round as well
        if self._any_improved:
            self._best = self.last.where(self._improved, self._best)
            self._measure = torch.where(self._improved, measure, self._measure)
        self._told()

    def _measured(self, at: Evaluated) -> Tensor:
        """The residual as torchdeq's Broyden computes it, in the state's dtype, NaN taken for infinite."""
        residual = at.fz - at.z
        size = residual.norm(dim=1)
        measure = size if self._mode == "abs" else size / ((residual + at.z).norm(dim=1) + 1e-9)
        return torch.where(measure.isnan(), torch.inf, measure)

    def _kept(self, at: Evaluated) -> Evaluated:
        """In memory of its own: the loop writes into the points it proposes, the evaluator into its residuals."""
        return replace(at, z=at.z.clone(), residual=at.residual.clone())

    def _told(self) -> None:
        if self._on_round is not None:
            worst = float(self._f.relative[-1].nan_to_num(nan=0.0, posinf=torch.inf).amax())
            self._on_round(Progress(self._f.counts.rounds, self._f.layout.rows, worst))


def tolerance(termination: Termination, mode: StopMode, first: Evaluated) -> float:
    """One tolerance for all rows, in the norm torchdeq uses: exact where there is one tolerance of the mode's kind.

    Otherwise, the other kind is converted with what is known at the start: for ``"abs"``, the smallest that a row may
    have with the size of its first value; for ``"rel"``, that of a row of the largest.
    """
    rule, scale = termination, first.error if termination.relative_to == "start" else first.scale
    if mode == "rel" and rule.rtol > 0 and rule.relative_to == "state":
        return rule.rtol
    allowed = (rule.atol + rule.rtol * scale).amin(dim=1)
    if mode == "rel":
        return float((allowed / first.scale.amax(dim=1).clamp(min=torch.finfo(torch.float64).tiny)).amin())
    unknowns = first.z.shape[1] / first.error.shape[1]
    return float(allowed.amin()) * (unknowns**0.5 if rule.norm == "rms" else 1.0)


def statuses(
    termination: Termination, watch: Watch, at: Evaluated, returned: Bool[Tensor, " B"], spent: bool
) -> tuple[tuple[Status, ...], NDArray[np.bool_]]:
    """The status of every row at the point ``at``, and whether it converged.

    Parameters
    ----------
    returned
        Whether what the loop returned was finite, row by row.
    spent
        Whether it went on to the limit on rounds, rather than stop by itself.
    """
    judge = Judge(termination, at.z.dtype)
    judge(watch.first)
    converged = judge.within(at)
    broken = ~watch.last.finite | ~returned | ~at.finite
    grown = (watch.last.error > termination.divergence * watch.first.error).any(dim=1)
    code = torch.full_like(converged, Status.MAX_ROUNDS if spent else Status.STALLED, dtype=torch.int8)
    code = code.masked_fill(grown, Status.DIVERGED).masked_fill(broken, Status.NONFINITE)
    host = code.masked_fill(converged, Status.CONVERGED).cpu().numpy()
    return tuple(Status(int(each)) for each in host), host == Status.CONVERGED


def _same(z: Tensor, other: Tensor) -> Tensor:
    return (z == other).all(dim=1)
