"""Measures what steps of a chain cost on this machine: the seconds of a call, by the number of states in it."""

from __future__ import annotations

import time
import weakref
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from fixedpoint.chains.problem import ChainProblem

__all__ = ["Costs", "HasCostKey", "measured_costs"]

# The quickest of this many calls counts: the first one at a new size also pays for kernel plans and memory.
_CALLS = 3
# Larger calls are tried while their seconds per state are at most this share of the best so far.
_QUICKER = 0.95


class HasCostKey(ABC):
    """A chain that shares its cost with other chains, for example of the same network, so that it is measured once."""

    @abstractmethod
    def cost_key(self) -> tuple[object, Hashable]:
        """Return the object that takes the time, and a hashable value of everything else the time depends on.

        The object is, for example, the network. It must allow weak references; measurements are kept for as long as it
        exists.
        """


@dataclass(frozen=True)
class Costs:
    """Measured seconds of calls of ``chain.step``.

    Attributes
    ----------
    batches
        Numbers of states in a call, increasing.
    seconds
        Seconds of a call with that many states.
    """

    batches: tuple[int, ...]
    seconds: tuple[float, ...]

    def call(self, states: float) -> float:
        """Return the seconds of a call: linear between two measurements, proportional beyond the last one."""
        if states >= self.batches[-1]:
            return self.seconds[-1] * states / self.batches[-1]
        place = bisect_left(self.batches, states)
        if place == 0:
            return self.seconds[0]
        low, high = self.batches[place - 1 : place + 1]
        share = (states - low) / (high - low)
        return self.seconds[place - 1] * (1 - share) + self.seconds[place] * share

    def round(self, states: float, max_batch: int) -> float:
        """Return the seconds of a round that evaluates ``states`` states, at most ``max_batch`` in a call."""
        calls, rest = divmod(states, max_batch)
        return calls * self.call(max_batch) + (self.call(rest) if rest else 0.0)

    def best_batch(self, states: float) -> int:
        """Return the measured number of states in a call that makes a round of ``states`` states quickest."""
        return min(self.batches, key=lambda size: (self.round(states, size), -size))


_known: weakref.WeakKeyDictionary[object, dict[Hashable, dict[int, float]]] = weakref.WeakKeyDictionary()


def measured_costs(
    problem: ChainProblem,
    worth: Callable[[float], float],
    count: Callable[[int], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Costs:
    """Measure calls with one state per row, then four times as many and so on, while this lowers the time per state.

    Measurements for the same chain, or for one with an equal ``cost_key`` (:class:`HasCostKey`), are reused.

    Parameters
    ----------
    problem
        The chain. Calls evaluate its ``x0`` at steps spread over the chain, at most ``max_batch`` states in a call. A
        size for which memory does not suffice is not measured.
    worth
        Returns how many seconds may be spent, given the seconds of a call with one state per row. That call is always
        made; larger ones are made only if they are expected to fit in the time left.
    count
        Called with the number of states that each call has evaluated.
    clock
        Returns the time in seconds.

    Returns
    -------
    Costs
        The measurements of all sizes up to ``max_batch``.
    """
    known = _known_of(problem)
    whole = len(problem.x0) * problem.length
    largest = min(problem.max_batch or whole, whole)
    size, rate = min(len(problem.x0), largest), torch.inf
    spent = _timed(problem, size, known, worth, count, clock)
    budget = worth(known[size])
    while known[size] / size <= _QUICKER * rate:
        rate, following = min(rate, known[size] / size), min(4 * size, largest)
        if following == size or (following not in known and spent + following * rate > budget):
            break
        size, left = following, budget - spent
        try:
            spent += _timed(problem, size, known, lambda _, left=left: left, count, clock)  # type: ignore[misc]  # mypy knows no bound default of a lambda
        except torch.OutOfMemoryError:
            break
    sizes = {size: seconds for size, seconds in sorted(known.items()) if size <= largest}
    if problem.max_batch and largest not in sizes:  # assume the seconds per state of the last one
        sizes[largest] = Costs(tuple(sizes), tuple(sizes.values())).call(largest)
    return Costs(tuple(sizes), tuple(sizes.values()))


def _timed(
    problem: ChainProblem,
    states: int,
    known: dict[int, float],
    worth: Callable[[float], float],
    count: Callable[[int], None],
    clock: Callable[[], float],
) -> float:
    """Store the seconds of the quickest of a few calls in ``known``, unless stored; return the seconds spent."""
    if states in known:
        return 0.0
    spent = 0.0
    for _ in range(_CALLS):
        began = clock()
        _call(problem, states)
        took = clock() - began
        count(states)
        known[states], spent = min(known.get(states, torch.inf), took), spent + took
        if spent + took > worth(known[states]):
            break
    return spent


def _call(problem: ChainProblem, states: int) -> None:
    """Evaluate ``states`` states in one call, and wait for the result."""
    place = torch.arange(states, device=problem.x0.device)
    row, index = place % len(problem.x0), place * problem.length // states
    try:
        value = problem.in_batches(states).pairs(problem.x0[row], index, row)
    except Exception as error:  # a denoiser may raise anything; a note says during what
        error.add_note("raised while calls of the step were timed, before round 1 of the solve")
        raise
    float(value.flatten()[0])  # waits for the device


def _known_of(problem: ChainProblem) -> dict[int, float]:
    """Return the seconds by number of states that were measured for steps of the same cost; the caller adds to it."""
    chain, x0 = problem.chain, problem.x0
    owner, detail = chain.cost_key() if isinstance(chain, HasCostKey) else (chain, None)
    key = detail, x0.shape[1:], x0.dtype, x0.device, torch.get_num_threads()
    try:
        return _known.setdefault(owner, {}).setdefault(key, {})
    except TypeError:  # no weak references or not hashable: measured again next time
        return {}
