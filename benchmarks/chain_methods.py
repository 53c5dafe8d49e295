"""The methods that ``chain_rounds.py`` compares, each with its last states of a chain, round by round.

Published
    deq-ddim      the method of Pokle, Geng & Kolter (2022), as published (``fixedpoint.DEQDDIM``)
    paradigms     ParaDiGMS over the whole chain, tolerance 0.1 as released
    paradigms-64  the same in a window of 64 steps, for chains of 100 steps and more
    parataa       ParaTAA with the whole chain as window and order, memory 2, tolerance 1e-3 as released
    parataa-0     the same with memory 3 and tolerance 0, so that it stops only when the image is exact
    srds          SRDS (``fixedpoint.Parareal``), measured after every fine sweep

Plain rounds of this library, from ``x_T`` everywhere
    zero          Jacobi
    coefficient   the map of DEQ-DDIM
    identity      the map of ParaDiGMS

Accelerated rounds, with the identity preconditioner
    anderson      triangular Anderson acceleration of memory 2 (what ``auto`` chooses for a chain)
    secant        block secants of memory 1
    jump+...      the same from one jump of ``x_T`` to every state instead of ``x_T`` everywhere
    nested        ``anderson`` from the result of two rounds on 10 of the steps and two on 50, started by one jump

The methods above evaluate every step in every round. The following ones do not: they have a tolerance of 1e-3, leave
states unchanged that would change by less than a share of it (``slack``), and stop when they report convergence.
    jump-0.02     ``jump+anderson``, slack 0.02
    jump-0.3      ``jump+anderson``, slack 0.3
    nested-0.02   ``nested``, slack 0.02
    nested-0.3    ``nested``, slack 0.3
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
from baselines import Round, paradigms, parataa
from recorded import apart, jacobi_rounds, record
from torch import Tensor

import fixedpoint
from fixedpoint.chains import BlockSecant, ChainProblem, Coefficient, NestedStart, OneJumpStart, Zero
from fixedpoint_diffusion import DDIMChain

__all__ = ["KINDS", "METHODS", "TOLERANCES", "History", "Method", "Outcome", "Seen"]

TOLERANCES = (1e-1, 1e-2, 1e-3)
# Number of rounds that an image must stay within the error before a method that does not stop by itself is ended.
MORE = 2
# For chains of more steps, the rounds of the preconditioner zero are counted without running them.
CARRIED_OUT = 200


class Seen(NamedTuple):
    """One image after a round: the rounds and evaluations so far, and the distance to the serial chain's image."""

    rounds: int
    evaluations: int
    error: float


History = list[Seen]


class Outcome(NamedTuple):
    """The history of every image, and whether the method stopped by itself."""

    histories: list[History]
    ended: bool


class Method(Protocol):
    """A method that computes the images of a chain; its ``repr`` contains all of its options."""

    def __call__(self, problem: ChainProblem, target: Tensor) -> Outcome: ...


@dataclass(frozen=True)
class Joint:
    """A solver of this library, for all images at once; with ``rtol`` until it reports convergence.

    No more than ``rounds_beyond + N`` rounds.
    """

    solver: fixedpoint.Solver
    rtol: float = 0.0
    rounds_beyond: int = 1

    def __call__(self, problem: ChainProblem, target: Tensor) -> Outcome:
        limit = problem.length + self.rounds_beyond
        enough = 0.0 if self.rtol else TOLERANCES[-1]
        seen = record(problem, target, self.solver, limit, enough, more=MORE, rtol=self.rtol)
        errors = torch.stack(seen.errors).T.tolist()
        spent = torch.tensor([row.tolist() for row in seen.spent]).T.tolist()
        histories = [list(map(Seen, seen.rounds, n, error)) for n, error in zip(spent, errors, strict=True)]
        return Outcome(histories, bool(self.rtol))


@dataclass(frozen=True)
class Jacobi:
    """Plain rounds of the preconditioner zero; for long chains they are only counted."""

    solver: fixedpoint.Solver = field(default_factory=lambda: fixedpoint.ChainSolver(preconditioner=Zero()))

    def __call__(self, problem: ChainProblem, target: Tensor) -> Outcome:
        if problem.length <= CARRIED_OUT:
            return Joint(self.solver)(problem, target)
        found = {tolerance: jacobi_rounds(problem, target, tolerance) for tolerance in TOLERANCES}
        # Round k does not evaluate the k - 1 steps whose states are final.
        known = [Seen(k, k * problem.length - k * (k - 1) // 2, error) for error, k in found.items()]
        return Outcome([known], ended=False)


@dataclass(frozen=True)
class OneByOne:
    """A published method written for one image, run until it stops or the image has stayed within the error."""

    name: str
    options: Mapping[str, object] = field(default_factory=dict)

    def __call__(self, problem: ChainProblem, target: Tensor) -> Outcome:
        method: Callable[..., Iterator[Round]] = {"paradigms": paradigms, "parataa": parataa}[self.name]
        assert isinstance(problem.chain, DDIMChain)
        exact = self.options.get("tolerance") == 0.0
        histories = []
        for row, x0 in enumerate(problem.x0):
            history: History = []
            for count, now in enumerate(method(problem.chain, x0, row, **self.options), start=1):
                error = float(apart(now.last.unsqueeze(0), target[row : row + 1]))
                history.append(Seen(count, now.evaluations, error))
                near = [seen.error <= TOLERANCES[-1] for seen in history[-1 - MORE :]]
                if exact and len(near) > MORE and all(near):
                    break
            histories.append(history)
        return Outcome(histories, ended=not exact)


@dataclass(frozen=True)
class OnLong:
    """A method for chains of a number of steps or more; it is not run on shorter ones."""

    steps: int
    method: Method

    def __call__(self, problem: ChainProblem, target: Tensor) -> Outcome:
        return self.method(problem, target) if problem.length >= self.steps else Outcome([], ended=False)


ANDERSON = fixedpoint.Anderson(memory=2)
SECANT = BlockSecant()
JUMP = OneJumpStart()
NESTED = NestedStart((10, 50), 2, JUMP, ANDERSON)

PUBLISHED: dict[str, Method] = {
    "deq-ddim": Joint(fixedpoint.DEQDDIM(), rounds_beyond=50),  # it is not bounded by N rounds
    "paradigms": OneByOne("paradigms"),
    "paradigms-64": OnLong(100, OneByOne("paradigms", {"window": 64})),
    "parataa": OneByOne("parataa"),
    "parataa-0": OneByOne("parataa", {"memory": 3, "tolerance": 0.0}),
    "srds": Joint(fixedpoint.Parareal(), rounds_beyond=10_000),  # it also counts coarse steps
}
PLAIN: dict[str, Method] = {
    "zero": Jacobi(),
    "coefficient": Joint(fixedpoint.ChainSolver(preconditioner=Coefficient())),
    "identity": Joint(fixedpoint.ChainSolver()),
}
FULL: dict[str, fixedpoint.ChainSolver] = {
    "anderson": fixedpoint.ChainSolver(accelerator=ANDERSON),
    "secant": fixedpoint.ChainSolver(accelerator=SECANT),
    "jump+anderson": fixedpoint.ChainSolver(accelerator=ANDERSON, start=JUMP),
    "jump+secant": fixedpoint.ChainSolver(accelerator=SECANT, start=JUMP),
    "nested": fixedpoint.ChainSolver(accelerator=ANDERSON, start=NESTED),
}
SAVING: dict[str, Method] = {
    f"{name}-{slack}": Joint(replace(FULL[full], slack=slack), rtol=TOLERANCES[-1])
    for name, full in (("jump", "jump+anderson"), ("nested", "nested"))
    for slack in (0.02, 0.3)
}

# The kind of each method, for the verdict: published, or of this library.
KINDS: dict[str, dict[str, Method]] = {
    "published": PUBLISHED,
    "plain": PLAIN,
    "accelerated": {name: Joint(solver) for name, solver in FULL.items()},
    "saving": SAVING,
}
METHODS: dict[str, Method] = {name: method for methods in KINDS.values() for name, method in methods.items()}
