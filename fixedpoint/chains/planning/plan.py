r"""Plans: how a chain is solved soonest, by what its steps cost on the machine at hand.

Step by step a chain of ``N`` steps takes ``N`` calls. A joint solve from one jump, with triangular Anderson
acceleration of memory 2, in a window of ``p`` steps, is expected to take

    R = 2.5 + 2.5 log10(1 / rtol)                 rounds in a window of the whole chain
    K = R + 1.8 (N / p - 1)                       rounds
    E = K p (0.9 - 0.42 sqrt(p / N))              evaluations a row

which is what the chains of ``benchmarks/chain_planner.py`` took, within a quarter, at tolerances of 1e-1 to 1e-4. Its
seconds follow from those of a call by the number of states. On a machine that many states keep no busier than one the
whole chain is quickest; where a batch is only some times quicker per state than a single one, a window that makes such
batches, since it wastes the fewest evaluations; where it is no quicker, step by step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fixedpoint.chains.planning.costs import Costs

__all__ = ["Plan", "Setting", "expected", "plan", "step_by_step"]

# A joint solve is only expected to take its time, step by step is known to.
_SURE = 0.9
_NARROWEST = 8
_EPS = 4.0


@dataclass(frozen=True)
class Setting:
    """One way to solve a chain.

    Attributes
    ----------
    window
        Steps in it; None: step by step.
    max_batch
        States in a call, at most.
    rounds
        Expected.
    seconds
        Expected.
    """

    window: int | None
    max_batch: int
    rounds: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.name}: {self.seconds:.3g} s"

    @property
    def name(self) -> str:
        """What it is, in words."""
        return "step by step" if self.window is None else f"jointly in a window of {self.window}"


@dataclass(frozen=True)
class Plan:
    """The setting that was chosen, and those it was chosen from.

    Attributes
    ----------
    chosen
        The setting.
    others
        The others, the one expected to be quickest first.
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


def expected(length: int, window: int, rtol: float) -> tuple[int, float]:
    """Rounds, and evaluations of a row, that a joint solve is expected to take."""
    share = window / length
    whole = 2.5 + 2.5 * math.log10(1 / rtol) if rtol > 0 else math.inf
    rounds = min(whole + 1.8 * (1 / share - 1), length + 1.0)
    return math.ceil(rounds), rounds * window * (0.9 - 0.42 * math.sqrt(share))


def step_by_step(costs: Costs, rows: int, length: int) -> Setting:
    """The serial solve."""
    batch = costs.best_batch(rows)
    return Setting(None, batch, length, length * costs.round(rows, batch))


def plan(
    costs: Costs, *, rows: int, length: int, rtol: float, eps: float, slack: float, overhead: float, widest: int
) -> Plan:
    """Choose.

    Parameters
    ----------
    costs
        Of calls of the step.
    rows
        ``B``.
    length
        ``N``.
    rtol
        The tolerance of the joint solve.
    eps
        Of the dtype: where the share of the tolerance by which states may be left is not above it, a window slides by
        a single state a round, and is no choice.
    slack
        That share, of the whole chain.
    overhead
        Seconds of a round beside its calls.
    widest
        The largest window that there is memory for.
    """
    serial = step_by_step(costs, rows, length)
    joint = []
    for window in _windows(length, widest):
        slides = window < length
        if slides and slack * math.sqrt(window / length) * rtol <= _EPS * eps:
            continue
        rounds, evaluations = expected(length, window, rtol)
        states = rows * evaluations / rounds
        batch = costs.best_batch(states)
        joint.append(Setting(window, batch, rounds, rounds * (costs.round(states, batch) + overhead)))
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
