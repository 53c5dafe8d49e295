"""A plugin for tests: a task whose answer is known, and components that cannot be used."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from fixedpoint.core.options import OptionError, Options, option
from fixedpoint.core.problem import FunctionProblem, Problem
from fixedpoint.core.solution import Solution
from fixedpoint.registry import Command, Component, hookimpl
from fixedpoint.solvers.picard import Picard
from fixedpoint.tasks.task import Context, Images, Judgement, SolveTask


@dataclass(frozen=True)
class Slope(Options):
    """What a nested choice of options looks like."""

    value: float = option(0.5, gt=-1.0, lt=1.0, help="slope of the map")


@dataclass(frozen=True)
class ToyTask(SolveTask):
    """z = slope z + b, whose solution is b / (1 - slope)."""

    slope: Slope = option(factory=Slope, help="the map")
    rows: int = option(3, ge=1, help="independent problems")
    sizes: tuple[int, ...] = option((4,), help="shape of one of them")
    pictures: bool = option(False, help="whether to draw")
    colour: bool = option(False, help="whether to draw in colour")
    error: str = option("", help="raise this")
    nan: bool = option(False, help="report a metric that is NaN")
    data: str = option("", path=True, added=True, help="a file, which is not read")
    seconds: float = option(0.0, ge=0.0, help="sleep before solving")
    seconds_a_round: float = option(0.0, ge=0.0, help="sleep in every evaluation")

    def check(self) -> None:
        if self.colour and not self.pictures:
            raise OptionError("ToyTask", "colour", "requires pictures: true")

    def problem(self, seed: int) -> Problem:
        if self.error:
            raise RuntimeError(self.error)
        time.sleep(self.seconds)
        b = torch.randn(self.rows, *self.sizes, dtype=torch.float64)  # drawn from the seed the run has set

        def f(z: torch.Tensor) -> torch.Tensor:
            time.sleep(self.seconds_a_round)
            return self.slope.value * z + b

        return FunctionProblem(f, torch.zeros_like(b), rows="independent")

    def judge(self, problem: Problem, solution: Solution, context: Context) -> Judgement:
        count = context.once("count", lambda: [0])
        count[0] += 1
        exact = problem(problem.initial()) / (1.0 - self.slope.value)
        error = float((solution.state - exact).norm() / exact.norm())
        metrics = {
            "relative_error": float("nan") if self.nan else error,
            "cells_so_far": float(count[0]),
            "draw": float(exact.sum()),
        }
        if not self.pictures:
            return Judgement(metrics)
        gray = np.linspace(-1, 1, self.rows * 64).reshape(self.rows, 8, 8)
        pixels = np.stack([gray, -gray, gray], axis=-1) if self.colour else gray
        return Judgement(metrics, images=Images(pixels), reference=Images(pixels))


@dataclass(frozen=True)
class Needy(Picard):
    """A solver that needs what no task provides."""

    needs = frozenset({"telepathy"})


class NoOptions:
    """Not a class of options."""


@hookimpl
def fixedpoint_tasks() -> list[Component]:
    return [Component("toy", ToyTask, "a toy", ("Toys 1900",))]


@hookimpl
def fixedpoint_solvers() -> list[Component]:
    return [
        Component("needy", Needy, "needs telepathy"),
        Component("far", "surely_not_installed:Far", "lacks an extra", requires=("surely_not_installed",), extra="far"),
        Component("lost", "toy_plugin:Lost", "its class does not exist"),
        Component("plain", NoOptions, "is no dataclass"),
    ]


@hookimpl
def fixedpoint_commands() -> list[Command]:
    return [
        Command("greet", "toy_commands:greet", "says hello, or why not"),
        Command("far-off", "toy_commands:greet", "lacks an extra", requires=("surely_not_installed",), extra="far"),
        Command("lost-command", "toy_commands:nowhere", "its function does not exist"),
        Command("sad-command", "toy_sad_command:cry", "its module raises"),
        Command("odd-command", "toy_commands:odd", "its annotations are none of typer's"),
    ]
