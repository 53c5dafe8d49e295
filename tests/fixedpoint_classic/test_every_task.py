"""What every task of the package promises: its answer is a fixed point, solvers reach it, rows stand for themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.core.problem import HasTake, check_row_independence
from fixedpoint.registry import registry
from fixedpoint.tasks.task import Context
from fixedpoint_classic.problem import ClassicTask

SMALL = {
    "h-equation": {"size": 33, "c": [0.9, 0.5, 0.99]},
    "bratu": {"size": 7, "lam": [3.0, 6.0, 1.0]},
    "linear-contraction": {"size": 23, "batch": 3},
    "tanh-cell": {"size": 19, "batch": 3, "gain": 1.0},
    "poisson-mixture-em": {"data": "synthetic", "means": [1.0, 6.0], "batch": 3},
    "gaussian-mixture-em": {"samples": 101, "dimension": 3, "components": 2, "separation": 4.0, "batch": 3},
    "value-iteration": {"states": 13, "actions": 3, "branching": 4, "discount": 0.9, "batch": 3},
    "pagerank": {"pages": 31, "links": 3, "batch": 3},
    "power-iteration": {"size": 17, "gap": 0.3, "batch": 3},
    "nnls": {"size": 11, "samples": 50, "correlation": 0.3, "batch": 3},
    "elastic-net": {"size": 13, "samples": 40, "correlation": 0.3, "batch": 3},
    "cp-als": {"sizes": [5, 4, 6], "rank": 2, "collinearity": 0.2, "batch": 3},
}
OTHERS = {
    "bratu, Jacobi form": ("bratu", {"size": 5, "lam": [3.0, 6.0, 1.0], "form": "jacobi"}),
    "linear, not normal": ("linear-contraction", {"size": 12, "departure": 0.4, "spectrum": "uniform", "batch": 3}),
    "linear, one sign": ("linear-contraction", {"size": 12, "spectrum": "positive", "batch": 3}),
    "pagerank, random graph": ("pagerank", {"pages": 30, "links": 2, "graph": "random", "batch": 3}),
    "lasso": ("elastic-net", {"size": 13, "samples": 40, "l2": 0.0, "correlation": 0.0, "batch": 3}),
}
EVERY = {**{name: (name, options) for name, options in SMALL.items()}, **OTHERS}


def make(case: str, **changes) -> ClassicTask:
    name, options = EVERY[case]
    task = registry.create("task", {"name": name, **options, **changes})
    assert isinstance(task, ClassicTask)
    return task


def run(task: ClassicTask, solver: str, seed: int = 3, rtol: float = 1e-11):
    termination = fixedpoint.Termination(rtol=rtol, max_rounds=3000, patience=500)
    return task.run(Context(solver=registry.create("solver", solver), termination=termination, seed=seed))


def test_every_task_is_here():
    own = {name for name, component in registry.components("task").items() if "classic" in str(component.factory)}
    assert own == set(SMALL)


@pytest.mark.parametrize("case", EVERY)
@pytest.mark.parametrize("seed", [0, 7])
def test_the_answer_is_a_fixed_point(case, seed):
    problem = make(case).build(seed)
    exact = problem.reference()
    assert torch.allclose(problem(exact), exact, rtol=1e-12, atol=1e-13)
    assert float(problem.error(exact, exact).amax()) <= 1e-14
    for name, defect in problem.checks(exact).items():
        assert float(defect.amax()) <= 1e-11, name


SIZES = {
    "h-equation": ("size", 1, 60),
    "bratu": ("size", 1, 12),
    "linear-contraction": ("size", 1, 50),
    "tanh-cell": ("size", 1, 50),
    "poisson-mixture-em": ("samples", 10, 300),
    "gaussian-mixture-em": ("samples", 10, 300),
    "value-iteration": ("states", 4, 50),
    "pagerank": ("pages", 5, 50),
    "power-iteration": ("size", 2, 50),
    "nnls": ("size", 1, 50),
    "elastic-net": ("size", 1, 50),
    "cp-als": ("rank", 1, 4),
}
# From far away extrapolation may circle: ALS requires a line search with it (De Sterck 2012), and the power map forgets
# lengths.
_PLAIN_ONLY = {"cp-als", "power-iteration"}


@pytest.mark.parametrize(
    ("case", "solver"),
    [
        (case, solver)
        for case in EVERY
        for solver in ("picard", "anderson")
        if solver == "picard" or case not in _PLAIN_ONLY
    ],
)
def test_solvers_reach_the_answer_from_the_start(case, solver):
    result = run(make(case), solver)
    assert result.status == {"converged": 3}
    assert result.metrics.pop("relative_error") <= 1e-7
    assert all(defect <= 1e-8 for defect in result.metrics.values()), result.metrics


@pytest.mark.parametrize("case", EVERY)
def test_an_unfinished_solve_has_the_error_it_has(case):
    """The metric is the distance to the answer, not what the solver believes."""
    task = make(case)
    result = task.run(
        Context(solver=fixedpoint.Picard(), termination=fixedpoint.Termination(rtol=0.0, max_rounds=1), seed=3)
    )
    problem = task.build(3)
    assert result.metrics["relative_error"] == pytest.approx(
        float(problem.error(problem.initial(), problem.reference()).amax()), rel=1e-6
    )
    assert result.metrics["relative_error"] > 1e-4


@pytest.mark.parametrize("case", EVERY)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(["float32", "float64"]), data=st.data())
def test_rows_are_independent_and_can_be_taken(case, seed, dtype, data):
    option, low, high = SIZES[EVERY[case][0]]
    problem = make(case, dtype=dtype, **{option: data.draw(st.integers(low, high))}).problem(seed)
    assert problem.layout.dtype == getattr(torch, dtype)
    assert check_row_independence(problem, seed=seed % 1000).all()
    assert isinstance(problem, HasTake)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True)))
    z = problem(problem.initial())
    part = problem.take(rows)
    assert part.layout.rows == len(rows)
    assert torch.equal(part.initial(), problem.initial()[rows])
    whole, alone = problem(z)[rows], part(z[rows])
    assert whole.dtype == alone.dtype == problem.layout.dtype
    assert torch.equal(alone, whole)


@pytest.mark.parametrize("case", [case for case in EVERY if "c" not in EVERY[case][1] and "lam" not in EVERY[case][1]])
def test_a_row_does_not_depend_on_how_many_there_are(case):
    few, many = make(case, batch=1).problem(5), make(case, batch=3).problem(5)
    assert torch.equal(few.initial(), many.initial()[:1])
    z = few(few.initial())
    assert torch.allclose(few(z), many.take(torch.tensor([0]))(z), rtol=1e-15, atol=0)


@pytest.mark.parametrize("case", EVERY)
def test_seeds_repeat_and_differ(case):
    task = make(case)
    first, again, other = (task.problem(seed) for seed in (1, 1, 2))
    z = first(first.initial())
    assert torch.equal(first(z), again(z))
    if not isinstance(EVERY[case][1].get("c", EVERY[case][1].get("lam")), list):  # those two are not random
        assert not torch.equal(first(z), other(z))


@pytest.mark.parametrize("case", EVERY)
def test_the_map_leaves_its_argument_alone_and_answers_in_new_memory(case):
    problem = make(case).problem(0)
    z = problem(problem.initial())
    kept = z.clone()
    value = problem(z)
    assert torch.equal(z, kept)
    assert value.data_ptr() != z.data_ptr()
    assert problem.initial().data_ptr() != problem.start.data_ptr()


@pytest.mark.parametrize("case", EVERY)
def test_the_host_reads_nothing_during_an_evaluation(case):
    """Without data there is nothing to read: an evaluation that waits for a number fails."""
    problem = make(case).problem(0).to(torch.float32, "meta")
    value = problem(problem.initial())
    assert (value.shape, value.dtype, value.device.type) == (problem.start.shape, torch.float32, "meta")


@pytest.mark.parametrize("case", EVERY)
def test_single_precision_has_the_same_answer_to_rounding(case):
    task = make(case, dtype="float32")
    result = run(task, "picard", rtol=1e-5)
    assert result.status == {"converged": 3}
    assert result.metrics["relative_error"] <= 2e-2


@pytest.mark.parametrize("case", [case for case in EVERY if case != "cp-als"])
def test_jacobians_are_those_of_the_map(case):
    """Whether a formula or by backward passes: against central differences, at the answer."""
    problem = make(case).build(4)
    z = problem.reference()
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-6
    expected = (problem(z + step * direction) - problem(z - step * direction)) / (2 * step)
    found = (problem.jacobian(z) @ direction.unsqueeze(2)).squeeze(2)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_another_start_is_another_start():
    problem = make("nnls").problem(0)
    moved = problem.starting_at(problem.start + 1)
    assert torch.equal(moved.initial(), problem.start + 1)
    assert torch.equal(moved(problem.start), problem(problem.start))


def test_options_of_the_base_are_checked():
    with pytest.raises(fixedpoint.core.options.OptionError, match=r"HEquation: dtype must be one of"):
        registry.create("task", {"name": "h-equation", "dtype": "float16"})
    assert replace(make("nnls"), batch=5).problem(0).layout.rows == 5


@pytest.mark.parametrize("name", ["linear-contraction", "tanh-cell"])
def test_a_gradient_and_its_adjoint_solve_are_in_the_result(name: str) -> None:
    def run(gradient: object) -> dict[str, float]:
        context = Context(
            solver=registry.create("solver", "anderson"),
            termination=fixedpoint.Termination(rtol=1e-9, max_rounds=500),
            seed=1,
            gradient=gradient if gradient is None else registry.create("gradient", gradient),
        )
        return registry.create("task", {"name": name, "size": 12, "batch": 2}).run(context).metrics

    assert "gradient_error" not in run(None)
    implicit = run({"name": "implicit", "termination": {"rtol": 1e-9}})
    assert implicit["gradient_error"] < 1e-5
    assert implicit["adjoint_error"] <= 1e-9
    assert implicit["adjoint_unsolved"] == 0
    assert implicit["adjoint_products"] >= 2
    assert run("one-step")["gradient_error"] > 0.05
