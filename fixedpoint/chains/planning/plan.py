r"""Chooses the quickest way to solve a chain, given what its steps cost on this machine.

Step by step, a chain of ``N`` steps takes ``N`` calls. A joint solve in a window of ``p`` steps is expected to take

    R = first + per_digit log10(1 / rtol)         rounds in a window of the whole chain
    K = R + slide (N / p - 1)                     rounds
    E = K p (share - saved sqrt(p / N))           evaluations a row

with numbers that depend on the solver (:class:`Estimate`). The chains of ``benchmarks/chain_planner.py`` took these
numbers within a quarter, at tolerances of 1e-1 to 1e-4. The seconds follow from the seconds of a call by its number of
states. On a machine where a call with many states takes no longer than one with a single state, solving the whole chain
at once is quickest. Where a batch is only a few times quicker per state than a single state, a window that makes such
batches is quickest, since it wastes the fewest evaluations. Where a batch is no quicker per state, the chain is solved
step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fixedpoint.chains.planning.costs import Costs

__all__ = ["FROM_ONE_JUMP", "WITH_SECANTS", "Estimate", "Plan", "Setting", "plan", "step_by_step"]

# A joint solve must be expected to take less than this share of the serial time, since its time is only an estimate.
_SURE = 0.9
# The smallest window that is considered, in steps.
_NARROWEST = 8
# Windows are considered if states may change by more than this many units of rounding and still become final.
_EPS = 4.0


@dataclass(frozen=True)
class Estimate:
    """How many rounds and evaluations a joint solver takes; see the module.

    Attributes
    ----------
    first, per_digit
        Rounds in a window of the whole chain: at ``rtol = 1``, and in addition for every further digit.
    slide
        Rounds in addition for every further window that the chain has.
    share, saved
        The share of the window that a round evaluates, and how much of it is saved in a window of the whole chain.
    """

    first: float
    per_digit: float
    slide: float
    share: float
    saved: float

    def expected(self, length: int, window: int, rtol: float) -> tuple[int, float]:
        """Return the numbers of rounds, and of evaluations per row, that a joint solve is expected to take."""
        part = window / length
        whole = self.first + self.per_digit * math.log10(1 / rtol) if rtol > 0 else math.inf
        rounds = min(whole + self.slide * (1 / part - 1), length + 1.0)
        return math.ceil(rounds), rounds * window * (self.share - self.saved * math.sqrt(part))


FROM_ONE_JUMP = Estimate(first=2.5, per_digit=2.5, slide=1.8, share=0.9, saved=0.42)
"""Triangular Anderson acceleration of memory 2, from one jump."""

WITH_SECANTS = Estimate(first=5.5, per_digit=2.0, slide=2.2, share=1.01, saved=0.51)
"""Block secants of memory 1, from constant states."""


@dataclass(frozen=True)
class Setting:
    """One way to solve a chain.

    Attributes
    ----------
    window
        Number of steps in the window; None means step by step.
    max_batch
        Largest number of states in a call.
    rounds
        Expected number of rounds.
    seconds
        Expected duration in seconds.
    """

    window: int | None
    max_batch: int
    rounds: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.name}: {self.seconds:.3g} s"

    @property
    def name(self) -> str:
        """A description in words."""
        return "step by step" if self.window is None else f"jointly in a window of {self.window}"


@dataclass(frozen=True)
class Plan:
    """The setting that was chosen, and those it was chosen from.

    Attributes
    ----------
    chosen
        The chosen setting.
    others
        The others: the serial one first if a joint one was chosen, the rest in order of expected duration.
    """

    chosen: Setting
    others: tuple[Setting, ...] = ()

    def __str__(self) -> str:
        told = f"planned {self.chosen.name} ({self.chosen.seconds:.3g} s expected"
        if self.chosen.window is not None:
            told += f" for {self.chosen.rounds} rounds of calls with up to {self.chosen.max_batch} states"
        serial = [other for other in self.others if other.window is None]
        best = [*serial, *(other for other in self.others if other.window is not None)][:2]
        return told + "".join(f"; {other}" for other in best) + ")"


def step_by_step(costs: Costs, rows: int, length: int) -> Setting:
    """Return the setting of the serial solve."""
    batch = costs.best_batch(rows)
    return Setting(None, batch, length, length * costs.round(rows, batch))


def plan(
    costs: Costs,
    *,
    rows: int,
    length: int,
    rtol: float,
    eps: float,
    slack: float,
    overhead: Callable[[int], float],
    widest: int,
    estimate: Estimate = FROM_ONE_JUMP,
    slides: bool = True,
) -> Plan:
    """Choose the setting with the shortest expected duration.

    Parameters
    ----------
    costs
        The measured seconds of calls of the step.
    rows
        ``B``, the number of rows.
    length
        ``N``, the number of steps.
    rtol
        The relative tolerance of the joint solve.
    eps
        Machine epsilon of the dtype. Windows are not considered if the change that a final state may still imply is not
        well above rounding: such a window slides by only one state per round.
    slack
        The share of the tolerance within which a state may keep its value, in a window of the whole chain.
    overhead
        Returns the seconds of a round in addition to its calls, for a window of so many steps.
    widest
        The largest window, in steps, that fits into memory.
    estimate
        What the joint solver takes.
    slides
        Whether the chain can be solved in a window shorter than itself.
    """
    serial = step_by_step(costs, rows, length)
    joint = []
    for window in _windows(length, widest):
        if window < length and not slides:
            continue
        if window < length and slack * math.sqrt(window / length) * rtol <= _EPS * eps:
            continue
        rounds, evaluations = estimate.expected(length, window, rtol)
        states = rows * evaluations / rounds
        batch = costs.best_batch(states)
        joint.append(Setting(window, batch, rounds, rounds * (costs.round(states, batch) + overhead(window))))
    joint.sort(key=lambda setting: setting.seconds)
    if joint and joint[0].seconds < _SURE * serial.seconds:
        return Plan(joint[0], (serial, *joint[1:]))
    return Plan(serial, tuple(joint))


def _windows(length: int, widest: int) -> list[int]:
    narrower, window = [], _NARROWEST
    while window < min(length, widest + 1):
        narrower.append(window)
        window *= 2
    return [*narrower, length] if length <= widest else narrower
