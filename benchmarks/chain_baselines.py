"""Parallel samplers on one chain, published ones and this library's: rounds and evaluations to a given error.

    python benchmarks/chain_baselines.py [--steps 25 --steps 50] [--eta 1]

The bundled Fashion-MNIST model. Prints, for the worst of the images, after how many sequential rounds the image is,
and stays, within a relative error of 1e-1, 1e-2 and 1e-3 of the serial chain's, and how many evaluations of the model
an image had taken by then. A dash: the method ended before, by its own tolerance or by the limit of N rounds.

    identity    plain rounds of the identity preconditioner
    anderson    the same, triangular Anderson acceleration of memory 2 (what ``auto`` is on a chain)
    secant      the same, block secants of memory 1
    jump+...    these from one jump of ``x_T`` to every state instead of ``x_T`` everywhere
    nested+...  from five rounds on a quarter of the steps (at most 50), begun by one jump
    authors'    DEQ-DDIM as published (``deq-ddim``)
    paradigms   ParaDiGMS, whole chain as the window, tolerance 0.1 as released
    parataa     ParaTAA, whole chain as window and order, memory 2, tolerance 1e-3 as released
    parataa-0   the same with memory 3 and tolerance 0: never content before the image is exact
    srds        ``parareal``, read after every fine sweep

Rounds are counts and hardly depend on the machine.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import typer
from baselines import paradigms, parataa
from recorded import EnoughError, record, serial
from torch import Tensor

import fixedpoint
from fixedpoint.chains.chain import ChainProblem
from fixedpoint.chains.secant import BlockSecant
from fixedpoint.chains.start import NestedStart, OneJumpStart
from fixedpoint.core.loop import Progress
from fixedpoint.core.problem import Measure
from fixedpoint_diffusion import DDIMChain
from fixedpoint_diffusion.models import FashionMNISTModel
from fixedpoint_diffusion.task import DDIMSampling

TOLERANCES = (1e-1, 1e-2, 1e-3)


@dataclass(frozen=True)
class Seen:
    """One image as a method had it: after so many rounds and evaluations, so far from the serial chain's."""

    rounds: int
    evaluations: int
    error: float


History = list[Seen]


def apart(image: Tensor, target: Tensor) -> float:
    """Relative distance."""
    return float((image - target).double().norm() / target.double().norm())


def by_solver(problem: ChainProblem, target: Tensor, solver: fixedpoint.Solver) -> list[History]:
    """A joint solver, which evaluates the whole chain in a round; what its start costs comes first."""
    chain = record(problem, target, solver, problem.length, enough=TOLERANCES[-1])
    errors = torch.stack(chain.errors).T.tolist()
    return [
        [Seen(k, int(n.max()), error) for k, n, error in zip(chain.rounds, chain.spent, row, strict=True)]
        for row in errors
    ]


def nested(problem: ChainProblem, target: Tensor, accelerator: fixedpoint.StepSolver) -> list[History]:
    start = NestedStart(min(problem.length // 4, 50), 5, OneJumpStart(), accelerator)
    return by_solver(problem, target, fixedpoint.ChainSolver(accelerator=accelerator, start=start))


def by_function(problem: ChainProblem, target: Tensor, method: Callable[..., object]) -> list[History]:
    """One of the plain functions, row by row."""
    assert isinstance(problem.chain, DDIMChain)
    histories = []
    for row, x0 in enumerate(problem.x0):
        history: History = []
        for count, now in enumerate(method(problem.chain, x0, row), start=1):
            history.append(Seen(count, now.evaluations, apart(now.last, target[row])))
            if history[-1].error <= TOLERANCES[-1]:
                break
        histories.append(history)
    return histories


class SweptChain(ChainProblem):
    """Keeps the result of every trajectory that is judged."""

    last: Tensor

    def measure(self, z: Tensor, fz: Tensor, residual: Tensor) -> Measure:
        self.last = fz.unflatten(1, (self.length, -1))[:, -1].clone()
        return super().measure(z, fz, residual)


def by_parareal(problem: ChainProblem, target: Tensor) -> list[History]:
    """The rounds and evaluations of its sweeps are the same for all rows, none of which is let go."""
    chain = SweptChain(problem.chain, problem.x0, max_batch=problem.max_batch)
    histories: list[History] = [[] for _ in target]

    def look(progress: Progress) -> None:
        errors = [apart(x, y) for x, y in zip(chain.last, target.flatten(1), strict=True)]
        for history, error in zip(histories, errors, strict=True):
            history.append(Seen(progress.round, 0, error))
        if max(errors) <= TOLERANCES[-1]:
            raise EnoughError

    with contextlib.suppress(EnoughError):
        fixedpoint.solve(chain, solver="parareal", rtol=0.0, on_round=look)
    counts = _evaluations_of_sweeps(problem, len(histories[0]))
    return [[Seen(s.rounds, n, s.error) for s, n in zip(h, counts, strict=True)] for h in histories]


def _evaluations_of_sweeps(problem: ChainProblem, sweeps: int) -> list[int]:
    """Evaluations a row after every sweep: blocks that are exact are left out."""
    blocks = next(m for m in range(1, problem.length + 1) if m * m >= problem.length)
    ends = [-(-m * problem.length // blocks) for m in range(blocks + 1)]
    spent, total = [], 0
    for sweep in range(sweeps):
        total += blocks - 1 - sweep + problem.length - ends[sweep]
        spent.append(total)
    return spent


def reached(histories: list[History], tolerance: float) -> tuple[int, int] | None:
    """Rounds and evaluations after which the worst row is, and stays, within a relative error."""
    found = []
    for history in histories:
        beyond = [place for place, seen in enumerate(history) if not seen.error <= tolerance]
        first = beyond[-1] + 1 if beyond else 0
        if first == len(history):
            return None
        found.append(history[first])
    return max(seen.rounds for seen in found), max(seen.evaluations for seen in found)


ACCELERATORS: dict[str, fixedpoint.StepSolver] = {"anderson": fixedpoint.Anderson(memory=2), "secant": BlockSecant()}
METHODS: dict[str, Callable[[ChainProblem, Tensor], list[History]]] = {
    "identity": partial(by_solver, solver=fixedpoint.ChainSolver()),
    **{name: partial(by_solver, solver=fixedpoint.ChainSolver(accelerator=a)) for name, a in ACCELERATORS.items()},
    "jump": partial(by_solver, solver=fixedpoint.ChainSolver(start=OneJumpStart())),
    **{
        f"jump+{name}": partial(by_solver, solver=fixedpoint.ChainSolver(accelerator=a, start=OneJumpStart()))
        for name, a in ACCELERATORS.items()
    },
    **{f"nested+{name}": partial(nested, accelerator=a) for name, a in ACCELERATORS.items()},
    "authors'": partial(by_solver, solver=fixedpoint.DEQDDIM()),
    "paradigms": partial(by_function, method=paradigms),
    "parataa": partial(by_function, method=parataa),
    "parataa-0": partial(by_function, method=partial(parataa, memory=3, tolerance=0.0)),
    "srds": by_parareal,
}


def main(
    steps: Annotated[list[int] | None, typer.Option(help="N, again for several; default: 25 50 100 250 1000.")] = None,
    eta: Annotated[float, typer.Option(help="0: deterministic; 1: ancestral.")] = 0.0,
    batch: Annotated[int, typer.Option(help="Images; the worst one counts.")] = 4,
    seed: int = 0,
    method: Annotated[list[str] | None, typer.Option(help="Only these; default: all.")] = None,
) -> None:
    """Print the tables."""
    names = method or list(METHODS)
    rows = []
    for length in steps or [25, 50, 100, 250, 1000]:
        task = DDIMSampling(model=FashionMNISTModel(), num_inference_steps=length, eta=eta, batch=batch)
        problem = task.problem(seed)
        assert isinstance(problem, ChainProblem)
        target = serial(problem)
        cells = []
        for name in names:
            began = time.perf_counter()
            with torch.no_grad():
                histories = METHODS[name](problem, target)
            found = [reached(histories, tolerance) for tolerance in TOLERANCES]
            cells.append(tuple(" / ".join("-" if f is None else str(f[k]) for f in found) for k in (0, 1)))
            print(
                f"N = {length}, eta = {eta:g}, {name}: rounds {cells[-1][0]}, evaluations {cells[-1][1]}; "
                f"{time.perf_counter() - began:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        rows.append((length, cells))
    for title, which in (("Rounds", 0), ("Evaluations an image", 1)):
        print(f"\n{title}, eta = {eta:g}\n\n| N | {' | '.join(names)} |\n|--:{'|--:' * len(names)}|")
        for length, cells in rows:
            print(f"| {length} | {' | '.join(cell[which] for cell in cells)} |")


if __name__ == "__main__":
    torch.set_num_threads(2)
    typer.run(main)
