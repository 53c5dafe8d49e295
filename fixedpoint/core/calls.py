"""Calls of a problem: of its running rows, at most ``max_batch`` at a time, with counting and checks of the value."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.counts import Counts
from fixedpoint.core.inference import writes
from fixedpoint.core.memory import REFILLED, Receiver
from fixedpoint.core.point import Evaluated
from fixedpoint.core.problem import (
    Cost,
    FunctionProblem,
    HasCost,
    HasProduct,
    HasTake,
    Problem,
)
from fixedpoint.core.reduce import row_norms
from fixedpoint.core.tangents import Way, tangent
from fixedpoint.core.transfer import to_device

__all__ = ["Calls", "cost_of"]

_ONE = Cost(calls=1, evaluations=1)


@dataclass(frozen=True)
class _Live:
    """The running rows: a mask on the host and on the device, their indices, and their problem if it can be taken.

    ``index`` is None while all rows are running.
    """

    host: NDArray[np.bool_]
    mask: Tensor
    index: Tensor | None = None
    problem: Problem | None = None


class Calls:
    """Evaluates a problem, its Jacobian-vector products and parts of it, and counts all of it in ``counts``.

    Parameters
    ----------
    problem
        The problem.
    max_batch
        Evaluate at most this many rows in one call, at least 1; the problem must be a ``HasTake``. None: all at once.
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
        self._forward_failed = (
            False  # whether a way of forward mode has failed, which cost a round more than solvers expect
        )
        self._receive = Receiver()

    def _evaluate_running(self, z: Tensor) -> Tensor:
        """Return ``f(z)`` in the running rows and ``z`` in the others; costs one round."""
        counts, live, spent = self.counts, self._live, cost_of(self.problem, self.layout.rows).evaluations
        counts.rounds += 1
        if live.index is None:
            counts.evaluations += spent
        else:
            counts.evaluations[live.host] += spent
        try:
            return self._values(z)
        except Exception as error:
            self._note_round(error)
            raise

    def value(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return ``f(z)`` of all rows, recorded by autograd: counted as one round, but neither judged nor stored."""
        self.counts.rounds += 1
        self.counts.evaluations += cost_of(self.problem, self.layout.rows).evaluations
        with self._with_round_note():
            return self._micro_batches(self.problem, z)

    def aux(self, z: Float[Tensor, "B D"]) -> Any:
        """Evaluate ``f`` at ``z`` for its second item only; counted as one round of every row."""
        problem = self.problem
        assert isinstance(problem, FunctionProblem)  # no other problem returns a second item
        self.counts.rounds += 1
        self.counts.evaluations += self._count(problem, self.layout.rows)
        with self._with_round_note():
            return problem.with_aux(z)[1]

    def product(self, at: Evaluated, v: Float[Tensor, "B D"], exact: bool | None = None) -> Float[Tensor, "B D"]:
        """Return ``J v``, the Jacobian of ``f`` at a point times a vector, in the running rows; costs one round.

        The product comes from the problem (``HasProduct``) or from forward mode, if all operations of ``f`` support it;
        both are counted in ``counts.products``. Otherwise it is the difference ``(f(z + h v) - f(z)) / h`` with
        ``h = sqrt(eps) ||z|| / ||v||``, which loses half of the digits and is counted as an evaluation.

        A failed attempt at forward mode has called the function too: it counts as a round, and as an evaluation of the
        rows it was called with. After one, a product is zero unless the limit leaves two rounds: one for the product,
        and one for the point computed from it.

        Parameters
        ----------
        at, v
            The point, and the vector, shape ``(B, D)``. Finished rows of the result are zero.
        exact
            True: use forward mode, and raise its exception if it fails; False: use the difference; None: what works.
        """
        if self._forward_failed and self.remaining < 2:
            return torch.zeros_like(v)
        way = Way.DIFFERENCE if exact is False else self._first_way(exact)
        while way is not Way.DIFFERENCE:
            self.counts.rounds += 1
            tried = np.zeros(self.layout.rows, dtype=np.int64)
            try:
                with self._with_round_note():
                    found = self._forward(at.z, v, tried, way, strict=not exact)
            except torch.OutOfMemoryError:  # a RuntimeError as well, but no lack of forward mode
                raise
            except (RuntimeError, NotImplementedError) as error:
                # torch has no dedicated exception for operations without forward mode. A function that fails for
                # another reason also fails in the difference, which then raises.
                way = Way.DIFFERENCE if isinstance(self.problem, HasProduct) else way.after(error)
                if way is Way.DIFFERENCE and (exact or isinstance(self.problem, HasProduct)):
                    raise
                self._way, self._forward_failed = way, True
                self.counts.evaluations += np.where(self._live.host, tried, 0)
                if self.remaining < 2:
                    return torch.zeros_like(v)
            else:
                self.counts.products += np.where(self._live.host, tried, 0)
                return found
        self.counts.rounds += 1
        self.counts.evaluations[self._live.host] += cost_of(self.problem, self.layout.rows).evaluations
        reach = row_norms(at.z)
        length = row_norms(v)
        reach = torch.where(reach > 0, reach, torch.where(row_norms(at.fz) > 0, row_norms(at.fz), 1.0))
        # sqrt(eps) balances truncation, which grows with h, against rounding, which grows with 1 / h.
        size = math.sqrt(torch.finfo(v.dtype).eps) * reach / torch.where(length > 0, length, 1.0)
        # In single precision at least, since h may leave the range of half precision.
        wide = size.to(torch.promote_types(v.dtype, torch.float32)).unsqueeze(1)
        with self._with_round_note():
            moved = self._values((at.z + wide * v).to(v.dtype))
        return torch.where(self._live.mask.unsqueeze(1), ((moved - at.fz) / wide).to(v.dtype), 0.0)

    def in_parts(
        self,
        function: Callable[..., Tensor],
        *batch: Shaped[Tensor, "P ..."],
        row: NDArray[np.int64],
        calls: Callable[[int], int],
        owns: bool = False,
    ) -> Float[Tensor, "P ..."]:
        """Call a function of a batch whose entries belong to the rows of this solve, in parts of ``max_batch`` rows.

        Counts the calls and the computed entries. Rounds, and what an entry is to its row, are counted by the caller.

        Parameters
        ----------
        function
            Takes a part of every tensor of ``batch``, and last the row of each entry, shape ``(P,)``, int64. It returns
            one value per entry.
        batch
            Tensors with the entries along their first dimension.
        row
            Shape ``(P,)``, on the host: the row that each entry belongs to. Entries of more than ``max_batch`` rows
            must be sorted by row.
        calls
            Returns how many calls of the user's function a part of so many entries takes.
        owns
            Whether the function has received its values by a :class:`.Receiver`.
        """
        receive, found = Receiver(owns=owns), []  # no later part overwrites the memory of an earlier one
        for part in self._parts(batch, row):
            self.counts.calls += calls(part[-1].shape[0])
            self.counts.computed += part[-1].shape[0]
            with self._with_round_note():
                found.append(receive(functools.partial(function, *part)))
        return torch.cat(found) if len(found) > 1 else found[0].contiguous()

    @property
    def running(self) -> NDArray[np.bool_]:
        """Shape ``(B,)``, bool, on the host: the rows that are still running."""
        return self._live.host.copy()

    def narrow(self, running: NDArray[np.bool_]) -> None:
        """Set which rows are still running; evaluations omit the others if the problem can take rows."""
        if np.array_equal(running, self._live.host):
            return
        mask = to_device(running.copy(), self.layout.device)
        index = to_device(np.flatnonzero(running), self.layout.device)
        part = self.problem.take(index) if isinstance(self.problem, HasTake) and len(index) else None
        self._live = _Live(running.copy(), mask, index, part)

    @property
    def differs(self) -> bool:
        """Whether products are computed by differences, since the problem has no forward mode."""
        return self._way is Way.DIFFERENCE

    @property
    def remaining(self) -> int:
        """Rounds left until the limit of the solve, at least 0."""
        return max(self.limit - self.counts.rounds, 0)

    def learn(self, other: Calls) -> None:
        """Take over what another ``Calls`` has learnt of the same function: how products work, how it uses memory."""
        self._way, self._receive = other._way, other._receive

    def _first_way(self, exact: bool | None) -> Way:
        """Return the first way to try; for exact products always one of forward mode."""
        return Way.TRANSFORM if exact and self.differs else self._way

    def _parts(self, batch: Sequence[Tensor], row: NDArray[np.int64]) -> Iterator[tuple[Tensor, ...]]:
        """Split a batch, with the row of each entry as its last tensor, into parts of at most ``max_batch`` rows."""
        whole = (*batch, to_device(row, self.layout.device))
        if self.max_batch is None or self.max_batch >= self.layout.rows:
            yield whole
            return
        for first in range(0, self.layout.rows, self.max_batch):
            part = slice(*np.searchsorted(row, [first, first + self.max_batch]))
            if len(row[part]) or not len(row):
                yield tuple(tensor[part] for tensor in whole)

    @contextmanager
    def _with_round_note(self) -> Iterator[None]:
        """Add the round to any exception that the function raises."""
        try:
            yield
        except Exception as error:
            self._note_round(error)
            raise

    def _note_round(self, error: Exception) -> None:
        called = self.problem.called if isinstance(self.problem, FunctionProblem) else "f"
        error.add_note(f"raised by {called} in round {self.counts.rounds} of the solve")

    def _forward(self, z: Tensor, v: Tensor, tried: NDArray[np.int64], way: Way, strict: bool) -> Tensor:
        """Return ``J v`` of the running rows in forward mode, zero elsewhere; count the evaluations in ``tried``."""
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
        """Return ``f(z)`` in the running rows, ``z`` in the others."""
        live = self._live
        if live.index is None:
            return self._micro_batches(self.problem, z)
        if live.problem is None:
            return torch.where(live.mask.unsqueeze(1), self._micro_batches(self.problem, z), z)
        return z.index_copy(0, live.index, self._micro_batches(live.problem, z.index_select(0, live.index)))

    def _micro_batches(self, problem: Problem, z: Tensor) -> Tensor:
        """Return ``f(z)``, evaluated in parts of at most ``max_batch`` rows."""
        if self.max_batch is None:
            return self._call(problem, z)
        found = [self._call(own, z[part]) for part, own in self._batches(problem, z)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _batches(self, problem: Problem, z: Tensor) -> Iterator[tuple[slice, Problem]]:
        """Split a problem into parts of at most ``max_batch`` rows."""
        if self.max_batch is None or len(z) <= self.max_batch:
            yield slice(None), problem
            return
        assert isinstance(problem, HasTake)  # checked on construction
        for first in range(0, len(z), self.max_batch):
            part = slice(first, min(first + self.max_batch, len(z)))
            yield part, problem.take(torch.arange(part.start, part.stop, device=z.device))

    def _call(self, problem: Problem, z: Tensor) -> Tensor:
        """Call a problem once, count the call, and return the value in memory that nothing else overwrites."""
        self._count(problem, z.shape[0])
        theirs, version = self._receive.gave(z), writes(z)
        try:
            fz = self._receive(lambda: self._checked(problem, z))
        except ValueError:
            if theirs and writes(z) != version:
                raise ValueError(f"{REFILLED}, and leave its argument as it is") from None
            raise
        if self._receive.copied:  # f writes into memory it keeps, which torch.func refuses: start with dual numbers
            self._way = max(self._way, Way.DUAL)
        # An f that returns its argument gives state and value one memory; without autograd the receiver copies that.
        if torch.is_grad_enabled() and fz.untyped_storage().data_ptr() == z.untyped_storage().data_ptr():
            return fz.clone()
        return fz

    def _count(self, problem: Problem, rows: int) -> int:
        """Count the calls and computed rows of one evaluation of ``rows`` rows; return the evaluations per row."""
        cost = cost_of(problem, rows)
        self.counts.calls += cost.calls
        self.counts.computed += cost.evaluations * rows
        return cost.evaluations

    def _checked(self, problem: Problem, z: Tensor) -> Tensor:
        """Return ``f(z)``; raise ``ValueError`` for another shape, dtype or device."""
        fz = problem(z).contiguous()  # norms of rows in another order of memory would have other bits
        if fz.shape != z.shape or fz.dtype != z.dtype or fz.device != z.device:
            raise ValueError(
                f"f must return shape {tuple(z.shape)}, {z.dtype} on {z.device}, "
                f"got {tuple(fz.shape)}, {fz.dtype} on {fz.device}"
            )
        return fz


def cost_of(problem: Problem, rows: int) -> Cost:
    """Return the cost of one evaluation; by default one call, and one evaluation per row."""
    return problem.cost(rows) if _has_cost(type(problem)) else _ONE  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=256)
def _has_cost(kind: type) -> bool:
    """Whether a class of problems declares what an evaluation costs; to ask the abstract class takes longer."""
    return issubclass(kind, HasCost)
