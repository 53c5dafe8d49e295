"""``fixedpoint.solve`` and ``fixedpoint.find_root``: what goes in, what comes out, what is refused."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch

import fixedpoint
from fixedpoint import Anderson, Picard, Status, Termination, solve
from fixedpoint.core.problem import FunctionProblem, HasTake, Problem, check_row_independence
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.testing.problems import DOTTIE, affine_contraction


def start() -> torch.Tensor:
    return torch.full((2, 3), 0.5, dtype=torch.float64)


def test_numpy_in_numpy_out() -> None:
    solution = fixedpoint.solve(np.cos, np.ones((2, 3), dtype=np.float32), rtol=1e-6)
    assert isinstance(solution.z, np.ndarray)
    assert solution.z.dtype == np.float32
    assert np.allclose(solution.z, DOTTIE, atol=1e-5)
    assert len(solution.status) == 2


def test_a_float_in_a_float_out() -> None:
    z = fixedpoint.solve(np.cos, 1.0, rtol=1e-14).z
    assert isinstance(z, float)
    assert z == pytest.approx(DOTTIE, abs=1e-13)


def test_structures_come_back_as_they_went_in() -> None:
    Pair = namedtuple("Pair", ["left", "right"])

    def step(z: dict[str, object]) -> dict[str, object]:
        pair, rest = z["pair"], z["rest"]
        return {"rest": [part / 2 for part in rest], "pair": Pair(pair.right.cos(), pair.left.cos())}

    ones = torch.ones(2, 3, dtype=torch.float64)
    start = {"pair": Pair(ones, ones), "rest": [ones[:, :1]]}
    z = fixedpoint.solve(step, start, rtol=1e-12, atol=1e-12).z
    assert list(z) == ["pair", "rest"]
    assert isinstance(z["pair"], Pair)
    assert torch.allclose(z["pair"].left, torch.tensor(DOTTIE, dtype=torch.float64))
    assert torch.allclose(z["rest"][0], torch.zeros(2, 1, dtype=torch.float64), atol=1e-11)


def test_a_vector_is_one_problem_and_a_matrix_a_batch() -> None:
    assert len(fixedpoint.solve(np.cos, np.ones(5)).status) == 1
    assert len(fixedpoint.solve(np.cos, np.ones((5, 2))).status) == 5
    assert len(fixedpoint.solve(np.cos, np.ones((5, 2)), rows="joint").status) == 1
    assert len(fixedpoint.solve(np.cos, np.ones(5), rows="independent").status) == 5


def test_coupled_rows_want_joint() -> None:
    def mixes(z: torch.Tensor) -> torch.Tensor:
        return 0.5 * z.mean(0, keepdim=True) + 0.3 * z + 1

    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert not check_row_independence(FunctionProblem(mixes, start)).any()
    assert check_row_independence(FunctionProblem(torch.cos, start)).all()
    joint = fixedpoint.solve(mixes, start, rows="joint", rtol=1e-12)
    assert torch.allclose(joint.z, torch.full_like(start, 5.0))


@pytest.mark.parametrize(
    "solver",
    ["picard", {"name": "picard", "relaxation": 0.8}, fixedpoint.Picard(relaxation=0.5), "anderson", "broyden"],
)
def test_solvers_by_name_mapping_and_value(solver: object) -> None:
    assert fixedpoint.solve(torch.cos, torch.ones(1, 2), solver=solver).converged.all()


def test_a_root_of_either_sign() -> None:
    for sign in (1.0, -1.0):
        root = fixedpoint.find_root(lambda x: x**3 - 5.0, np.array([1.5]), sign=sign, rtol=1e-12)
        assert root.z == pytest.approx(5.0 ** (1 / 3), rel=1e-10)
    descended = fixedpoint.find_root(lambda x: 0.3 * (x - 2.0), np.array([0.0]), sign=-1.0, solver="picard")
    assert descended.z == pytest.approx(2.0, rel=1e-4)


def test_a_root_of_a_structure() -> None:
    root = fixedpoint.find_root(
        lambda z: {"x": z["y"] - 2.0, "y": z["x"] - z["y"]}, {"x": np.zeros(2), "y": np.zeros(2)}, rtol=1e-12
    )
    assert np.allclose(root.z["x"], 2.0)
    assert np.allclose(root.z["y"], 2.0)


def test_progress_after_every_round() -> None:
    seen: list[Progress] = []
    solution = fixedpoint.solve(torch.cos, torch.ones(3, 2), solver="picard", on_round=seen.append)
    assert [progress.round for progress in seen] == list(range(1, solution.counts.rounds + 1))
    assert seen[-1].running == 0
    assert seen[-1].relative_error == pytest.approx(solution.relative_error.max())


def test_micro_batches_of_a_problem_that_can_be_taken() -> None:
    class Shifted(Problem, HasTake):
        def __init__(self, shift: torch.Tensor) -> None:
            self.shift = shift
            self.layout = FunctionProblem(torch.cos, shift).layout

        def initial(self) -> torch.Tensor:
            return torch.zeros_like(self.shift)

        def __call__(self, z: torch.Tensor) -> torch.Tensor:
            assert len(z) == len(self.shift) <= 2
            return 0.5 * torch.cos(z) + self.shift

        def take(self, rows: torch.Tensor) -> Problem:
            return Shifted(self.shift[rows])

    shift = torch.arange(5.0, dtype=torch.float64).unsqueeze(1).expand(5, 3).contiguous()
    solution = fixedpoint.solve(Shifted(shift), max_batch=2, rtol=1e-12)
    assert torch.allclose(solution.z, 0.5 * torch.cos(solution.z) + shift)
    assert solution.counts.computed == solution.evaluations.sum()


def test_raise_for_status() -> None:
    solution = fixedpoint.solve(lambda z: z + 1, torch.ones(1, 2), max_rounds=5)
    with pytest.raises(fixedpoint.ConvergenceError, match="1 of 1 rows max_rounds: the limit on rounds"):
        solution.raise_for_status()
    assert fixedpoint.solve(torch.cos, torch.ones(1, 2)).raise_for_status().converged.all()


ONES = torch.ones(2, 3)


def test_memory_filled_anew_is_copied() -> None:
    buffer = torch.empty(2, 3)

    def fills(z: torch.Tensor) -> torch.Tensor:
        return torch.cos(z, out=buffer)

    for solver in ("picard", "anderson", "auto"):
        solution = fixedpoint.solve(fills, ONES, solver=solver)
        assert torch.equal(solution.z, fixedpoint.solve(torch.cos, ONES, solver=solver).z)


def test_a_function_that_returns_one_constant_tensor_is_fine() -> None:
    constant = torch.full((2, 3), 4.0)

    def same(z: torch.Tensor) -> torch.Tensor:
        return constant

    solution = fixedpoint.solve(same, ONES)
    assert solution.converged.all()
    assert torch.equal(solution.z, constant)


def test_numpy_arrays_filled_anew_are_copied() -> None:
    buffer = np.empty((2, 3))

    def fills(z: np.ndarray) -> np.ndarray:
        np.cos(z, out=buffer)
        return buffer

    assert np.allclose(fixedpoint.solve(fills, np.ones((2, 3)), rtol=1e-12).z, DOTTIE)


def test_keywords_override_fields_of_the_termination() -> None:
    rule = Termination(rtol=1e-12, max_rounds=3)
    solution = solve(torch.cos, start(), solver=Picard(), termination=rule, max_rounds=7)
    assert solution.counts.rounds == 7
    assert rule.max_rounds == 3
    loose = solve(torch.cos, start(), solver=Picard(), termination=rule, rtol=0.3)
    assert loose.converged.all()


def test_zero_is_a_tolerance_like_any_other() -> None:
    solution = solve(lambda z: 0 * z + 2, start(), solver=Picard(), rtol=0.0, atol=0.0)
    assert solution.status == (Status.CONVERGED,) * 2
    assert (solution.relative_error == 0).all()


def test_the_start_is_left_alone_and_not_shared() -> None:
    z0 = start()
    kept = z0.clone()
    solution = solve(torch.cos, z0)
    assert torch.equal(z0, kept)
    solution.z.zero_()
    assert torch.equal(z0, kept)
    still = solve(lambda z: z, z0)
    still.z.zero_()
    assert torch.equal(z0, kept)


def test_a_problem_and_its_function_are_solved_alike() -> None:
    problem = affine_contraction((0.7, -0.2), seed=1)
    one = solve(problem)
    other = solve(problem.__call__, problem.initial(), rows="independent")
    assert torch.equal(one.z, other.z)
    assert one.status == other.status


def test_a_solution_says_what_was_judged() -> None:
    solution = solve(torch.cos, start(), solver="anderson", rtol=1e-10)
    assert isinstance(solution, Solution)
    assert torch.equal(solution.fz, solution.z.cos())
    assert solution.solver == Anderson()
    assert np.allclose(solution.relative_error, 0, atol=1e-10)
    assert torch.allclose(solution.z, torch.full_like(solution.z, DOTTIE), rtol=1e-9)
    assert solution.trace.error.shape == (solution.counts.rounds, 2)
    assert solution.trace.rounds.tolist() == list(range(1, solution.counts.rounds + 1))
    assert solution.trace.relative[-1].max() <= 1e-10
