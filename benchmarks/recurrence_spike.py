"""Do windows and slack work for samplers with memory? A joint solve in the local form of their recurrence.

    python benchmarks/recurrence_spike.py [--steps 20 --steps 50] [--images 4]

A sampler with memory makes its next input of the last ``q`` pairs of input and network output,

    u_{j+1} = sum_{i<q} (a_ji u_{j-i} + b_ji m_{j-i}),

whose coefficients are read from the scheduler's own steps (``fixedpoint_diffusion.sampler_tables``). One round
evaluates the outputs ``m_j`` at the inputs as they are and carries the defects ``r`` of this equation along the chain,

    d_{j+1} = r_{j+1} + sum_{i<q} (a_ji + b_ji S_{j-i}) d_{j-i},

with ``S_j`` a model of the slope of the network's output: that for Gaussian data of variance 1, which is 0 for
v-prediction, and one secant from the last two inputs of that very evaluation. Inputs from the front on with
``||d|| <= slack * tolerance`` are final, later ones keep their value; what final inputs would still have moved is
carried on (``carry``). The network is the bundled one, eta 0, float32.

A line per setting: the rounds after which the sample is within 1e-1 / 1e-2 / 1e-3 of the serial one's, then what it
took until the largest ``||d|| / ||u||`` of the chain was at most 1e-3: rounds, evaluations per step of the chain, the
true error of the sample, and the error that was claimed. The worst image counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import diffusers
import torch
import typer
from torch import Tensor

from fixedpoint_diffusion import Denoiser, FashionMNISTModel, SamplerTables, draw_noise, row_seeds, sampler_tables

RTOL = 1e-3
LIMITS = (1e-1, 1e-2, 1e-3)
# Which part of the chain the window is, slack, and whether changes that are left are carried on.
SETTINGS = ((1, 0.0, True), (1, 0.02, True), (2, 0.02, True), (4, 0.02, True), (4, 0.02, False))
Predict = Callable[[Tensor, Tensor], Tensor]  # images and the numbers of their evaluations to raw outputs

BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "v_prediction"}
SAMPLERS: dict[str, Callable[[], object]] = {
    "DDIM": lambda: diffusers.DDIMScheduler(**BETAS, clip_sample=False),
    "DPM-Solver++ 2M": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS, solver_order=2),
    "DPM-Solver++ 3M": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS, solver_order=3),
    "UniPC, order 2": lambda: diffusers.UniPCMultistepScheduler(**BETAS, solver_order=2),
    "UniPC, order 3": lambda: diffusers.UniPCMultistepScheduler(**BETAS, solver_order=3),
}


@dataclass
class Outcome:
    """What one image took."""

    rounds: int = 0
    evaluations: int = 0
    claimed: float = float("inf")
    error: float = float("inf")
    reached: dict[float, int] = field(default_factory=dict)


class Chain:
    """The joint solve of one image. ``u[0]`` is the start, ``u[K]`` the sample."""

    def __init__(self, tables: SamplerTables, predict: Predict, x: Tensor, window: int, slack: float, carry: bool):
        assert tables.local is not None
        self.a, self.b = tables.local.inputs.tolist(), tables.local.outputs.tolist()
        self.q, self.K = len(self.a[0]), tables.evaluations
        self.predict, self.window, self.carry = predict, min(window, self.K), carry
        self.slack = slack * (self.window / self.K) ** 0.5
        zero = torch.zeros_like(x)
        self.u = [float(tables.starts[0]) * x] + [x.clone() for _ in range(self.K)]
        self.m: list[Tensor] = [zero] * self.K
        self.known = [False] * self.K  # outputs at the inputs as they are
        self.seen: list[tuple[Tensor, Tensor] | None] = [None] * self.K
        self.secants: list[tuple[Tensor, Tensor] | None] = [None] * self.K
        # The changes still implied at final inputs, and those of their outputs.
        self.du, self.dm = [zero] * (self.K + 1), [zero] * self.K
        self.front, self.left = 0, 0.0

    def slope(self, j: int, change: Tensor) -> Tensor:
        secant = self.secants[j]
        return torch.zeros_like(change) if secant is None else secant[1] * (secant[0].flatten() @ change.flatten())

    def evaluate(self, last: int) -> int:
        numbers = [j for j in range(self.front, last) if not self.known[j]]
        if numbers:
            found = self.predict(torch.stack([self.u[j] for j in numbers]), torch.tensor(numbers))
            for j, m in zip(numbers, found, strict=True):
                if (before := self.seen[j]) is not None:
                    move = self.u[j] - before[0]
                    length = float(move.norm())
                    if length > 64 * torch.finfo(m.dtype).eps * float(self.u[j].norm()):
                        self.secants[j] = (move / length, (m - before[1]) / length)
                self.m[j], self.seen[j], self.known[j] = m, (self.u[j].clone(), m), True
        return len(numbers)

    def combined(self, j: int, inputs: list[Tensor], outputs: list[Tensor]) -> Tensor:
        """The local form: ``u_{j+1}`` from inputs and outputs."""
        terms = [
            factor * values[j - i]
            for i in range(min(self.q, j + 1))
            for factor, values in ((self.a[j][i], inputs), (self.b[j][i], outputs))
            if factor != 0.0
        ]
        return torch.stack(terms).sum(dim=0)

    def solve(self, exact: Tensor) -> Outcome:
        found, zero = Outcome(), torch.zeros_like(exact)
        while found.claimed > RTOL and self.front < self.K:
            last = min(self.front + self.window, self.K)
            found.evaluations += self.evaluate(last)
            found.rounds += 1
            du, dm = (list(part) if self.carry else [zero] * len(part) for part in (self.du, self.dm))
            for j in range(self.front, last):
                dm[j] = self.slope(j, du[j])
                value = self.combined(j, self.u, self.m)
                du[j + 1] = value - self.u[j + 1] + self.combined(j, du, dm)
            errors = [float(du[j].norm() / self.u[j].norm()) for j in range(self.front + 1, last + 1)]
            if last == self.K:
                found.claimed = max([self.left, *errors])
                error = float((self.u[self.K] + du[self.K] - exact).norm() / exact.norm())
                for limit in LIMITS:
                    if error <= limit:
                        found.reached.setdefault(limit, found.rounds)
                if found.claimed <= RTOL:
                    break
            self.move(du, dm, errors, last)
            if self.front == self.K:  # all inputs are final, the sample too
                found.claimed = self.left
        found.error = float((self.u[self.K] - exact).norm() / exact.norm())
        return found

    def move(self, du: list[Tensor], dm: list[Tensor], errors: list[float], last: int) -> None:
        final = self.front
        while final < last and errors[final - self.front] <= self.slack * RTOL:
            self.left = max(self.left, errors[final - self.front])
            final += 1
            self.du[final] = du[final]
            if final < self.K:
                self.dm[final] = dm[final] if final < last else self.slope(final, du[final])
        # The next input follows exactly from final pairs, and is final, too; others move unless they hardly would.
        for j in range(final + 1, last + 1):
            if j == final + 1 or errors[j - self.front - 1] > self.slack * RTOL:
                self.u[j] = self.u[j] + du[j]
                if j < self.K:
                    self.known[j] = False
        self.front = min(final + 1, last)
        for j in range(last + 1, min(self.front + self.window, self.K) + 1):
            self.u[j] = self.u[last].clone()  # what comes into the window starts from the state before it


def serial(tables: SamplerTables, predict: Predict, x: Tensor) -> Tensor:
    """The sample of the sampler itself, from the dense tables."""
    outputs: list[Tensor] = []
    for j in range(tables.evaluations + 1):
        row = tables.weights[j].tolist()
        u = float(tables.starts[j]) * x + sum(row[i] * outputs[i] for i in range(j) if row[i] != 0.0)
        if j < tables.evaluations:
            outputs.append(predict(u.unsqueeze(0), torch.tensor([j]))[0])
    return u


def main(
    steps: Annotated[list[int] | None, typer.Option(help="N, again for several; default: 20 50.")] = None,
    images: Annotated[int, typer.Option(help="Images; the worst one counts.")] = 4,
) -> None:
    """Print a line for every sampler, number of steps, window and slack."""
    model = FashionMNISTModel()
    schedule = model.own_schedule
    assert schedule is not None
    denoiser = model.denoiser(schedule, images)
    noise = draw_noise(seeds=row_seeds(0, images), shape=model.event_shape)[0]
    print("| sampler | N | q | window | slack | carry | 1e-1 / 1e-2 / 1e-3 | rounds | evaluations | error | claimed |")
    print("|:--|--:|--:|--:|--:|:--|--:|--:|--:|--:|--:|")
    for name, make in SAMPLERS.items():
        for n in steps or [20, 50]:
            tables = sampler_tables(make(), n)
            rows = [predictor(denoiser, tables, row) for row in range(images)]
            exact = [serial(tables, predict, x) for predict, x in zip(rows, noise, strict=True)]
            for part, slack, carry in SETTINGS:
                window = -(-tables.evaluations // part)
                found = [
                    Chain(tables, predict, x, window, slack, carry).solve(sample)
                    for predict, x, sample in zip(rows, noise, exact, strict=True)
                ]
                print(f"| {name} | {n} | {tables.history} | {window} | {slack:g} | {'yes' if carry else 'no'} ", end="")
                print(worst(found, tables.evaluations), flush=True)


def predictor(denoiser: Denoiser, tables: SamplerTables, row: int) -> Predict:
    """The model's raw outputs for one row."""

    def predict(x: Tensor, number: Tensor) -> Tensor:
        with torch.no_grad():
            return denoiser.predict(x, tables.timesteps[number], torch.full((len(x),), row))

    return predict


def worst(found: list[Outcome], evaluations: int) -> str:
    """The other cells of a line."""
    reached = (max(each.reached.get(limit, 10**6) for each in found) for limit in LIMITS)
    work = max(each.evaluations for each in found) / evaluations
    error, claimed = (max(getattr(each, name) for each in found) for name in ("error", "claimed"))
    rounds = max(each.rounds for each in found)
    return f"| {' / '.join(map(str, reached))} | {rounds} | {work:.1f} K | {error:.1e} | {claimed:.1e} |"


if __name__ == "__main__":
    typer.run(main)
