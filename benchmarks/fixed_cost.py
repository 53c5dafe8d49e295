"""What a call of ``solve`` costs beside the user's function, on problems so small that nothing else counts.

    python benchmarks/fixed_cost.py

The scalar problem is ``solve(math.cos, 1.0)``, beside a Python loop that does the same evaluations. The chain is DDIM
in 25 steps on a mixture with an exact score (3 rows of 12 unknowns, float64), beside a Python loop over its steps with
the same network and schedule. The joint solver is the one that ``auto`` plans with, to a relative error of 1e-3.

Every number is a median of many solves, which take turns with the loop in one process, in CPU time. The garbage
collector is off and torch has one thread. The ratio is the median of the ratios of neighbours, so that a shared machine
disturbs both alike.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import fixedpoint
from fixedpoint.chains import ChainProblem
from fixedpoint.chains.joint.solver import joint
from fixedpoint_diffusion import DDIMSchedule, ddim_problem
from fixedpoint_diffusion.models.choices import MixtureModel

STEPS, ROWS = 25, 3
RTOL = 1e-3
MIXTURE = MixtureModel(components=4, dimension=12, variance_low=0.02, variance_high=0.08, separation=5.0, seed=1)


@dataclass(frozen=True)
class Case:
    """A solve, the plain loop beside it, and the limit: of milliseconds, or of the ratio to the loop."""

    name: str
    solve: Callable[[], Any]
    plain: Callable[[], Any]
    limit: float
    is_ratio: bool


@dataclass(frozen=True)
class Cost:
    """Median milliseconds of a solve and of the loop, and the median of their ratios."""

    solve: float
    plain: float
    ratio: float


class Sampler:
    """The chain, and the loop that a user would write for it."""

    def __init__(self) -> None:
        schedule = DDIMSchedule(clip_sample=False)
        self.network = MIXTURE.denoiser(schedule)
        self.start = torch.randn(ROWS, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.timesteps = schedule.timesteps(STEPS).tolist()
        self.levels = torch.stack(schedule.signal(STEPS), dim=1).tolist()
        self.problem: ChainProblem = ddim_problem(self.network, schedule, self.start, num_inference_steps=STEPS)

    def loop(self) -> Tensor:
        """DDIM with eta 0, as Song, Meng & Ermon (2021) write it in eq. 12."""
        x, row = self.start, torch.arange(ROWS)
        with torch.no_grad():
            for timestep, (before, after) in zip(self.timesteps, self.levels, strict=True):
                noise = self.network.predict(x, torch.full((ROWS,), timestep), row)
                image = (x - math.sqrt(1 - before) * noise) / math.sqrt(before)
                x = math.sqrt(after) * image + math.sqrt(1 - after) * noise
        return x

    def serial(self) -> fixedpoint.Solution:
        """The same by the library."""
        return fixedpoint.solve(self.problem, solver="serial")

    def joint(self) -> fixedpoint.Solution:
        """All steps as one fixed point."""
        return fixedpoint.solve(self.problem, solver=joint(self.problem), rtol=RTOL)


def cosine(solver: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The solve of ``z = cos z``, and a loop with as many evaluations."""
    rounds = fixedpoint.solve(math.cos, 1.0, solver=solver).counts.rounds

    def plain() -> float:
        z = 1.0
        for _ in range(rounds):
            z = math.cos(z)
        return z

    return lambda: fixedpoint.solve(math.cos, 1.0, solver=solver), plain


def cases() -> list[Case]:
    """All of the table."""
    sampler = Sampler()
    expected = sampler.loop()
    for solve, tolerance in ((sampler.serial, 1e-10), (sampler.joint, RTOL)):
        found = solve()
        assert found.converged.all(), found.message
        torch.testing.assert_close(found.z[:, -1], expected, rtol=0.0, atol=tolerance * float(expected.norm()))
    return [
        Case("cos, auto", *cosine("auto"), limit=3.5, is_ratio=False),
        Case("cos, picard", *cosine("picard"), limit=8.0, is_ratio=False),
        Case("chain, serial", sampler.serial, sampler.loop, limit=1.2, is_ratio=True),
        Case("chain, joint", sampler.joint, sampler.loop, limit=1.8, is_ratio=True),
    ]


def measured(case: Case, repeats: int) -> Cost:
    """The costs of a case, its solve and its loop in turns."""
    pairs = []
    for _ in range(repeats):
        gc.collect(0)
        gc.disable()
        try:
            pairs.append((_seconds(case.solve), _seconds(case.plain)))
        finally:
            gc.enable()
    ours, theirs = (1e3 * statistics.median(part) for part in zip(*pairs, strict=True))
    return Cost(ours, theirs, statistics.median(one / other for one, other in pairs))


def _seconds(call: Callable[[], Any]) -> float:
    began = time.thread_time()
    call()
    return time.thread_time() - began


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Solves of every kind.")] = 101,
    only: Annotated[str, typer.Option(help="Cases whose name contains this.")] = "",
) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| solve | ms | plain loop, ms | ratio | limit | within |\n|:--|--:|--:|--:|--:|:--|")
    for case in cases():
        if only not in case.name:
            continue
        measured(case, 3)  # what is made at the first call does not count
        cost = measured(case, repeats)
        value = cost.ratio if case.is_ratio else cost.solve
        limit = f"{case.limit:g} times" if case.is_ratio else f"{case.limit:g} ms"
        within = "yes" if value <= case.limit else "no"
        print(
            f"| {case.name} | {cost.solve:.2f} | {cost.plain:.3g} | {cost.ratio:.2f} | {limit} | {within} |", flush=True
        )


if __name__ == "__main__":
    typer.run(main)
