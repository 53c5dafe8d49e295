"""A training step of five equilibrium models, with the layers of this library and of torchdeq.

    python benchmarks/training.py
    python benchmarks/training.py --only transformer --method anderson --adjoint same

One process, one thread, float32. Both layers have the same cell, the same parameters, the same inputs and start, the
implicit gradient, and the same relative tolerance and limit of 50 rounds in the forward and the adjoint solve. They
take turns step by step, and the ratio is the median over pairs of steps, so that noise of the machine cancels. A step
is a forward pass, a loss and a backward pass. torchdeq solves the adjoint equation with the solver of the forward pass.
This library does so with ``--adjoint same``; with ``--adjoint default`` it takes its own default.

The errors of the fixed point and of the gradient of the parameters are relative, and largest over the rows and over the
parameters. They are measured against a solve in double precision to 1e-12. Requires torchdeq 0.1.0 and networkx.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import networkx
import torch
import torchdeq
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torchdeq.solver import get_solver, register_solver

import fixedpoint
from fixedpoint.gradients import implicit
from fixedpoint.layers import EquilibriumLayer
from fixedpoint_deq.model import Cell

LIMIT = 50
METHODS = {"anderson": "anderson", "broyden": "broyden", "plain": "fixed_point_iter"}
OURS = {"anderson": "anderson", "broyden": "broyden", "plain": "picard"}


class Block(nn.Module):
    """A transformer block of one head on ``n`` tokens, with its input added before the normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The next tokens, shape ``(B, n, width)``."""
        q, k, v = self.mixed(z).chunk(3, dim=-1)
        z = self.norm_1(z + x + 0.5 * self.out(scaled_dot_product_attention(q, k, v)))
        value: Tensor = self.norm_2(x + z + 0.5 * self.down(torch.relu(self.up(z))))
        return value


class Sine(nn.Module):
    """``sin(W z + x)`` with a ``W`` of given 2-norm: an implicit representation, one row for each coordinate."""

    def __init__(self, width: int, gain: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        with torch.no_grad():
            self.linear.weight.mul_(gain / torch.linalg.matrix_norm(self.linear.weight, 2))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The next state, shape ``(B, width)``."""
        return torch.sin(self.linear(z) + x)


class Graph(nn.Module):
    """``tanh(A z W + x)`` on the nodes of Zachary's karate club, normalised as in graph convolutions."""

    adjacency: Tensor

    def __init__(self, width: int, gain: float) -> None:
        super().__init__()
        edges = torch.from_numpy(networkx.to_numpy_array(networkx.karate_club_graph(), weight=None)).float()
        edges = edges + torch.eye(len(edges))
        degree = edges.sum(dim=1).rsqrt()
        self.register_buffer("adjacency", degree[:, None] * edges * degree)
        self.linear = nn.Linear(width, width, bias=False)
        with torch.no_grad():
            self.linear.weight.mul_(gain / torch.linalg.matrix_norm(self.linear.weight, 2))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The next state, shape ``(34, width)`` behind any further dimensions."""
        return torch.tanh(self.adjacency @ self.linear(z) + x)


@dataclass
class Case:
    """A cell with its input, and a linear loss."""

    cell: nn.Module
    x: Tensor
    weight: Tensor

    @staticmethod
    def of(cell: nn.Module, *shape: int) -> Case:
        """The case of inputs of a shape."""
        return Case(cell, torch.randn(*shape), torch.randn(*shape) / math.prod(shape))

    def loss(self, z: Tensor) -> Tensor:
        """The loss of a fixed point."""
        return (self.weight.to(z) * z.square()).sum()


def _digits(gain: float) -> Case:
    cell = Cell(24)
    with torch.no_grad():
        for conv in (cell.conv_1, cell.conv_2):
            conv.weight.mul_(10 * gain)
    return Case.of(cell, 64, 24, 8, 8)


CASES: dict[str, Callable[[], Case]] = {
    "digits": lambda: _digits(0.3),
    "transformer": lambda: Case.of(Block(48), 16, 32, 48),
    "representation": lambda: Case.of(Sine(32, 0.9), 1024, 32),
    "graph": lambda: Case.of(Graph(16, 0.9), 1, 34, 16),
    "many": lambda: Case.of(Sine(8, 0.8), 65536, 8),
}


class Clock:
    """Seconds within some calls, and their number."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **keywords: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*args, **keywords)
            finally:
                self.seconds += time.perf_counter() - begun
                self.calls += 1

        return timed


@dataclass
class Step:
    """The milliseconds of a step and of its parts."""

    forward: float
    adjoint: float
    whole: float


class Model:
    """A case in an equilibrium layer."""

    def __init__(self, case: Case) -> None:
        self.case = Case(copy.deepcopy(case.cell), case.x, case.weight)
        self.adjoint = Clock()
        self.products = 0

    def layer(self, x: Tensor) -> Tensor:
        """The fixed point."""
        raise NotImplementedError

    def step(self) -> Step:
        """One step."""
        self.case.cell.zero_grad(set_to_none=True)
        self.adjoint.seconds = 0.0
        begun = time.perf_counter()
        z = self.layer(self.case.x)
        middle = time.perf_counter()
        self.case.loss(z).backward()
        end = time.perf_counter()
        self.z = z.detach()
        return Step(1e3 * (middle - begun), 1e3 * self.adjoint.seconds, 1e3 * (end - begun))

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients of the parameters."""
        return [each.grad for each in self.case.cell.parameters() if each.grad is not None]


class Theirs(Model):
    """torchdeq's layer."""

    def __init__(self, case: Case, method: str, rtol: float) -> None:
        super().__init__(case)
        name = METHODS[method]
        register_solver("timed", self.adjoint.around(get_solver(name)))
        kind = {"f_stop_mode": "rel", "b_stop_mode": "rel", "f_tol": rtol, "b_tol": rtol}
        self.deq = torchdeq.get_deq(
            f_solver=name, b_solver="timed", f_max_iter=LIMIT, b_max_iter=LIMIT, ift=True, **kind
        )

    def layer(self, x: Tensor) -> Tensor:
        found: Tensor = self.deq(lambda z: self.case.cell(z, x), torch.zeros_like(x))[0][-1]
        return found


class Ours(Model):
    """The layer of this library."""

    def __init__(self, case: Case, method: str, rtol: float, adjoint: Literal["default", "same"]) -> None:
        super().__init__(case)
        rule = fixedpoint.Termination(rtol=rtol, max_rounds=LIMIT)
        gradient = fixedpoint.Implicit() if adjoint == "default" else {"name": "implicit", "solver": OURS[method]}
        self.equilibrium = EquilibriumLayer(
            self.case.cell, solver=OURS[method], gradient=gradient, training=rule, on_failure="ignore"
        )

    def layer(self, x: Tensor) -> Tensor:
        found: Tensor = self.equilibrium(x)
        return found

    def step(self) -> Step:
        with _timed_adjoint(self.adjoint):
            return super().step()


@contextlib.contextmanager
def _timed_adjoint(clock: Clock) -> Iterator[None]:
    whole = implicit.solve_adjoint
    implicit.solve_adjoint = clock.around(whole)  # type: ignore[assignment]  # for the time of a step
    try:
        yield
    finally:
        implicit.solve_adjoint = whole


class Exact(Model):
    """A layer that is solved in double precision."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.case.cell.double()
        self.case.x = case.x.double()
        rule = fixedpoint.Termination(rtol=1e-12, max_rounds=1000)
        self.equilibrium = EquilibriumLayer(self.case.cell, solver="auto", training=rule, on_failure="raise")

    def layer(self, x: Tensor) -> Tensor:
        found: Tensor = self.equilibrium(x)
        return found


def error(found: Tensor, exact: Tensor) -> float:
    """The largest relative error of a row."""
    gap = (found.double() - exact).flatten(1) if exact.dim() > 1 else (found.double() - exact).unsqueeze(0)
    size = exact.flatten(1) if exact.dim() > 1 else exact.unsqueeze(0)
    return float((gap.norm(dim=1) / size.norm(dim=1)).max())


def gradient_error(model: Model, exact: Model) -> float:
    """The relative error of the gradient of all parameters."""
    pairs = list(zip(model.gradients, exact.gradients, strict=True))
    gap = math.sqrt(sum(float((one.double() - other).square().sum()) for one, other in pairs))
    return gap / math.sqrt(sum(float(other.square().sum()) for _, other in pairs))


def measured(case: Case, method: str, rtol: float, adjoint: Any, seconds: float) -> dict[str, Any]:
    """Time both layers in turns for some seconds."""
    pair: list[Model] = [Ours(case, method, rtol, adjoint), Theirs(case, method, rtol)]
    exact = Exact(case)
    exact.step()
    steps: list[list[Step]] = [[], []]
    end = None
    gc.collect()
    gc.disable()
    try:
        while end is None or time.perf_counter() < end or len(steps[0]) < 5:
            taken = [model.step() for model in pair]
            if end is None:  # the first pair warms up
                end = time.perf_counter() + seconds
                continue
            for several, step in zip(steps, taken, strict=True):
                several.append(step)
    finally:
        gc.enable()
    found: dict[str, Any] = {}
    for name, model, several in zip(("ours", "theirs"), pair, steps, strict=True):
        found[name] = {
            "ms": statistics.median(step.whole for step in several),
            "forward": statistics.median(step.forward for step in several),
            "adjoint": statistics.median(step.adjoint for step in several),
            "rest": statistics.median(step.whole - step.forward - step.adjoint for step in several),
            "error": error(model.z, exact.z),
            "gradient": gradient_error(model, exact),
        }
    for part in ("whole", "forward", "adjoint"):
        ratios = [getattr(one, part) / getattr(other, part) for one, other in zip(*steps, strict=True)]
        found["ratio" if part == "whole" else f"{part}_ratio"] = statistics.median(ratios)
    means = pair[0].equilibrium.statistics["training"].means()  # type: ignore[attr-defined]
    found |= {"rounds": means["rounds"], "products": means["products"], "pairs": len(steps[0])}
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--method", choices=list(METHODS))
    parser.add_argument("--adjoint", choices=["default", "same"], default="default")
    parser.add_argument("--rtol", type=float, default=1e-3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | solver | ms | of torchdeq | forward | adjoint | rest | rounds, products | error of z | of slope |")
    print("|:--|:--|--:|--:|--:|--:|--:|--:|--:|--:|")
    ratios = []
    for name, make in CASES.items():
        if asked.only not in (None, name):
            continue
        torch.manual_seed(0)
        case = make()
        for method in METHODS:
            if asked.method not in (None, method):
                continue
            found = measured(case, method, asked.rtol, asked.adjoint, asked.seconds)
            ratios.append(found["ratio"])
            if asked.json:
                print(json.dumps({"model": name, "solver": method, **found}), flush=True)
                continue
            one, other = found["ours"], found["theirs"]
            parts = " | ".join(f"{one[key]:.2f} / {other[key]:.2f}" for key in ("forward", "adjoint", "rest"))
            errors = " | ".join(f"{one[key]:.0e} / {other[key]:.0e}" for key in ("error", "gradient"))
            print(
                f"| {name} | {method} | {one['ms']:.2f} / {other['ms']:.2f} | {found['ratio']:.2f} | {parts} | "
                f"{found['rounds']:.0f}, {found['products']:.1f} | {errors} |",
                flush=True,
            )
    print(f"geometric mean of the ratios: {statistics.geometric_mean(ratios):.2f}")


if __name__ == "__main__":
    main()
