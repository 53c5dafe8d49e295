"""What a step of a chain costs: seconds of a call by the number of states in it, as measured on the machine at hand."""

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

# The least of so many calls counts: the first one at a new size pays for plans and memory.
_CALLS = 3
# Larger calls are tried as long as they are so much quicker per state.
_QUICKER = 0.95


class HasCostKey(ABC):
    """A chain whose steps cost what those of other chains do, so that they are measured once."""

    @abstractmethod
    def cost_key(self) -> tuple[object, Hashable]:
        """What takes the time, a network say, and whatever else of the chain the time depends on.

        What is measured is kept for as long as the first of the two lives; it must allow weak references.
        """


@dataclass(frozen=True)
class Costs:
    """Seconds of a call of ``chain.step``, and of what a solver does beside.

    Attributes
    ----------
    batches
        States in a call, increasing.
    seconds
        Of a call with so many.
    """

    batches: tuple[int, ...]
    seconds: tuple[float, ...]

    def call(self, states: float) -> float:
        """Seconds of a call: between two measurements linear, beyond the last one in proportion."""
        if states >= self.batches[-1]:
            return self.seconds[-1] * states / self.batches[-1]
        place = bisect_left(self.batches, states)
        if place == 0:
            return self.seconds[0]
        low, high = self.batches[place - 1 : place + 1]
        share = (states - low) / (high - low)
        return self.seconds[place - 1] * (1 - share) + self.seconds[place] * share

    def round(self, states: float, max_batch: int) -> float:
        """Seconds of a round of so many states, at most ``max_batch`` in a call."""
        calls, rest = divmod(states, max_batch)
        return calls * self.call(max_batch) + (self.call(rest) if rest else 0.0)

    def best_batch(self, states: float) -> int:
        """The number of states in a call by which a round of so many is quickest."""
        return min(self.batches, key=lambda size: (self.round(states, size), -size))


_known: weakref.WeakKeyDictionary[object, dict[Hashable, dict[int, float]]] = weakref.WeakKeyDictionary()


def measured_costs(
    problem: ChainProblem,
    worth: Callable[[float], float],
    count: Callable[[int], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Costs:
    """Measure calls of the number of rows, of four times as many and so on, while that makes a state quicker.

    What was measured for the same chain, or one with the same :class:`HasCostKey`, is used again.

    Parameters
    ----------
    problem
        Of which no more than ``max_batch`` states are evaluated at once. Its own start is evaluated at all steps. Where
        memory does not suffice for a call, it is among those that are not made.
    worth
        How many seconds may be spent, given those of a call with one state per row. Such a call is made in any case,
        larger ones only as far as they are expected to take no longer than what is left.
    count
        Told how many states every call has evaluated.
    clock
        Seconds.
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
            spent += _timed(problem, size, known, lambda _, left=left: left, count, clock)  # type: ignore[misc]
        except torch.OutOfMemoryError:
            break
    sizes = {size: seconds for size, seconds in sorted(known.items()) if size <= largest}
    if problem.max_batch and largest not in sizes:  # asked for: as quick per state as the last one, for all we know
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
    """Make the quickest of some calls known, unless it is; the seconds that all of them took."""
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
    """Evaluate so many states in one call, and wait for it."""
    place = torch.arange(states, device=problem.x0.device)
    row, index = place % len(problem.x0), place * problem.length // states
    try:
        value = problem.in_batches(states).pairs(problem.x0[row], index, row)
    except Exception as error:  # a denoiser may raise anything: it goes on its way, with what was going on
        error.add_note("raised while calls of the step were timed, before round 1 of the solve")
        raise
    float(value.flatten()[0])


def _known_of(problem: ChainProblem) -> dict[int, float]:
    """Seconds by the number of states, as far as they were measured for steps that cost the same."""
    chain, x0 = problem.chain, problem.x0
    owner, detail = chain.cost_key() if isinstance(chain, HasCostKey) else (chain, None)
    key = detail, x0.shape[1:], x0.dtype, x0.device, torch.get_num_threads()
    try:
        return _known.setdefault(owner, {}).setdefault(key, {})
    except TypeError:  # no weak references, or no hash: measured again next time
        return {}
