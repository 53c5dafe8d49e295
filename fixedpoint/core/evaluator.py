"""Evaluator: the only way a solver calls the problem, so that nothing is evaluated uncounted or unjudged."""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from fixedpoint.core.counts import Counts, Decision
from fixedpoint.core.point import Best, Evaluated, Point
from fixedpoint.core.problem import (
    Cost,
    HasCost,
    HasDerivatives,
    HasMeasure,
    HasPairs,
    HasProduct,
    HasTake,
    Measure,
    Problem,
)
from fixedpoint.core.reduce import block_norms, row_norms
from fixedpoint.core.transfer import to_device

__all__ = ["Evaluated", "Evaluator"]

_ONE = Cost(calls=1, evaluations=1)


@dataclass(frozen=True)
class _Live:
    """The rows still running, on the host and on the device; ``index`` is None while all of them are."""

    host: NDArray[np.bool_]
    mask: Tensor
    index: Tensor | None = None
    problem: Problem | None = None


class Evaluator:
    """Evaluates a problem, counting, judging and remembering the best point of every row.

    ``tracks_best`` may be set to False by a loop whose answer is the latest point, not the best. ``wanted`` names what
    a gradient estimator wants of the solver beyond the answer: with ``"inverse"`` the solution carries an estimate of
    the inverse Jacobian, with ``"decisions"`` the loop keeps its own in ``decisions``.

    Parameters
    ----------
    problem
        The problem.
    norm
        ``"l2"``, ``"rms"`` or ``"max"``: the norm of ``f(z) - z`` for problems without a measure of their own.
    max_batch
        Evaluate at most this many rows in one call (the problem must be able to ``take`` rows).
    """

    def __init__(self, problem: Problem, norm: str = "l2", max_batch: int | None = None) -> None:
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}")
        if max_batch is not None and not isinstance(problem, HasTake):
            raise TypeError(
                f"max_batch wants a problem whose rows can be taken (a take method), got {type(problem).__name__}"
            )
        self.problem = problem
        self.layout = problem.layout
        self.norm = norm
        self.max_batch = max_batch
        rows = self.layout.rows
        none = np.zeros(rows, dtype=np.int64)
        self.counts = Counts(rounds=0, calls=0, evaluations=none, computed=0, products=none.copy())
        self.limit = sys.maxsize
        self._differs = self.layout.namespace != "torch"
        self.errors: list[Tensor] = []
        self.relative: list[Tensor] = []
        self.judged_after: list[int] = []
        self.tracks_best = True
        self.wanted: frozenset[str] = frozenset()
        self.decisions: list[Decision] = []
        self._own_measure = problem.measure if isinstance(problem, HasMeasure) else None
        self._plain = norm == "l2" and self.layout.blocks == 1 and self._own_measure is None
        self._best = Best()
        everything = np.ones(rows, dtype=np.bool_)
        self._live = _Live(everything, to_device(everything, self.layout.device))
        self._buffers: dict[str, list[Tensor]] = {}
        self._last: tuple[StorageWeakRef, int] | None = None

    def __call__(self, z: Float[Tensor, "B D"]) -> Evaluated:
        """Evaluate the running rows at ``z``; finished rows get ``fz = z``. Costs one round."""
        return self._evaluate(z)

    def value(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """``f(z)`` at every row as autograd is to record it: counted, but neither judged nor remembered."""
        self.counts.rounds += 1
        self.counts.evaluations += _cost(self.problem, self.layout.rows).evaluations
        with self._noted():
            return self._micro_batches(self.problem, z)

    def product(self, at: Evaluated, v: Float[Tensor, "B D"], exact: bool | None = None) -> Float[Tensor, "B D"]:
        """``J v``, the Jacobian of ``f`` at a point times a vector, of the running rows; costs one round.

        As the problem makes it (``HasProduct``), or in forward mode where the problem is made of operations that have
        one (both counted in ``counts.products``); else by the difference ``(f(z + h v) - f(z)) / h`` (counted as an
        evaluation), ``h = sqrt(eps) ||z|| / ||v||``, which loses half of the digits. Finished rows get zero.

        Parameters
        ----------
        exact
            True: forward mode or its exception; False: the difference; None: what works.
        """
        self.counts.rounds += 1
        if exact is not False and (exact or not self._differs):
            try:
                with self._noted():
                    found = self._forward(at.z, v)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError):  # torch has no exception of its own for what lacks forward mode
                if exact:
                    raise
                self._differs = True  # a function that fails for another reason fails in the difference, too
            else:
                self.counts.products[self._live.host] += 1
                return found
        self.counts.evaluations[self._live.host] += _cost(self.problem, self.layout.rows).evaluations
        reach = row_norms(at.z)
        length = row_norms(v)
        reach = torch.where(reach > 0, reach, torch.where(row_norms(at.fz) > 0, row_norms(at.fz), 1.0))
        size = math.sqrt(torch.finfo(v.dtype).eps) * reach / torch.where(length > 0, length, 1.0)
        wide = size.to(torch.promote_types(v.dtype, torch.float32)).unsqueeze(1)
        with self._noted():
            moved = self._values((at.z + wide * v).to(v.dtype))
        return torch.where(self._live.mask.unsqueeze(1), ((moved - at.fz) / wide).to(v.dtype), 0.0)

    def pairs(
        self,
        chain: HasPairs,
        x: Float[Tensor, "P *event"],
        index: Int[Tensor, " P"],
        row: NDArray[np.int64],
        *,
        same_round: bool = False,
    ) -> Float[Tensor, "P *event"]:
        """Take steps of a chain, this problem or one made of it, at any pairs of a state and a step: one round.

        ``row`` is each pair's row of this solve, on the host: the evaluation counts as that row's. Pairs of more than
        ``max_batch`` rows are taken in several parts; they must come row by row then. With ``same_round`` they belong
        to the round of the pairs before: they need not have waited.
        """
        self.counts.rounds += not same_round
        self.counts.evaluations += np.bincount(row, minlength=self.layout.rows)
        return torch.cat([self._taken(chain.pairs, chain, *part) for part in self._parts(x, index, row)])

    def derivatives(
        self,
        chain: HasDerivatives,
        x: Float[Tensor, "P *event"],
        index: Int[Tensor, " P"],
        row: NDArray[np.int64],
        whole: bool,
    ) -> Float[Tensor, "P d"] | Float[Tensor, "P d d"]:
        """Derivatives of the steps of a chain at any pairs of a state and a step; see :meth:`pairs`.

        Costs no round, since it need not wait for the evaluation there; counted in ``counts.products``, step by step.
        """
        self.counts.products += np.bincount(row, minlength=self.layout.rows)
        derive = functools.partial(chain.derivatives, whole=whole)
        return torch.cat([self._taken(derive, chain, *part) for part in self._parts(x, index, row)])

    @property
    def remaining(self) -> int:
        """Rounds left before the limit of the solve."""
        return max(self.limit - self.counts.rounds, 0)

    @property
    def running(self) -> NDArray[np.bool_]:
        """Shape ``(B,)``, on the host: the rows still running."""
        return self._live.host.copy()

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

    def narrow(self, running: NDArray[np.bool_]) -> None:
        """Say which rows are still running; the others are left out of evaluations where the problem can."""
        if np.array_equal(running, self._live.host):
            return
        mask = to_device(running.copy(), self.layout.device)
        index = to_device(np.flatnonzero(running), self.layout.device)
        part = self.problem.take(index) if isinstance(self.problem, HasTake) and len(index) else None
        self._live = _Live(running.copy(), mask, index, part)

    def judged(self, z: Tensor, fz: Tensor) -> Evaluated:
        """``z`` and ``fz`` with their measure; counts nothing."""
        residual = torch.sub(fz, z, out=self._recycled("residual"))
        with torch.no_grad():
            measure = self._measure(z.detach(), fz.detach(), residual.detach())
        finite = (measure.error.isfinite() & measure.scale.isfinite()).all(dim=1)
        return Evaluated(z, fz, measure.error, measure.scale, finite, residual=residual, plain=self._plain)

    def remember(self, at: Evaluated) -> None:
        """Let the best point of every row take part of ``at`` in, and append it to the trace."""
        live = self._live.mask
        error = at.error.amax(dim=1)
        relative = (at.error / at.scale).nan_to_num(nan=0.0, posinf=torch.inf).amax(dim=1)
        self.judged_after.append(self.counts.rounds)
        self.errors.append(torch.where(live, error, torch.nan))
        self.relative.append(torch.where(live & at.finite, relative, torch.nan))
        if self.tracks_best:
            self._best.see(at, live)

    @property
    def differs(self) -> bool:
        """Whether products are made by differences, since the problem has no forward mode."""
        return self._differs

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
        self._best = Best(known)

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

    def _parts(self, x: Tensor, index: Tensor, row: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The pairs, of at most ``max_batch`` rows at a time."""
        rows = to_device(row, x.device)
        size = self.max_batch or self.layout.rows
        for first in range(0, self.layout.rows, size):
            part = slice(*np.searchsorted(row, [first, first + size])) if size < self.layout.rows else slice(None)
            if len(row[part]) or not len(row):
                yield x[part], index[part], rows[part]

    def _taken(
        self, take: Callable[..., Tensor], chain: HasPairs | HasDerivatives, x: Tensor, index: Tensor, row: Tensor
    ) -> Tensor:
        self.counts.calls += chain.calls(len(x))
        self.counts.computed += len(x)
        with self._noted():
            return take(x, index, row)

    def _evaluate(self, z: Tensor) -> Evaluated:
        wanted = (self.layout.rows, self.layout.size)
        if z.shape != wanted or z.dtype != self.layout.dtype:
            raise ValueError(
                f"a solver must propose points of shape {wanted}, {self.layout.dtype}, got {tuple(z.shape)}, {z.dtype}"
            )
        evaluations = _cost(self.problem, self.layout.rows).evaluations
        self.counts.rounds += 1
        self.counts.evaluations[self._live.host] += evaluations
        with self._noted():
            fz = self._values(z)
        at = self.judged(z, fz)
        self.remember(at)
        return at

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            error.add_note(f"raised by f in round {self.counts.rounds} of the solve")
            raise

    def _measure(self, z: Tensor, fz: Tensor, residual: Tensor) -> Measure:
        if self._own_measure is not None:
            return self._own_measure(z, fz, residual)
        blocks = self.layout.blocks
        return Measure(block_norms(residual, blocks, self.norm), block_norms(fz, blocks, self.norm))

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

    def _forward(self, z: Tensor, v: Tensor) -> Tensor:
        """``J v`` of the running rows in forward mode, zero elsewhere."""
        live = self._live
        if live.index is None or live.problem is None:
            return torch.where(live.mask.unsqueeze(1), self._tangent(self.problem, z, v), 0.0)
        part = self._tangent(live.problem, z[live.index], v[live.index])
        return torch.zeros_like(v).index_copy(0, live.index, part)

    def _tangent(self, problem: Problem, z: Tensor, v: Tensor) -> Tensor:
        self.counts.calls += 1
        self.counts.computed += z.shape[0]
        if isinstance(problem, HasProduct):
            return problem.product(z, v)
        _prepare_forward_mode()
        tangent: Tensor = torch.func.jvp(problem, (z.detach(),), (v.detach(),))[1]
        return tangent

    def _values(self, z: Tensor) -> Tensor:
        live = self._live
        if live.index is None:
            return self._micro_batches(self.problem, z)
        if live.problem is None:
            return torch.where(live.mask.unsqueeze(1), self._micro_batches(self.problem, z), z)
        return z.index_copy(0, live.index, self._micro_batches(live.problem, z.index_select(0, live.index)))

    def _micro_batches(self, problem: Problem, z: Tensor) -> Tensor:
        if self.max_batch is None or z.shape[0] <= self.max_batch:
            return self._call(problem, z)
        assert isinstance(problem, HasTake)  # checked on construction
        rows = torch.arange(z.shape[0], device=z.device).split(self.max_batch)
        return torch.cat([self._call(problem.take(part), z[part]) for part in rows])

    def _call(self, problem: Problem, z: Tensor) -> Tensor:
        cost = _cost(problem, z.shape[0])
        self.counts.calls += cost.calls
        self.counts.computed += cost.evaluations * z.shape[0]
        fz = problem(z)
        if fz.shape != z.shape or fz.dtype != z.dtype or fz.device != z.device:
            raise ValueError(
                f"f must return shape {tuple(z.shape)}, {z.dtype} on {z.device}, "
                f"got {tuple(fz.shape)}, {fz.dtype} on {fz.device}"
            )
        return self._owned(z, fz)

    def _owned(self, z: Tensor, fz: Tensor) -> Tensor:
        """``fz`` in memory that stays as it is: a view of ``z`` is copied, memory filled anew is refused."""
        if fz.untyped_storage().data_ptr() == z.untyped_storage().data_ptr():
            return fz.clone()
        storage = StorageWeakRef(fz.untyped_storage())
        if self._last is not None:
            last, version = self._last
            if storage == last and not last.expired() and fz._version != version:
                raise ValueError("f returned memory it had returned before, filled anew; it must return a new tensor")
        self._last = (storage, fz._version)
        return fz


@functools.cache
def _prepare_forward_mode() -> None:
    """Have torch load what forward mode needs: at its first use it warns of a deprecation within itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.zeros(1),))


def _cost(problem: Problem, rows: int) -> Cost:
    return problem.cost(rows) if _has_cost(type(problem)) and isinstance(problem, HasCost) else _ONE


@functools.cache
def _has_cost(kind: type) -> bool:
    return issubclass(kind, HasCost)  # to ask an instance takes longer than what is asked for
