"""Watches a solver that runs its own loop, and judges it at the point that it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from fixedpoint.core.transfer import to_device

__all__ = ["Exhausted", "StopMode", "Watch", "at_least_single", "statuses", "tolerance"]

StopMode = Literal["abs", "rel"]


class Exhausted(Exception):  # noqa: N818  # ends the loop of another library; never leaves this package
    """Raised if a watched loop requires an evaluation beyond the limit on rounds."""


class Watch:
    """The function that a loop of another library calls instead of the evaluator.

    The start is evaluated on construction. All of these loops evaluate the start first, and their first call returns
    that evaluation without another one.

    Attributes
    ----------
    first, last
        The first and the latest evaluation.
    asked
        Number of calls by the loop, including the first one.
    error
        The exception that f raised; None if it raised none.
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
        # A loop returns the point with the smallest residual that it saw, or f of that point, which may be the point
        # that it evaluated next. Both evaluations are kept, so that neither has to be repeated in ``at``.
        self._best = self._after = self.first
        self._improved, self._any_improved = torch.ones_like(self.first.finite), True
        self._told()

    def __call__(self, z: Tensor) -> Tensor:
        """``f(z)``, in the shape of ``z``.

        Raises
        ------
        Exhausted
            If the limit on rounds is reached.
        RuntimeError
            If the first call is not at the start.
        """
        self.asked += 1
        if self.asked > 1:
            self._evaluate(z.reshape(self.first.z.shape))
        elif not _same(z.reshape(self.first.z.shape), self.first.z).all():
            raise RuntimeError("torchdeq did not evaluate the start first; this version of it is not known here")
        return self.last.fz.view(z.shape)

    def at(self, z: Float[Tensor, "B D"]) -> Evaluated:
        """The evaluation at ``z``, from memory if it was made before, else by one more round within the limit.

        Rows of ``z`` that are not finite are replaced by their best point, and so are rows that cannot be evaluated any
        more because the limit is reached.
        """
        sound = z.isfinite().all(dim=1)
        best = self._f.best
        z = torch.where(sound.unsqueeze(1), z, best.z)
        answer, missing = best, torch.ones_like(sound)
        for known in (best, self._best, self._after, self.last):
            found = missing & _same(known.z, z)
            answer, missing = known.where(found, answer), missing & ~found
        if bool(missing.any()) and self._f.counts.rounds < self._limit:
            answer, _ = self._f.read(self._f(z))
            self._told()
        return self._f.read(answer)[0]

    def best(self) -> Float[Tensor, "B D"]:
        """The point with the smallest residual as the loop measures it, for every row."""
        return self._best.z

    def _evaluate(self, z: Tensor) -> None:
        """Evaluate ``z`` and update the evaluations that are kept."""
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
        self._any_improved = bool(self._improved.any())  # synchronises the device, as torchdeq does in every round
        if self._any_improved:
            self._best = self.last.where(self._improved, self._best)
            self._measure = torch.where(self._improved, measure, self._measure)
        self._told()

    def _measured(self, at: Evaluated) -> Tensor:
        """The residual as torchdeq's Broyden computes it, in the dtype of the state; NaN becomes infinity."""
        residual = at.fz - at.z
        size = residual.norm(dim=1)
        measure = size if self._mode == "abs" else size / ((residual + at.z).norm(dim=1) + 1e-9)
        return torch.where(measure.isnan(), torch.inf, measure)

    def _kept(self, at: Evaluated) -> Evaluated:
        """A copy: the loop writes into the points that it proposes, and the evaluator into its residuals."""
        at, _ = self._f.read(at)  # torchdeq waits for the device in every round, too
        return replace(at, z=at.z.clone(), residual=at.residual.clone())

    def _told(self) -> None:
        if self._on_round is not None:
            worst = float(np.nan_to_num(self._f.relative[-1], nan=0.0, posinf=np.inf).max())
            self._on_round(Progress(self._f.counts.rounds, self._f.layout.rows, worst))


def tolerance(termination: Termination, mode: StopMode, first: Evaluated) -> float:
    """The single tolerance to pass to torchdeq, for all rows, in the norm that torchdeq uses.

    It is exact if the termination has a tolerance of the kind ``mode`` that is the same for all rows. Otherwise it is
    converted with the errors and scales at the start: for ``"abs"``, it is the smallest tolerance of any row; for
    ``"rel"``, the smallest ratio of a row's tolerance to its largest scale.
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
    """The status of every row at the point ``at``, and whether the row converged.

    Parameters
    ----------
    termination
        The rule that rows are judged by.
    watch
        The watch of the loop.
    at
        The evaluation at the returned point.
    returned
        Whether the point that the loop returned was finite, for every row.
    spent
        Whether the loop ran to the limit on rounds, rather than stopping by itself.
    """
    judge = Judge(termination, at.z.dtype)
    assert watch.first.numbers is not None  # all points are read
    assert at.numbers is not None
    judge(watch.first.numbers)  # the first call sets the scale of tolerances that are relative to the start
    converged = to_device(np.broadcast_to(judge.within(at.numbers), len(at.z)).copy(), at.z.device)
    broken = ~watch.last.finite | ~returned | ~at.finite
    grown = (watch.last.error > termination.divergence * watch.first.error).any(dim=1)
    code = torch.full_like(converged, Status.MAX_ROUNDS if spent else Status.STALLED, dtype=torch.int8)
    code = code.masked_fill(grown, Status.DIVERGED).masked_fill(broken, Status.NONFINITE)
    host = code.masked_fill(converged, Status.CONVERGED).cpu().numpy()
    return tuple(Status(int(each)) for each in host), host == Status.CONVERGED


def _same(z: Tensor, other: Tensor) -> Tensor:
    """Whether the rows of both are equal bit for bit."""
    return (z == other).all(dim=1)


@contextmanager
def at_least_single(function: Callable[[Tensor], Tensor]) -> Iterator[Callable[[Tensor], Tensor]]:
    """Within a ``with`` block, torch's default dtype has single precision at least; the function keeps its own.

    torchdeq stores residuals in the default dtype and starts with 1e8, which half precision does not have.
    """
    before = torch.get_default_dtype()
    wide = torch.promote_types(before, torch.float32)

    def called(z: Tensor) -> Tensor:
        torch.set_default_dtype(before)
        try:
            return function(z)
        finally:
            torch.set_default_dtype(wide)

    if wide == before:
        yield function
        return
    torch.set_default_dtype(wide)
    try:
        yield called
    finally:
        torch.set_default_dtype(before)
