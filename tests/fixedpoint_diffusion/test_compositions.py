"""Preconditioner x accelerator x window x start x prediction x eta: any composition is the serial chain."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from ddim_cases import Case, cases
from draws import examples
from hypothesis import given
from hypothesis import strategies as st
from pairwise import pairs_of, pairwise_design

import fixedpoint
from fixedpoint import Anderson, ChainSolver, Picard
from fixedpoint.chains.joint.solver import BlockSecant
from fixedpoint.chains.joint.start import ConstantStart, NestedStart, OneJumpStart
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.slope.preconditioner import Banded, Coefficient, Gaussian, Identity, Zero
from fixedpoint_diffusion import DDIMSchedule
from fixedpoint_diffusion.models.choices import FashionMNISTModel, MixtureModel
from fixedpoint_diffusion.task import Sampling

PRECONDITIONERS = {
    "zero": Zero(),
    "coefficient": Coefficient(),
    "identity": Identity(),
    "banded": Banded(order=4),
    "gaussian": Gaussian(variance=0.3),
}
ACCELERATORS = {
    "none": Picard(),
    "triangular": Anderson(memory=2),
    "joint": Anderson(memory=2, mixing="joint"),
    "secant": BlockSecant(memory=2),
}
WINDOWS = {"whole": None, "narrow": 5, "wide": 20}
STARTS = {
    "constant": ConstantStart(),
    "given": ConstantStart(),
    "one jump": OneJumpStart(),
    "nested": NestedStart(6, 2, OneJumpStart()),
}
PREDICTIONS = ("epsilon", "sample", "v_prediction")
ETAS = {"0": 0.0, "0.5": 0.5, "1": 1.0}
FACTORS = [[*PRECONDITIONERS], [*ACCELERATORS], [*WINDOWS], [*STARTS], [*PREDICTIONS], [*ETAS]]


def allowed(row: tuple[str, ...]) -> bool:
    """Block secants correct slopes of single steps, and a band has none."""
    return row[:2] != ("banded", "secant")


DESIGN = pairwise_design(FACTORS, allowed)
MIXTURE = MixtureModel(components=5, dimension=12, variance_low=0.02, variance_high=0.08, separation=5.0, seed=1)


def composed(preconditioner: str, accelerator: str, window: str, start: str, slack: float = 0.02) -> ChainSolver:
    return ChainSolver(
        preconditioner=PRECONDITIONERS[preconditioner],
        accelerator=ACCELERATORS[accelerator],
        window=WINDOWS[window],
        start=STARTS[start],
        slack=slack,
    )


def begun(problem: ChainProblem, start: str) -> ChainProblem:
    """The problem; with the trajectory of a neighbour to start from, where one is to be given."""
    if start != "given":
        return problem
    neighbour = ChainProblem(problem.chain, problem.x0 + 0.01, max_batch=problem.max_batch)
    near = fixedpoint.solve(neighbour, solver="serial").z
    return ChainProblem(problem.chain, problem.x0, max_batch=problem.max_batch, start=near)


def apart(solution: fixedpoint.Solution, serial: fixedpoint.Solution) -> float:
    """Largest difference of any state of any row, of the state's size."""
    return float(((solution.z - serial.z).flatten(2).norm(dim=2) / serial.z.flatten(2).norm(dim=2)).amax())


def test_the_design_has_every_pair() -> None:
    wanted = {
        ((i, one), (j, other))
        for (i, first), (j, second) in combinations(enumerate(FACTORS), 2)
        for one in first
        for other in second
    }
    assert wanted - {pair for row in DESIGN for pair in pairs_of(row)} == {((0, "banded"), (1, "secant"))}
    assert len(DESIGN) <= 30  # of 2160


@pytest.mark.parametrize("row", DESIGN, ids=", ".join)
def test_a_pairwise_covering_design(row: tuple[str, ...]) -> None:
    preconditioner, accelerator, window, start, prediction, eta = row
    schedule = DDIMSchedule(prediction_type=prediction, clip_sample=False)
    case = Case(schedule=schedule, steps=40, eta=ETAS[eta], batch=3, model=MIXTURE, seed=7)
    problem = case.problem()
    serial = fixedpoint.solve(problem, solver="serial")
    solver = composed(preconditioner, accelerator, window, start)
    solution = fixedpoint.solve(begun(problem, start), solver=solver, rtol=1e-11)
    assert solution.converged.all(), solution.message
    assert solution.counts.rounds <= 41
    assert apart(solution, serial) <= 1e-9


@examples(25, 60)
@given(
    case=cases(steps=st.integers(1, 60)),
    row=st.tuples(*(st.sampled_from(factor) for factor in FACTORS[:4])).filter(allowed),
    slack=st.floats(0.0, 0.5),
)
def test_any_composition_on_any_chain(case: Case, row: tuple[str, str, str, str], slack: float) -> None:
    problem = case.problem()
    serial = fixedpoint.solve(problem, solver="serial")
    solver = composed(*row, slack=slack)
    if row[3] == "nested" and case.steps <= 6:
        solver = replace(solver, start=OneJumpStart())
    solution = fixedpoint.solve(begun(problem, row[3]), solver=solver, rtol=1e-11)
    assert solution.converged.all(), solution.message
    assert solution.counts.rounds <= case.steps + 1
    difference = (solution.z[:, -1] - serial.z[:, -1]).norm(dim=1) / serial.z[:, -1].norm(dim=1)
    assert difference.amax() <= 1e-9


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row[:4], marks=[pytest.mark.slow] if place >= 6 else [], id=", ".join(row[:4]))
        for place, row in enumerate([row for row in DESIGN if row[0] not in ("zero", "banded")][:12])
    ],
)
def test_cells_on_the_bundled_model(row: tuple[str, str, str, str]) -> None:
    problem = Sampling(model=FashionMNISTModel(), num_inference_steps=25, batch=2).problem(0)
    serial = fixedpoint.solve(problem, solver="serial")
    solution = fixedpoint.solve(begun(problem, row[3]), solver=composed(*row), rtol=1e-4)
    assert solution.converged.all(), solution.message
    assert solution.counts.rounds <= 26
    difference = (solution.z[:, -1] - serial.z[:, -1]).flatten(1).norm(dim=1) / serial.z[:, -1].flatten(1).norm(dim=1)
    assert difference.amax() <= 3e-4
