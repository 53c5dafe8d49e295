"""Abilities are declared: what merely has methods of their names is not taken for having them."""

from __future__ import annotations

import inspect
import re
from abc import ABC
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

import fixedpoint
from fixedpoint.chains import capabilities, coarse
from fixedpoint.chains.capabilities import CHAIN_ABILITIES
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.inversion.invert import invert_chain
from fixedpoint.chains.joint.solver import ChainSolver
from fixedpoint.chains.planning import costs
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core import loop, whole
from fixedpoint.core import problem as problems
from fixedpoint.core import solver as solvers
from fixedpoint.core.inverse_jacobian import InverseEstimate
from fixedpoint.core.layout import Layout
from fixedpoint.core.options import OptionError
from fixedpoint.core.problem import AbilityError, HasMeasure, HasTake, Problem
from fixedpoint.core.termination import Termination
from fixedpoint.registry import registry
from fixedpoint.solvers.aitken import Aitken
from fixedpoint.tasks import forming, task
from fixedpoint.tasks.task import Context, HasNotes, Judgement, SolveTask
from fixedpoint.testing.chains import linear_chain
from fixedpoint.testing.problems import affine_contraction

ABILITIES = [
    each
    for module in (problems, solvers, loop, whole, capabilities, coarse, costs, task, forming)
    for name, each in vars(module).items()
    if inspect.isclass(each) and each.__module__ == module.__name__
    if name.startswith("Has") or name in ("SupportsWindow", "AssumesIndependentRows")
]
# What else the library's own problems and chains are asked, and what somebody may well call a method.
OTHERS = [
    "called",
    "aux",
    "with_aux",
    "has_aux",
    "function",
    "value",
    "rows",
    "start",
    "keep",
    "length",
    "chain",
    "together",
    "held",
    "inverse",
    "derivative",
    "jacobian",
    "transpose",
    "apply",
    "restrict",
    "prolong",
    "step",
    "pairs",
    "derivatives",
    "calls",
    "predict",
    "measure_of",
    "exact",
    "needs",
    "provides",
    "known_faults",
    "supports_row_selection",
]
NAMES = sorted({name for ability in ABILITIES for name in ability.__abstractmethods__} | set(OTHERS))


def innocent(*but: str) -> Any:
    """A class with methods of all these names, which nobody has any business with."""

    def method(name: str) -> Any:
        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise AssertionError(f"{name} is no business of the library's")

        return refuse

    return type("Innocent", (), {name: method(name) for name in NAMES if name not in but})


class Mine(innocent(), Problem):  # type: ignore[misc]
    """``z = A z + b``."""

    def __init__(self, gain: Tensor | None = None) -> None:
        self.inner = affine_contraction((0.3, -0.2, 0.1), rows=3, seed=4)
        self.gain = torch.ones((), dtype=torch.float64) if gain is None else gain
        self.layout = Layout.of(self.inner.start, "independent")

    def __call__(self, z: Tensor) -> Tensor:
        return self.gain * self.inner(z)

    def initial(self) -> Tensor:
        return self.inner.initial()


class MyChain(innocent("step", "length"), Chain):  # type: ignore[misc]
    """``x' = w x + c_row + i / 10``."""

    length = 6

    def __init__(self, weight: Tensor | None = None) -> None:
        self.weight = torch.tensor(0.8, dtype=torch.float64) if weight is None else weight

    def step(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
        return self.weight * x + (row + index / 10).unsqueeze(1).to(x)


def registered(of_chains: bool) -> list[str]:
    """Solvers of plain problems; or those of chains that need nothing else of them."""
    found = {name: registry.create("solver", name).needs for name in registry.components("solver")}
    return [name for name, needs in found.items() if needs == (frozenset({"chain"}) if of_chains else frozenset())]


def test_there_are_names() -> None:
    assert {"cost", "take", "measure", "product", "extend", "jumps", "coarse", "slide", "notes"} <= set(NAMES)
    assert len(ABILITIES) == len(set(ABILITIES)) >= 19


@pytest.mark.parametrize("solver", registered(of_chains=False))
def test_a_problem_with_innocent_methods_is_solved(solver: str) -> None:
    gain = torch.ones((), dtype=torch.float64, requires_grad=True)
    problem = Mine(gain)
    gradient = None if solver in registry.components("solver") and "torchdeq" in solver else "implicit"
    solution = fixedpoint.solve(problem, solver=solver, gradient=gradient, rtol=1e-9)
    assert torch.allclose(solution.z, problem.inner.solution, rtol=1e-6)
    assert len(solution.status) == 3
    assert solution.converged.all()
    if gradient is not None:
        solution.z.sum().backward()
        assert gain.grad is not None
        moved = (1 + 1e-6) * problem.inner.matrix, (1 + 1e-6) * problem.inner.offset
        eye = torch.eye(3, dtype=torch.float64)
        wanted = (torch.linalg.solve(eye - moved[0], moved[1]) - problem.inner.solution).sum() / 1e-6
        assert torch.allclose(gain.grad, wanted, rtol=1e-4)


@pytest.mark.parametrize("solver", ["polyalgorithm", "auto"])
@pytest.mark.parametrize("gradient", ["one-step", "neumann", "phantom", "unrolled", "checkpointed-unrolled", "shine"])
def test_whoever_differentiates_it(solver: str, gradient: str) -> None:
    if gradient in ("checkpointed-unrolled", "shine") or solver == "polyalgorithm":
        solver = "anderson"
    gain = torch.ones((), dtype=torch.float64, requires_grad=True)
    fixedpoint.solve(Mine(gain), solver=solver, gradient=gradient).z.sum().backward()
    assert gain.grad is not None


def test_what_a_function_raises_is_noted_whatever_its_class_has() -> None:
    class Failing(Mine):
        def __call__(self, z: Tensor) -> Tensor:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no") as caught:
        fixedpoint.solve(Failing())
    assert caught.value.__notes__ == ["raised by f in round 1 of the solve"]


def test_its_rows_are_not_taken() -> None:
    with pytest.raises(TypeError, match=r"rows can be taken .*, got Mine; declare it: class Mine\(Problem, HasTake\)"):
        fixedpoint.solve(Mine(), max_batch=2)


def serially(chain: MyChain, x0: Tensor) -> Tensor:
    rows, states = torch.arange(len(x0)), [x0]
    for i in range(chain.length):
        states.append(chain.step(states[-1], torch.full_like(rows, i), rows))
    return torch.stack(states[1:], dim=1)


@pytest.mark.parametrize(
    "solver",
    [
        *registered(of_chains=True),
        "anderson",
        "auto",
        {"name": "chain", "window": 2},
        {"name": "chain", "accelerator": "broyden"},
    ],
    ids=str,
)
@pytest.mark.parametrize("gradient", ["chain-adjoint", "implicit"])
def test_a_chain_with_innocent_methods_is_solved(solver: Any, gradient: str) -> None:
    weight = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    x0 = torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2).requires_grad_()
    exact = serially(MyChain(weight), x0)
    wanted = torch.autograd.grad(exact[:, -1].square().sum(), (weight, x0))
    solution = fixedpoint.solve(ChainProblem(MyChain(weight), x0), solver=solver, gradient=gradient, rtol=1e-10)
    assert solution.converged.all()
    torch.testing.assert_close(solution.z, exact, rtol=1e-8, atol=1e-8)
    found = torch.autograd.grad(solution.z[:, -1].square().sum(), (weight, x0))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_it_is_inverted() -> None:
    x0 = torch.ones(3, 2, dtype=torch.float64)
    end = serially(MyChain(), x0)[:, -1]
    torch.testing.assert_close(invert_chain(MyChain(), end).latents, x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("solver", "ability"),
    [
        ("parareal", "HasCoarse"),
        ("deq-ddim", "HasCoefficients"),
        ({"name": "chain", "preconditioner": "coefficient"}, "HasCoefficients"),
        ({"name": "chain", "preconditioner": "gaussian"}, "HasGaussianSlopes"),
        ({"name": "chain", "preconditioner": "diagonal"}, "HasSlopes"),
        ({"name": "chain", "preconditioner": "jacobian"}, "HasJacobians"),
        ({"name": "chain", "start": "one-jump"}, "HasJumps"),
        ({"name": "chain", "start": {"name": "nested", "steps": 2}}, "HasCoarse"),
    ],
    ids=str,
)
def test_what_is_not_declared_is_said_so(solver: Any, ability: str) -> None:
    with pytest.raises(AbilityError, match=rf"(MyChain|this one).*class must inherit from {ability}\)"):
        fixedpoint.solve(ChainProblem(MyChain(), torch.ones(2, 2, dtype=torch.float64)), solver=solver)


class Declaring(HasMeasure, HasTake, Problem):
    def __call__(self, z: Tensor) -> Tensor:
        return z

    def initial(self) -> Tensor:
        return torch.ones(1, 1)

    def take(self, rows: Tensor) -> Problem:
        return self


def test_a_method_that_is_declared_and_missing_is_named() -> None:
    with pytest.raises(TypeError, match=r"abstract class Declaring .*\bmeasure"):
        Declaring()  # type: ignore[abstract]


@pytest.mark.parametrize("ability", [*ABILITIES, InverseEstimate])
def test_every_ability_is_a_base_class(ability: type) -> None:
    assert issubclass(ability, ABC)
    assert ability.__abstractmethods__
    assert not issubclass(innocent(), ability)


def test_nothing_in_the_library_is_told_by_the_names_of_methods() -> None:
    """But values that are named tuples, which is no ability."""
    root = Path(fixedpoint.__file__).parent
    files = [*root.rglob("*.py"), *(root.parent / "plugins").rglob("*.py")]
    library = [file for file in files if "runtime_checkable" in file.read_text(encoding="utf-8")]
    assert [file.name for file in library] == ["structure.py"]


class MySteps(innocent("needs", "provides", "supports_row_selection", "known_faults", "step"), Aitken):  # type: ignore[misc]
    """A step solver with methods slide and renew of its own."""


def test_a_step_solver_with_innocent_methods_does_not_slide() -> None:
    with pytest.raises(OptionError, match="requires the accelerator anderson, picard or block-secant, not MySteps"):
        ChainSolver(accelerator=MySteps(), window=2)
    problem = ChainProblem(linear_chain(), torch.ones(4, 3, dtype=torch.float64))
    assert fixedpoint.solve(problem, solver=MySteps()).converged.all()


def test_a_task_with_innocent_methods_is_run() -> None:
    class MyTask(innocent("provides", "needs"), SolveTask):  # type: ignore[misc]
        def problem(self, seed: int) -> Problem:
            return Mine()

        def judge(self, problem: Problem, solution: fixedpoint.Solution, context: Context) -> Judgement:
            return Judgement({})

    mine = MyTask()
    assert not isinstance(mine, HasNotes)
    result = mine.run(Context(solver=fixedpoint.Anderson(), termination=Termination(), seed=0))
    assert result.status == {"converged": 3}


@pytest.mark.parametrize("kind", ["solver", "gradient"])
def test_a_class_says_what_its_default_options_need(kind: Any) -> None:
    for component in registry.components(kind).values():
        built = registry.create(kind, component.name)
        assert type(built).needs == built.needs
        if kind == "solver":
            assert type(built).provides == built.provides


@pytest.mark.parametrize(
    ("solver", "needs"),
    [
        ("chain", {"chain"}),
        ({"name": "chain", "preconditioner": "jacobian"}, {"chain", "jacobians"}),
        ({"name": "chain", "preconditioner": "diagonal"}, {"chain", "slopes"}),
        ({"name": "chain", "preconditioner": "coefficient"}, {"chain", "coefficients"}),
        ({"name": "chain", "preconditioner": "gaussian"}, {"chain", "gaussian-slopes"}),
        ({"name": "chain", "start": "one-jump"}, {"chain", "jumps"}),
        ({"name": "chain", "start": "one-jump", "window": 4}, {"chain"}),
        ({"name": "chain", "start": {"name": "nested", "begin": "one-jump"}}, {"chain", "jumps"}),
        ({"name": "polyalgorithm", "first": "parareal", "then": "serial"}, {"chain", "coarse"}),
        ("damped", set()),
    ],
    ids=lambda given: "+".join(sorted(given)) if isinstance(given, set) else str(given),
)
def test_options_say_what_is_needed(solver: Any, needs: set[str]) -> None:
    found = registry.create("solver", solver).needs
    assert found == needs
    assert found - {"chain"} <= CHAIN_ABILITIES


def test_options_say_what_is_provided() -> None:
    assert registry.create("solver", {"name": "restarted", "solver": "broyden"}).provides == {"decisions"}
    assert registry.create("solver", {"name": "restarted", "solver": "newton-krylov"}).provides == set()
    with pytest.raises(TypeError, match=re.escape("needs of the solver decisions, which Restarted(")):
        fixedpoint.solve(
            Mine(torch.ones((), dtype=torch.float64, requires_grad=True)),
            solver={"name": "restarted", "solver": "newton-krylov"},
            gradient="checkpointed-unrolled",
        )
