"""The evaluator: the only way a solver calls a problem, so that every evaluation is counted and judged."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from fixedpoint.core.counts import Decision
from fixedpoint.core.jacobians import Jacobians
from fixedpoint.core.point import Best, Evaluated, Kept, Numbers, Point
from fixedpoint.core.problem import HasExactResidual, HasMeasure, Measure, Problem
from fixedpoint.core.reduce import out_of_range, outside, raw_block_norms
from fixedpoint.core.runaway import Origin
from fixedpoint.core.termination import Termination
from fixedpoint.core.traces import largest_errors
from fixedpoint.core.transfer import to_device, to_host
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
        One array ``(B,)``, float64, for each judged point: the largest error over the blocks, absolute and relative to
        the scale; NaN for rows that had finished.
    judged_after
        The number of rounds after which each of these points was judged.
    tracks_best
        Whether the best point of every row is kept. A loop whose answer is the latest point sets it to False.
    reads_numbers
        Whether the loop reads what the solver asks for with ``StepSolver.asked`` together with the numbers of a point.
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
        self.errors: list[NDArray[np.float64]] = []
        self.relative: list[NDArray[np.float64]] = []
        self.judged_after: list[int] = []
        self.tracks_best = True
        self.reads_numbers = False
        self.wanted: frozenset[str] = frozenset()
        self.termination: Termination | None = None
        self.recorded: Tensor | None = None
        self.decisions: list[Decision] = []
        self.origin: Origin | None = None
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
        self._unread: list[tuple[Evaluated, NDArray[np.bool_], int]] = []
        self._on_cpu = self.layout.device.type == "cpu"
        # Squares of float64 entries may leave the range of float64, those of narrower dtypes cannot.
        self._may_overflow = self.layout.dtype == torch.float64 and self.yardstick.takes_squares(self.layout)

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
        z = z.contiguous()  # norms of rows in another order of memory would have other bits
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
        self._settle()
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
        if torch.is_grad_enabled() or forward_ad._current_level >= 0:
            with torch.no_grad():  # decisions are constants: no gradient flows through error and scale
                measure = self._measure(z.detach(), fz.detach(), residual.detach())
        else:
            measure = self._measure(z, fz, residual)
        numbers = None
        if self._on_cpu:
            measure, numbers = self._numbered(measure, fz, residual, to_host(*_small(measure)))
        error, scale, settled = measure
        return Evaluated(z, fz, error, scale, residual, self._plain, settled, numbers)

    def remember(self, at: Evaluated) -> None:
        """Note a judged point: once it is read, it is compared with the best point, and appended to the trace."""
        if at.numbers is not None:
            self._settle()
            self._note(at, at.numbers, self._live.host, self.counts.rounds)
        else:
            self._unread.append((at, self._live.host, self.counts.rounds))

    def read(self, at: Evaluated, *more: Tensor) -> tuple[Evaluated, list[NDArray[Any]]]:
        """Return a point with its numbers, and more small tensors as arrays, by one transfer from the device.

        Parameters
        ----------
        at
            A point; usually the one evaluated last.
        more
            Tensors, of which float64 and truth values arrive as such, others in float64.
        """
        if at.numbers is not None:
            return at, to_host(*more)
        unread, self._unread = self._unread, []
        # Points that were evaluated within a step are read only now, all together.
        points = [each for each, _, _ in unread]
        points += [] if any(each is at for each in points) else [at]
        small = [_small(Measure(each.error, each.scale, each.settled)) for each in points]
        host = iter(to_host(*(tensor for own in small for tensor in own), *more))
        told = {
            id(each): self._told(each, list(itertools.islice(host, len(own))))
            for each, own in zip(points, small, strict=True)
        }
        for each, live, rounds in unread:
            known = told[id(each)]
            assert known.numbers is not None  # they were read just now
            self._note(known, known.numbers, live, rounds)
        return told[id(at)], list(host)

    def _told(self, at: Evaluated, host: list[NDArray[Any]]) -> Evaluated:
        """Return a point with its numbers, which are on the host already."""
        measure = Measure(at.error, at.scale, at.settled)
        measure, numbers = self._numbered(measure, at.fz, at.residual, host)
        return replace(at, error=measure.error, scale=measure.scale, numbers=numbers)

    def _numbered(
        self, measure: Measure, fz: Tensor, residual: Tensor, host: list[NDArray[Any]]
    ) -> tuple[Measure, Numbers]:
        """Return a measure and its numbers, which are on the host already; norms out of range are computed anew."""
        error, scale, *rest = host
        if self._own_measure is not None:  # the problem may use its memory again
            error, scale = error.copy(), scale.copy()
        elif self._may_overflow and (out_of_range(error) or out_of_range(scale)):
            live = self._live.host[:, None]
            wild = outside(error) & live, outside(scale) & live
            if wild[0].any() or wild[1].any():
                fresh = self._careful(wild[0], measure.error, residual), self._careful(wild[1], measure.scale, fz)
                measure = Measure(*fresh, measure.settled)
                error, scale = to_host(*fresh)
        return measure, Numbers.of(error, scale, *rest)

    def _careful(self, wild: NDArray[np.bool_], norms: Tensor, vector: Tensor) -> Tensor:
        """Return the norms, of which the ``wild`` ones are computed so that no square leaves the range of float64."""
        with torch.no_grad():
            careful = self.yardstick.norms(vector.detach(), self.layout, careful=True)
            return torch.where(to_device(wild, norms.device), careful, norms)

    def _settle(self) -> None:
        """Read the points that are not read yet, compare them with the best one, and append them to the trace."""
        if self._unread:
            self.read(self._unread[-1][0])

    def _note(self, at: Evaluated, numbers: Numbers, live: NDArray[np.bool_], rounds: int) -> None:
        """Append a point to the trace, and compare it with the best one."""
        error, scale = numbers.error, numbers.scale
        if self.origin is None:
            self.origin = error, scale
        worst, relative = largest_errors(numbers, live)
        self.errors.append(worst)
        self.relative.append(relative)
        self.judged_after.append(rounds)
        if self.tracks_best:
            self._best.see(at, numbers, live)

    @property
    def known(self) -> Kept | None:
        """The point where every row ended, or its best one so far, for :meth:`recall`; None before the first point."""
        self._settle()
        return self._best.own

    def recall(self, known: Kept | None) -> None:
        """Set the best points to those that another evaluator of the same rows had in ``known``."""
        self._best = Best(known, self.yardstick.merit)

    def keep(self, rows: NDArray[np.bool_], at: Evaluated) -> None:
        """Make ``at`` the answer of ``rows``, shape ``(B,)``: they have finished there."""
        self._settle()
        assert at.numbers is not None  # rows finish at points that were judged
        self._best.keep(rows, at, at.numbers)

    def give_up_memory(self) -> None:
        """Free the buffers for proposals and residuals, once another evaluator continues the solve."""
        self._settle()
        self._best.part()
        self._buffers.clear()

    @property
    def has_numbers(self) -> bool:
        """Whether a step solver has the small numbers of its rows at hand, on the host.

        On a CPU it has; elsewhere if the loop reads what it asks for. Not while autograd records, nor where an estimate
        of the inverse is wanted, which is applied on the device.
        """
        near = self._on_cpu or self.reads_numbers
        return near and "inverse" not in self.wanted and not torch.is_grad_enabled()

    @property
    def best(self) -> Evaluated:
        """The judged point of smallest error of every row; the first point where none was finite."""
        self._settle()
        kept = self._best.kept
        assert kept is not None  # asked for after an evaluation
        device, numbers = kept.z.device, kept.numbers
        return Evaluated(
            kept.z,
            kept.fz,
            to_device(numbers.error, device),
            to_device(numbers.scale, device),
            residual=kept.fz - kept.z,
            plain=self._plain,
            numbers=numbers,
        )

    @property
    def answer(self) -> Point:
        """The point where every row ended, or its best one, in memory that nothing else uses."""
        known = self.known
        assert known is not None  # asked for at the end
        device, numbers = known.z.device, known.numbers
        return Point(known.z, known.fz, to_device(numbers.error, device), to_device(numbers.scale, device))

    def _measure(self, z: Tensor, fz: Tensor, residual: Tensor) -> Measure:
        """Return error and scale: the problem's own measure, or the norms of residual and value."""
        if self._own_measure is not None:
            return self._own_measure(z, fz, residual)
        if self._plain:
            return Measure(raw_block_norms(residual, 1, "l2"), raw_block_norms(fz, 1, "l2"))
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


def _small(measure: Measure) -> list[Tensor]:
    """Return what the host needs of a measure: error, scale, and whether rows are settled."""
    error, scale, settled = measure
    return [error, scale] if settled is None else [error, scale, settled]
