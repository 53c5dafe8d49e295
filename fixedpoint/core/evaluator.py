"""Evaluator: the only way a solver calls the problem, so that nothing is evaluated uncounted or unjudged."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.calls import Calls
from fixedpoint.core.counts import Decision
from fixedpoint.core.point import Best, Evaluated, Point
from fixedpoint.core.problem import HasExactResidual, HasMeasure, Measure, Problem
from fixedpoint.core.termination import Termination
from fixedpoint.core.transfer import to_device
from fixedpoint.core.yardstick import Yardstick

__all__ = ["Evaluated", "Evaluator"]


class Evaluator(Calls):
    """Evaluates a problem, counting, judging and remembering the best point of every row.

    ``tracks_best`` may be set to False by a loop whose answer is the latest point, not the best. ``wanted`` names what
    a gradient estimator requires of the solver beyond the answer: with ``"inverse"`` the solution carries an estimate
    of the inverse Jacobian, with ``"decisions"`` the loop keeps its own in ``decisions``. ``termination`` is what the
    solve was asked for, where somebody has said so: a gradient estimator may want to be as exact. ``recorded`` is the
    first value of all rows together that was not part of the solve: a gradient estimator's at the solution. ``origin``
    is error and scale of the first point, or of that of an earlier solve that this one goes on with.

    Parameters
    ----------
    problem
        The problem.
    norm
        ``"l2"``, ``"rms"`` or ``"max"``: the norm of ``f(z) - z`` for problems without a measure of their own; or a
        yardstick, which says what it is taken of, too.
    max_batch
        Evaluate at most this many rows in one call (the problem must be a ``HasTake``).

    Raises
    ------
    ValueError
        Where a problem with a measure of its own is to be measured in parts.
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
        """Evaluate the running rows at ``z``; finished rows get ``fz = z``. Costs one round."""
        wanted = (self.layout.rows, self.layout.size)
        if z.shape != wanted or z.dtype != self.layout.dtype:
            raise ValueError(
                f"a solver must propose points of shape {wanted}, {self.layout.dtype}, got {tuple(z.shape)}, {z.dtype}"
            )
        at = self.judged(z, self._running_values(z))
        self.remember(at)
        return at

    def value(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        fz = super().value(z)
        if self.recorded is None:
            self.recorded = fz.detach()
        return fz

    def empty(self) -> Float[Tensor, "B D"] | None:
        """Memory for a proposal, used again two proposals later; None while gradients flow.

        It is that of the point before the last, which may be read while the proposal is written entry by entry.
        """
        memory = self._recycled("proposal")
        if memory is not None:
            self._best.release(memory)
        return memory

    def spare(self) -> Float[Tensor, "B D"] | None:
        """Memory for what a solver needs until the next evaluation; None while gradients flow.

        It is that of the residual before the last, with which the difference of the two may be overwritten.
        """
        buffers = self._buffers.get("residual", [])
        return None if torch.is_grad_enabled() or len(buffers) < 2 else buffers[0]

    def judged(self, z: Tensor, fz: Tensor) -> Evaluated:
        """``z`` and ``fz`` with their measure; counts nothing."""
        residual = torch.sub(fz, z, out=self._recycled("residual"))
        if self._exact_residual is not None:
            residual = torch.where(self._live.mask.unsqueeze(1), self._exact_residual(), residual)
        with torch.no_grad():
            measure = self._measure(z.detach(), fz.detach(), residual.detach())
        finite = (measure.error.isfinite() & measure.scale.isfinite()).all(dim=1)
        return Evaluated(
            z, fz, measure.error, measure.scale, finite, residual=residual, plain=self._plain, settled=measure.settled
        )

    def remember(self, at: Evaluated) -> None:
        """Let the best point of every row take part of ``at`` in, and append it to the trace."""
        if self.origin is None:
            self.origin = at.error, at.scale
        live = self._live.mask
        error = at.error.amax(dim=1)
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
        """Say, as soon as the host knows, whether the last point is the best of every row: then nothing is copied."""
        self._best.settle(everywhere)

    @property
    def known(self) -> Point | None:
        """The best point of every row or the one it ended at, for another evaluator to :meth:`recall`; None as yet."""
        return self._best.known

    def recall(self, known: Point | None) -> None:
        """Take what another evaluator of this problem knew for one's own."""
        self._best = Best(known, self.yardstick.merit)

    def keep(self, rows: NDArray[np.bool_], at: Evaluated) -> None:
        """Say that these rows end at this point."""
        if rows.any():
            self._best.keep(to_device(rows, at.z.device), bool(rows.all()), at)

    def give_up_memory(self) -> None:
        """Let go of the memory for proposals and residuals, where another evaluator goes on."""
        self._best.settle(everywhere=False)
        self._buffers.clear()

    @property
    def best(self) -> Evaluated:
        """The judged point of smallest error of every row; the first one where none was finite."""
        point = self._best.point
        return Evaluated(
            point.z, point.fz, point.error, point.scale, point.finite, residual=point.fz - point.z, plain=self._plain
        )

    @property
    def answer(self) -> Point:
        """The point where every row ended, or its best, in memory of its own."""
        return self._best.own

    def _measure(self, z: Tensor, fz: Tensor, residual: Tensor) -> Measure:
        if self._own_measure is not None:
            return self._own_measure(z, fz, residual)
        measured = self.yardstick.norms
        return Measure(measured(residual, self.layout), measured(fz, self.layout))

    def _recycled(self, name: str) -> Tensor | None:
        """One of two buffers of the state's shape in turn; None while gradients flow."""
        if torch.is_grad_enabled():
            return None
        layout = self.layout
        buffers = self._buffers.setdefault(name, [])
        if len(buffers) < 2:
            buffers.append(torch.empty(layout.rows, layout.size, dtype=layout.dtype, device=layout.device))
        else:
            buffers.append(buffers.pop(0))
        return buffers[-1]
