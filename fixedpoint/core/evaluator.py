"""The evaluator: the only way a solver calls a problem, so that every evaluation is counted and judged."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.counts import Decision
from fixedpoint.core.jacobians import Jacobians
from fixedpoint.core.point import Best, Evaluated, Point
from fixedpoint.core.problem import HasExactResidual, HasMeasure, Measure, Problem
from fixedpoint.core.termination import Termination
from fixedpoint.core.transfer import to_device
from fixedpoint.core.yardstick import Yardstick

__all__ = ["Evaluated", "Evaluator"]


class Evaluator(Jacobians):
    """Evaluates a problem: counts and judges every evaluation, and keeps the best point and the trace of every row.

    Parameters
    ----------
    problem
        The problem.
    norm
        ``"l2"``, ``"rms"`` or ``"max"``: the norm of ``f(z) - z`` for problems without a measure of their own; or a
        yardstick, which also says whether the norm is taken per row, tensor or entry.
    max_batch
        Evaluate at most this many rows in one call, at least 1; the problem must be a ``HasTake``. None: all at once.

    Attributes
    ----------
    errors, relative
        One tensor ``(B,)``, float64, for each judged point: the largest error over the blocks, absolute and relative to
        the scale; NaN for rows that had finished.
    judged_after
        The number of rounds after which each of these points was judged.
    tracks_best
        Whether the best point of every row is kept. A loop whose answer is the latest point sets it to False.
    wanted
        What a gradient estimator requires of the solver beyond the answer. ``"inverse"``: an estimate of the inverse
        Jacobian in ``solution.extras``. ``"decisions"``: the decisions of the loop, in ``decisions``.
    termination
        The stopping rule of the solve, for estimators that solve to the same tolerance; None where it is not known.
    recorded
        The first value of all rows together that was not part of the solve: that of a gradient estimator at the
        solution.
    decisions
        What the loop decided after each round, if ``wanted``.
    origin
        Error and scale, each ``(B, blocks)``, of the first point; of the first point of an earlier solve, where this
        solve continues that one.

    Raises
    ------
    ValueError
        If ``max_batch`` is less than 1, or if the yardstick is per tensor or entry and the problem has its own measure.
    TypeError
        If ``max_batch`` is given and the problem is not a ``HasTake``.
    """

    def __init__(self, problem: Problem, norm: str | Yardstick = "l2", max_batch: int | None = None) -> None:
        super().__init__(problem, max_batch)
        self.yardstick = Yardstick(norm) if isinstance(norm, str) else norm
        self.errors: list[Tensor] = []
        self.relative: list[Tensor] = []
        self.judged_after: list[int] = []
        self.tracks_best = True
        self.wanted: frozenset[str] = frozenset()
        self.termination: Termination | None = None
        self.recorded: Tensor | None = None
        self.decisions: list[Decision] = []
        self.origin: tuple[Tensor, Tensor] | None = None
        self._own_measure = problem.measure if isinstance(problem, HasMeasure) else None
        self._exact_residual = problem.exact_residual if isinstance(problem, HasExactResidual) else None
        own = self._own_measure is not None or self.layout.blocks > 1
        if own and self.yardstick.fine:
            raise ValueError(
                f"per={self.yardstick.per!r} is for problems measured by f(z) - z; {type(problem).__name__} has a "
                "measure of its own, so leave per at 'row'"
            )
        self._plain = self.yardstick.norm == "l2" and not self.yardstick.fine and not own
        self._best = Best(None, self.yardstick.merit)
        self._buffers: dict[str, list[Tensor]] = {}

    def __call__(self, z: Float[Tensor, "B D"]) -> Evaluated:
        """Evaluate the running rows at ``z``, judge the point and remember it. Costs one round.

        Parameters
        ----------
        z
            Shape ``(B, D)``, of the dtype of the layout. Finished rows get ``fz = z``.

        Raises
        ------
        ValueError
            If ``z`` has another shape or dtype, or if ``f`` returns another shape, dtype or device.
        """
        wanted = (self.layout.rows, self.layout.size)
        if z.shape != wanted or z.dtype != self.layout.dtype:
            raise ValueError(
                f"a solver must propose points of shape {wanted}, {self.layout.dtype}, got {tuple(z.shape)}, {z.dtype}"
            )
        at = self.judged(z, self._evaluate_running(z))
        self.remember(at)
        return at

    def value(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return ``f(z)`` of all rows, recorded by autograd; the first such value is stored in ``recorded``."""
        fz = super().value(z)
        if self.recorded is None:
            self.recorded = fz.detach()
        return fz

    def empty(self) -> Float[Tensor, "B D"] | None:
        """Return a buffer ``(B, D)`` for the next proposal, or None while gradients flow.

        Two buffers are used in turn. This one holds the previous point, the one before the current: an elementwise
        operation may read that point while it overwrites it. It is reused two proposals later.
        """
        memory = self._recycled("proposal")
        if memory is not None:
            self._best.release(memory)
        return memory

    def spare(self) -> Float[Tensor, "B D"] | None:
        """Return a buffer ``(B, D)`` that is free until the next evaluation, or None while gradients flow.

        It holds the previous residual, so that the difference of the last two residuals can be written over it.
        """
        buffers = self._buffers.get("residual", [])
        return None if torch.is_grad_enabled() or len(buffers) < 2 else buffers[0]

    def judged(self, z: Tensor, fz: Tensor) -> Evaluated:
        """Return ``z`` and ``fz`` with residual, error and scale. It evaluates and counts nothing."""
        residual = torch.sub(fz, z, out=self._recycled("residual"))
        if self._exact_residual is not None:
            # Finished rows hold fz = z: their residual is zero, whatever the problem computed for them.
            residual = torch.where(self._live.mask.unsqueeze(1), self._exact_residual(), residual)
        with torch.no_grad():  # decisions are constants: no gradient flows through error and scale
            measure = self._measure(z.detach(), fz.detach(), residual.detach())
        finite = (measure.error.isfinite() & measure.scale.isfinite()).all(dim=1)
        return Evaluated(
            z, fz, measure.error, measure.scale, finite, residual=residual, plain=self._plain, settled=measure.settled
        )

    def remember(self, at: Evaluated) -> None:
        """Compare a judged point with the best point of every running row, and append it to the trace."""
        if self.origin is None:
            self.origin = at.error, at.scale
        live = self._live.mask
        error = at.error.amax(dim=1)
        # 0 / 0 counts as 0: a row whose residual and value are both zero is solved.
        relative = (at.error / at.scale).nan_to_num(nan=0.0, posinf=torch.inf).amax(dim=1)
        self.judged_after.append(self.counts.rounds)
        self.errors.append(torch.where(live, error, torch.nan))
        self.relative.append(torch.where(live & at.finite, relative, torch.nan))
        if self.tracks_best:
            self._best.see(at, live)

    @property
    def improved(self) -> Bool[Tensor, " B"]:
        """The rows whose best point is the one evaluated last."""
        return self._best.improved

    def settle(self, everywhere: bool) -> None:
        """Tell the evaluator whether the last point is the best of every row: in that case nothing is copied."""
        self._best.settle(everywhere)

    @property
    def known(self) -> Point | None:
        """The point where every row ended, or its best one so far, for :meth:`recall`; None before the first point."""
        return self._best.known

    def recall(self, known: Point | None) -> None:
        """Set the best points to those that another evaluator of the same rows had in ``known``."""
        self._best = Best(known, self.yardstick.merit)

    def keep(self, rows: NDArray[np.bool_], at: Evaluated) -> None:
        """Make ``at`` the answer of ``rows``, shape ``(B,)``: they have finished there."""
        if rows.any():
            self._best.keep(to_device(rows, at.z.device), bool(rows.all()), at)

    def give_up_memory(self) -> None:
        """Free the buffers for proposals and residuals, once another evaluator continues the solve."""
        self._best.settle(everywhere=False)
        self._buffers.clear()

    @property
    def best(self) -> Evaluated:
        """The judged point of smallest error of every row; the first point where none was finite."""
        point = self._best.point
        return Evaluated(
            point.z, point.fz, point.error, point.scale, point.finite, residual=point.fz - point.z, plain=self._plain
        )

    @property
    def answer(self) -> Point:
        """The point where every row ended, or its best one, in memory that nothing else uses."""
        return self._best.own

    def _measure(self, z: Tensor, fz: Tensor, residual: Tensor) -> Measure:
        """Return error and scale: the problem's own measure, or the norms of residual and value."""
        if self._own_measure is not None:
            return self._own_measure(z, fz, residual)
        measured = self.yardstick.norms
        return Measure(measured(residual, self.layout), measured(fz, self.layout))

    def _recycled(self, name: str) -> Tensor | None:
        """Return one of two buffers of the state's shape, in turn; None while gradients flow."""
        if torch.is_grad_enabled():
            return None
        layout = self.layout
        buffers = self._buffers.setdefault(name, [])
        if len(buffers) < 2:
            buffers.append(torch.empty(layout.rows, layout.size, dtype=layout.dtype, device=layout.device))
        else:
            buffers.append(buffers.pop(0))
        return buffers[-1]
