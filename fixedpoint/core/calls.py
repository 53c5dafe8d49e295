"""Calls of a problem: of the rows that are running, in parts as memory allows, counted, what comes back looked at."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.counts import Counts
from fixedpoint.core.memory import REFILLED, Receiver
from fixedpoint.core.point import Evaluated
from fixedpoint.core.problem import (
    Cost,
    FunctionProblem,
    HasCost,
    HasDerivatives,
    HasPairs,
    HasProduct,
    HasTake,
    Problem,
)
from fixedpoint.core.reduce import row_norms
from fixedpoint.core.tangents import Way, tangent
from fixedpoint.core.transfer import to_device

__all__ = ["Calls"]

_ONE = Cost(calls=1, evaluations=1)


@dataclass(frozen=True)
class _Live:
    """The rows still running, on the host and on the device; ``index`` is None while all of them are."""

    host: NDArray[np.bool_]
    mask: Tensor
    index: Tensor | None = None
    problem: Problem | None = None


class Calls:
    """Calls a problem, its products, and the steps of chains made of it.

    Parameters
    ----------
    problem
        The problem.
    max_batch
        Evaluate at most this many rows in one call (the problem must be a ``HasTake``).
    """

    def __init__(self, problem: Problem, max_batch: int | None = None) -> None:
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}")
        if max_batch is not None and not isinstance(problem, HasTake):
            raise TypeError(
                f"max_batch requires a problem whose rows can be taken (a take method), got {type(problem).__name__}; "
                "declare it: class Mine(Problem, HasTake)"
            )
        self.problem = problem
        self.layout = problem.layout
        self.max_batch = max_batch
        none = np.zeros(self.layout.rows, dtype=np.int64)
        self.counts = Counts(rounds=0, calls=0, evaluations=none, computed=0, products=none.copy())
        everything = np.ones(self.layout.rows, dtype=np.bool_)
        self._live = _Live(everything, to_device(everything, self.layout.device))
        self.limit = sys.maxsize
        self._way = Way.TRANSFORM if self.layout.namespace == "torch" else Way.DIFFERENCE
        self._tried = False  # a way has failed, so that a round is gone that nobody had reckoned with
        self._receive = Receiver()

    def _running_values(self, z: Tensor) -> Tensor:
        """``f(z)`` at the running rows, ``z`` at the others: a round."""
        self.counts.rounds += 1
        self.counts.evaluations[self._live.host] += _cost(self.problem, self.layout.rows).evaluations
        with self._noted():
            return self._values(z)

    def value(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """``f(z)`` at every row as autograd is to record it: counted, but neither judged nor remembered."""
        self.counts.rounds += 1
        self.counts.evaluations += _cost(self.problem, self.layout.rows).evaluations
        with self._noted():
            return self._micro_batches(self.problem, z)

    def aux(self, z: Float[Tensor, "B D"]) -> Any:
        """What else the function returns at ``z``, whose value is let go: a round of every row, counted like any."""
        problem = self.problem
        assert isinstance(problem, FunctionProblem)  # no other has any
        self.counts.rounds += 1
        self.counts.evaluations += self._count(problem, self.layout.rows)
        with self._noted():
            return problem.with_aux(z)[1]

    def product(self, at: Evaluated, v: Float[Tensor, "B D"], exact: bool | None = None) -> Float[Tensor, "B D"]:
        """``J v``, the Jacobian of ``f`` at a point times a vector, of the running rows; costs one round.

        As the problem makes it (``HasProduct``), or in forward mode where the problem is made of operations that have
        one (both counted in ``counts.products``); else by the difference ``(f(z + h v) - f(z)) / h`` (counted as an
        evaluation), ``h = sqrt(eps) ||z|| / ||v||``, which loses half of the digits. Finished rows get zero.

        Where forward mode is tried and fails, the function was called all the same: another round, and an evaluation
        of the rows it was called with. From then on a product is zero where the limit leaves no round for it and one
        for the point that is made of it.

        Parameters
        ----------
        exact
            True: forward mode or its exception; False: the difference; None: what works.
        """
        if self._tried and self.remaining < 2:
            return torch.zeros_like(v)
        way = Way.DIFFERENCE if exact is False else self._first_way(exact)
        while way is not Way.DIFFERENCE:
            self.counts.rounds += 1
            tried = np.zeros(self.layout.rows, dtype=np.int64)
            try:
                with self._noted():
                    found = self._forward(at.z, v, tried, way, strict=not exact)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError) as error:
                # Torch has no exception of its own for what lacks forward mode. A function that fails for another
                # reason fails in the difference, too.
                way = Way.DIFFERENCE if isinstance(self.problem, HasProduct) else way.after(error)
                if way is Way.DIFFERENCE and (exact or isinstance(self.problem, HasProduct)):
                    raise
                self._way, self._tried = way, True
                self.counts.evaluations += np.where(self._live.host, tried, 0)
                if self.remaining < 2:
                    return torch.zeros_like(v)
            else:
                self.counts.products += np.where(self._live.host, tried, 0)
                return found
        self.counts.rounds += 1
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
        return torch.cat(self._call_chain(chain.pairs, chain, x, index, row))

    def derivatives(
        self,
        chain: HasDerivatives,
        x: Float[Tensor, "P *event"],
        index: Int[Tensor, " P"],
        row: NDArray[np.int64],
        full_jacobian: bool,
    ) -> Float[Tensor, "P d"] | Float[Tensor, "P d d"]:
        """Derivatives of the steps of a chain at any pairs of a state and a step; see :meth:`pairs`.

        Costs no round, since it need not wait for the evaluation there; counted in ``counts.products``, step by step.
        """
        self.counts.products += np.bincount(row, minlength=self.layout.rows)
        derive = functools.partial(chain.derivatives, full_jacobian=full_jacobian)
        return torch.cat(self._call_chain(derive, chain, x, index, row))

    @property
    def running(self) -> NDArray[np.bool_]:
        """Shape ``(B,)``, on the host: the rows still running."""
        return self._live.host.copy()

    def narrow(self, running: NDArray[np.bool_]) -> None:
        """Say which rows are still running; the others are left out of evaluations where the problem can."""
        if np.array_equal(running, self._live.host):
            return
        mask = to_device(running.copy(), self.layout.device)
        index = to_device(np.flatnonzero(running), self.layout.device)
        part = self.problem.take(index) if isinstance(self.problem, HasTake) and len(index) else None
        self._live = _Live(running.copy(), mask, index, part)

    @property
    def differs(self) -> bool:
        """Whether products are made by differences, since the problem has no forward mode."""
        return self._way is Way.DIFFERENCE

    @property
    def remaining(self) -> int:
        """Rounds left before the limit of the solve."""
        return max(self.limit - self.counts.rounds, 0)

    def learn(self, other: Calls) -> None:
        """Take over what other calls have shown of the same function."""
        self._way, self._receive = other._way, other._receive

    def _first_way(self, exact: bool | None) -> Way:
        """The way to begin with: of exact products always one of forward mode."""
        return Way.TRANSFORM if exact and self.differs else self._way

    def _parts(self, x: Tensor, index: Tensor, row: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The pairs, of at most ``max_batch`` rows at a time."""
        rows = to_device(row, x.device)
        size = self.max_batch or self.layout.rows
        for first in range(0, self.layout.rows, size):
            part = slice(*np.searchsorted(row, [first, first + size])) if size < self.layout.rows else slice(None)
            if len(row[part]) or not len(row):
                yield x[part], index[part], rows[part]

    def _call_chain(
        self,
        take: Callable[..., Tensor],
        chain: HasPairs | HasDerivatives,
        x: Tensor,
        index: Tensor,
        row: NDArray[np.int64],
    ) -> list[Tensor]:
        """What is taken of the pairs, part by part, none of them overwritten by a later one."""
        receive, found = Receiver(), []
        for part in self._parts(x, index, row):
            self.counts.calls += chain.calls(len(part[0]))
            self.counts.computed += len(part[0])
            with self._noted():
                found.append(receive(functools.partial(take, *part)))
        return found

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            called = self.problem.called if isinstance(self.problem, FunctionProblem) else "f"
            error.add_note(f"raised by {called} in round {self.counts.rounds} of the solve")
            raise

    def _forward(self, z: Tensor, v: Tensor, tried: NDArray[np.int64], way: Way, strict: bool) -> Tensor:
        """``J v`` of the running rows in forward mode, zero elsewhere; ``tried`` has what it took of each."""
        live = self._live

        def tangents(problem: Problem, z: Tensor, v: Tensor, rows: NDArray[np.int64]) -> Tensor:
            found = []
            for part, own in self._batches(problem, z):
                evaluations = self._count(own, len(z[part]))
                tried[rows[part]] += evaluations
                found.append(tangent(own, z[part], v[part], way, strict))
            return found[0] if len(found) == 1 else torch.cat(found)

        if live.index is None or live.problem is None:
            everyone = np.arange(self.layout.rows)
            return torch.where(live.mask.unsqueeze(1), tangents(self.problem, z, v, everyone), 0.0)
        part = tangents(live.problem, z[live.index], v[live.index], np.flatnonzero(live.host))
        return torch.zeros_like(v).index_copy(0, live.index, part)

    def _values(self, z: Tensor) -> Tensor:
        live = self._live
        if live.index is None:
            return self._micro_batches(self.problem, z)
        if live.problem is None:
            return torch.where(live.mask.unsqueeze(1), self._micro_batches(self.problem, z), z)
        return z.index_copy(0, live.index, self._micro_batches(live.problem, z.index_select(0, live.index)))

    def _micro_batches(self, problem: Problem, z: Tensor) -> Tensor:
        found = [self._call(own, z[part]) for part, own in self._batches(problem, z)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _batches(self, problem: Problem, z: Tensor) -> Iterator[tuple[slice, Problem]]:
        """The problem, of at most ``max_batch`` of its rows at a time."""
        if self.max_batch is None or len(z) <= self.max_batch:
            yield slice(None), problem
            return
        assert isinstance(problem, HasTake)  # checked on construction
        for first in range(0, len(z), self.max_batch):
            part = slice(first, min(first + self.max_batch, len(z)))
            yield part, problem.take(torch.arange(part.start, part.stop, device=z.device))

    def _call(self, problem: Problem, z: Tensor) -> Tensor:
        self._count(problem, z.shape[0])
        theirs, version = self._receive.gave(z), z._version
        try:
            fz = self._receive(lambda: self._checked(problem, z))
        except ValueError:
            if theirs and z._version != version:
                raise ValueError(f"{REFILLED}, and leave its argument as it is") from None
            raise
        if self._receive.copied:  # f writes into what it keeps in forward mode, too
            self._way = max(self._way, Way.DUAL)
        if torch.is_grad_enabled() and fz.untyped_storage().data_ptr() == z.untyped_storage().data_ptr():
            return fz.clone()
        return fz

    def _count(self, problem: Problem, rows: int) -> int:
        """Count the calls, and what is computed, of one evaluation of so many rows; the evaluations of each."""
        cost = _cost(problem, rows)
        self.counts.calls += cost.calls
        self.counts.computed += cost.evaluations * rows
        return cost.evaluations

    def _checked(self, problem: Problem, z: Tensor) -> Tensor:
        fz = problem(z)
        if fz.shape != z.shape or fz.dtype != z.dtype or fz.device != z.device:
            raise ValueError(
                f"f must return shape {tuple(z.shape)}, {z.dtype} on {z.device}, "
                f"got {tuple(fz.shape)}, {fz.dtype} on {fz.device}"
            )
        return fz


def _cost(problem: Problem, rows: int) -> Cost:
    return problem.cost(rows) if isinstance(problem, HasCost) else _ONE
