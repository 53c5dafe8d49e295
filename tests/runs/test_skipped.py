"""Cells that cannot be: skipped with a sentence, whatever of the options it is that a task does not provide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fixedpoint.chains.capabilities import HasCoefficients
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.config.runfile import load
from fixedpoint.core.options import option
from fixedpoint.core.problem import Problem
from fixedpoint.core.solution import Solution
from fixedpoint.registry import Component, hookimpl, registry
from fixedpoint.runs.plan import plan
from fixedpoint.runs.run import Outcome, execute
from fixedpoint.tasks.task import Context, Judgement, SolveTask

DDIM = "{name: ddim-sampling, model: {name: gaussian-mixture, dimension: 3}, num_inference_steps: 6, batch: 2}"
NETWORK = "{name: recurrent-network, length: 6, batch: 2}"
EULER = "{name: euler-ode, length: 6, batch: 2}"


class Halving(Chain):
    """Knows its steps alone."""

    length = 5

    def step(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
        return x / 2 + 1


class Known(Halving, HasCoefficients):
    """Knows its coefficients, too."""

    def coefficients(self) -> Tensor:
        return torch.full((self.length,), 0.5, dtype=torch.float64)


@dataclass(frozen=True)
class Laconic(SolveTask):
    """A task as they were written before: it says that there is a chain, and nothing of what it knows."""

    provides = frozenset({"chain"})
    known: bool = option(False, help="whether the chain knows its coefficients")

    def problem(self, seed: int) -> Problem:
        return ChainProblem(Known() if self.known else Halving(), torch.ones(2, 3))

    def judge(self, problem: Problem, solution: Solution, context: Context) -> Judgement:
        return Judgement({})


class Plugin:
    """Brings it."""

    @hookimpl
    def fixedpoint_tasks(self) -> list[Component]:
        return [Component("laconic", Laconic, "says little")]


@pytest.fixture
def laconic() -> Iterator[None]:
    plugin = Plugin()
    registry.register(plugin)
    yield
    registry.unregister(plugin)


def run(folder: Path, task: str, *solvers: str) -> Outcome:
    (folder / "study.yaml").write_text(f"tasks: [{task}]\nsolvers: [{', '.join(solvers)}]\n")
    return execute(load(folder / "study.yaml"), folder / "out")


@pytest.mark.parametrize(
    ("task", "solver", "lacking"),
    [
        (DDIM, "{chain, preconditioner: jacobian}", "jacobians"),
        (DDIM, "{chain, preconditioner: diagonal}", "slopes"),
        (NETWORK, "{chain, preconditioner: gaussian}", "gaussian-slopes"),
        (NETWORK, "{chain, preconditioner: coefficient}", "coefficients"),
        (NETWORK, "deq-ddim", "coefficients"),
        (NETWORK, "{chain, start: one-jump}", "jumps"),
        (EULER, "{polyalgorithm, first: parareal, then: serial}", "coarse"),
        (EULER, "parareal", "coarse"),
    ],
)
def test_it_is_known_before_anything_is_computed(tmp_path: Path, task: str, solver: str, lacking: str) -> None:
    spec = solver.replace("{", "{name: ", 1)
    (tmp_path / "study.yaml").write_text(f"tasks: [{task}]\nsolvers: [{spec}, serial]\n")
    planned = plan(load(tmp_path / "study.yaml"))
    outcome = run(tmp_path, task, spec, "serial")
    assert [record.status for record in outcome.records] == ["skipped", "ok"]
    name = solver.strip("{}").split(",")[0]
    assert outcome.records[0].reason.startswith(name)
    assert f" needs {lacking}, which " in outcome.records[0].reason
    assert outcome.records[0].reason == planned[0].skip
    assert outcome.ok


@pytest.mark.parametrize(
    ("task", "solver", "sentence"),
    [
        (
            "laconic",
            "{name: chain, preconditioner: jacobian}",
            "preconditioner='jacobian' requires a chain with a method",
        ),
        ("laconic", "{name: chain, preconditioner: coefficient}", "requires a chain that knows its coefficients"),
        ("laconic", "deq-ddim", "deq-ddim requires a chain that knows its coefficients"),
        (NETWORK, "{name: chain, start: {name: nested, steps: 2}}", "RecurrentChain has no coarser chains"),
        (NETWORK, "{name: chain, start: one-jump, window: 3}", "RecurrentChain does not know its states' jumps"),
        (NETWORK, "newton-krylov", "NewtonKrylov evaluates within its step and cannot accelerate a chain"),
        (NETWORK, "polyalgorithm", "Polyalgorithm owns its loop"),
    ],
)
@pytest.mark.usefixtures("laconic")
def test_it_is_found_out_by_the_chain_itself(tmp_path: Path, task: str, solver: str, sentence: str) -> None:
    outcome = run(tmp_path, task, solver, "serial")
    assert [record.status for record in outcome.records] == ["skipped", "ok"]
    assert sentence in outcome.records[0].reason
    assert outcome.ok


@pytest.mark.usefixtures("laconic")
def test_a_task_that_says_little_is_run_with_what_its_chain_knows(tmp_path: Path) -> None:
    task = "{name: laconic, known: true}"
    outcome = run(tmp_path, task, "{name: chain, preconditioner: coefficient}", "deq-ddim", "parareal")
    assert [record.status for record in outcome.records] == ["ok", "ok", "skipped"]
    assert outcome.records[2].reason.startswith("parareal needs coarse, which ")


def test_what_goes_together_is_run(tmp_path: Path) -> None:
    solvers = [f"{{name: chain, preconditioner: {kind}}}" for kind in ("diagonal", "jacobian")]
    longer = "{name: chain, start: {name: nested, steps: 50}}"  # no level is shorter than the chain
    windowed = "{name: chain, start: one-jump, window: 3}"  # by the extension
    outcome = run(tmp_path, EULER, *solvers, longer, windowed)
    assert [record.status for record in outcome.records] == ["ok"] * 4
