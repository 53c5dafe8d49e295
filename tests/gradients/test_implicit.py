"""The implicit gradient: closed forms and finite differences, any solver, any order, and the truth about failures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from draws import examples
from gradient_cases import MAPS, START, by_offset, cell, cotangent, exact, parameters
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad

import fixedpoint as fp
from fixedpoint.core.options import OptionError
from fixedpoint.core.tangents import _prepare_forward_mode
from fixedpoint.registry import registry
from fixedpoint.testing.chains import wave_chain
from fixedpoint.testing.problems import affine_contraction
from fixedpoint.testing.strategies import affine_contractions

# Solvers of other libraries do not reach the tolerance of these checks; they have tests of their own.
SOLVERS = [
    name
    for name, entry in registry.components("solver").items()
    if "chain" not in entry.load().needs and entry.load().__module__.startswith("fixedpoint.")
]
_prepare_forward_mode()

TIGHT = fp.Implicit(termination=fp.Termination(rtol=1e-13))


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        pytest.param(name, solver, marks=() if name == "two tensors" or solver == "krylov" else pytest.mark.slow)
        for name in MAPS
        for solver in SOLVERS
    ],
)
def test_gradcheck_with_every_solver_forward_and_backward(name: str, solver: str) -> None:
    make, start = MAPS[name]
    estimator = {"name": "implicit", "solver": solver, "termination": {"rtol": 1e-12}}

    def answer(weight: torch.Tensor, offset: torch.Tensor) -> Any:
        f = make(weight, offset)
        return fp.solve(f, start, solver=solver, rtol=1e-13, max_rounds=300, gradient=estimator).z

    assert torch.autograd.gradcheck(answer, parameters(), atol=1e-6, fast_mode=True)


DERIVED_TWICE = [("tanh", "gmres"), ("affine", "gmres")]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(name, method, marks=[pytest.mark.slow] if (name, method) not in DERIVED_TWICE else [])
        for name in MAPS
        for method in ("gmres", "bicgstab")
    ],
)
def test_second_derivatives_pass_gradgradcheck(name: str, method: Any) -> None:
    make, start = MAPS[name]
    estimator = fp.Implicit(solver=fp.Krylov(method=method), termination=fp.Termination(rtol=1e-13))

    def answer(weight: torch.Tensor, offset: torch.Tensor) -> Any:
        return fp.solve(make(weight, offset), start, rtol=1e-13, gradient=estimator).z

    assert torch.autograd.gradcheck(answer, parameters())
    assert torch.autograd.gradgradcheck(answer, parameters(), fast_mode=name != "tanh")


def test_derivatives_of_the_third_order_are_the_closed_form() -> None:
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)  # z = a z + 3
    derivative = fp.solve(lambda z: a * z + 3.0, torch.zeros(1, 1, dtype=torch.float64), gradient=TIGHT).z.sum()
    for order, value in enumerate((3 / 0.5**2, 2 * 3 / 0.5**3, 6 * 3 / 0.5**4), start=1):
        (derivative,) = torch.autograd.grad(derivative, a, create_graph=order < 3)
        assert float(derivative.detach()) == pytest.approx(value, rel=1e-6)


def test_second_derivatives_by_tensors_that_are_not_leaves_and_depend_on_one_another() -> None:
    weight, offset = parameters(2)

    def answer(weight: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        shift, scale = (torch.sin(offset) * offset).split([2, 1], dim=1)  # two of one operation

        def f(z: torch.Tensor) -> torch.Tensor:
            value = torch.empty_like(z)
            value[:, :2] = torch.tanh(z @ weight.T + offset)[:, :2] + 0.1 * shift
            value[:, 2:] = 0.2 * z[:, 2:] * scale
            return value + offset

        return fp.solve(f, START, rtol=1e-13, gradient=TIGHT).z

    assert torch.autograd.gradcheck(answer, (weight, offset))
    assert torch.autograd.gradgradcheck(answer, (weight, offset), fast_mode=True)


def test_what_hides_from_torch_has_first_derivatives_and_no_second() -> None:
    weight, offset = parameters(3)
    shifts = iter(range(100))

    def f(z: torch.Tensor) -> torch.Tensor:
        fresh = torch.ones((), dtype=torch.float64, requires_grad=True) * (0.0 * next(shifts))
        return torch.tanh(z @ weight.T + offset) + fresh

    z = fp.solve(f, START, rtol=1e-12, gradient=TIGHT).z
    (first,) = torch.autograd.grad(z.sum(), offset, retain_graph=True)
    plain = fp.solve(cell(weight, offset), START, rtol=1e-12, gradient=TIGHT).z
    assert torch.allclose(first, torch.autograd.grad(plain.sum(), offset)[0], rtol=1e-9)
    with pytest.raises(RuntimeError, match="need to know all that f depends on"):
        torch.autograd.grad(z.sum(), offset, create_graph=True)


@examples(12, 30)
@given(st.data())
def test_it_is_the_closed_form_on_affine_maps_whoever_solved(data: st.DataObject) -> None:
    problem = data.draw(affine_contractions(bound=0.9), label="problem")
    solver = data.draw(st.sampled_from(["picard", "anderson", "broyden"]), label="solver")
    g = cotangent(problem.start.shape, data.draw(st.integers(0, 2**16), label="seed"))
    u, solution = by_offset(problem, TIGHT, g, solver=solver)
    wanted = exact(problem, g)
    assert bool((torch.linalg.vector_norm(u - wanted, dim=1) <= 1e-11 * torch.linalg.vector_norm(wanted, dim=1)).all())
    assert solution.extras["adjoint"].converged.all()


@pytest.mark.parametrize("solver", ["krylov", "anderson", pytest.param("broyden", marks=pytest.mark.slow), "picard"])
def test_the_error_follows_the_adjoint_tolerance(solver: str) -> None:
    problem = affine_contraction(torch.linspace(-0.8, 0.9, 12).tolist(), normal=False, bound=0.95, seed=3)
    g = cotangent(problem.start.shape)
    wanted = exact(problem, g)
    condition = float(torch.linalg.matrix_norm(torch.linalg.inv(torch.eye(12).double() - problem.matrix.mT), 2).max())
    errors = []
    for exponent in range(2, 13):
        rtol = 10.0**-exponent
        u, _ = by_offset(problem, {"name": "implicit", "solver": solver, "termination": {"rtol": rtol}}, g)
        error = float((torch.linalg.vector_norm(u - wanted, dim=1) / torch.linalg.vector_norm(wanted, dim=1)).max())
        assert error <= 1.1 * condition * rtol
        errors.append(error)
    assert errors[-1] < 1e-9 * errors[0]


@pytest.mark.parametrize("factor", [1e-13, 1e-30, 1e-38])
def test_tiny_cotangents_in_single_precision_do_not_vanish(factor: float) -> None:
    problem = affine_contraction((0.7, -0.4, 0.2), seed=5)
    g = cotangent(problem.start.shape)
    u, _ = by_offset(problem.astype(torch.float32), "implicit", (g * factor).float(), rtol=1e-6)
    wanted = exact(problem, g) * factor
    assert bool((u.double() - wanted).abs().amax() <= 1e-5 * wanted.abs().amax() + 1e-44)


def test_an_absolute_tolerance_is_that_of_a_unit_cotangent() -> None:
    problem = affine_contraction((0.7, -0.4, 0.2), seed=5)
    g = cotangent(problem.start.shape)
    estimator = {"name": "implicit", "solver": "picard", "termination": {"rtol": 0.0, "atol": 1e-8}}
    u, _ = by_offset(problem, estimator, 1e-13 * g)
    assert torch.allclose(1e13 * u, exact(problem, g), rtol=1e-6)


def test_rows_without_a_cotangent_cost_nothing_and_stay_zero() -> None:
    problem = affine_contraction((0.7, -0.4, 0.2), seed=5)
    g = cotangent(problem.start.shape)
    g[1] = 0
    u, solution = by_offset(problem, "implicit", g)
    assert (u[1] == 0).all()
    report = solution.extras["adjoint"]
    assert report.converged.all()
    assert report.products[1] == 0
    assert (report.products[[0, 2, 3]] > 1).all()
    none, _ = by_offset(problem, "implicit", torch.zeros_like(g))
    assert (none == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_cotangent_that_is_not_finite_is_told_and_stays_in_its_row(value: float) -> None:
    problem = affine_contraction((0.7, -0.4, 0.2), seed=5)
    g = cotangent(problem.start.shape)
    clean, _ = by_offset(problem, "implicit", g)
    g[2, 1] = value
    with pytest.warns(fp.AdjointWarning, match="1 of 4 rows was not solved"):
        u, solution = by_offset(problem, "implicit", g)
    assert not u[2].isfinite().all()
    assert torch.allclose(u[[0, 1, 3]], clean[[0, 1, 3]], rtol=1e-12)
    assert [status.label for status in solution.extras["adjoint"].status][2] == "nonfinite"


class TestFailures:
    """What an adjoint solve that fails says, and gives."""

    problem = affine_contraction((0.95, 0.6, -0.7, 0.1), normal=False, bound=0.97, seed=6)
    g = cotangent((4, 4))

    def found(self, on_failure: Any, max_rounds: int = 3) -> tuple[torch.Tensor, fp.Solution]:
        rule = fp.Termination(rtol=1e-10, max_rounds=max_rounds)
        estimator = fp.Implicit(solver=fp.Picard(), termination=rule, on_failure=on_failure)
        return by_offset(self.problem, estimator, self.g)

    def test_by_default_it_warns_and_gives_what_it_reached(self) -> None:
        with pytest.warns(fp.AdjointWarning, match=r"4 of 4 rows was not solved \(.*\):\n4 of 4 rows max"):
            u, solution = self.found("warn")
        partial = self.g + (self.problem.matrix.mT @ self.g.unsqueeze(2)).squeeze(2)  # the start is g, two steps
        partial = self.g + (self.problem.matrix.mT @ partial.unsqueeze(2)).squeeze(2)
        assert torch.allclose(u, partial, rtol=1e-10)
        report = solution.extras["adjoint"]
        assert [status.label for status in report.status] == ["max_rounds"] * 4
        assert not report.replaced.any()
        assert report.metrics()["adjoint_unsolved"] == 4

    def test_it_can_raise(self) -> None:
        with pytest.raises(fp.ConvergenceError, match="the adjoint equation of 4 of 4 rows was not solved"):
            self.found("raise")

    def test_it_can_fall_back_to_the_one_step_gradient(self) -> None:
        with pytest.warns(fp.AdjointWarning, match="these rows have the one-step gradient"):
            u, solution = self.found("one-step")
        assert torch.allclose(u, self.g, rtol=1e-14)
        assert solution.extras["adjoint"].replaced.all()

    def test_only_the_rows_that_failed_fall_back(self) -> None:
        self_problem = affine_contraction((0.1, 0.05), rows=1, seed=1).take(torch.tensor([0, 0]))
        slow = self_problem.matrix.clone()
        slow[1] = torch.eye(2, dtype=torch.float64) * 0.9
        problem = fp.testing.problems.Affine(self_problem.start, self_problem.solution, slow, self_problem.offset)
        g = cotangent((2, 2))
        rule = fp.Termination(rtol=1e-6, max_rounds=15)
        with pytest.warns(fp.AdjointWarning, match="1 of 2 rows"):
            u, solution = by_offset(problem, fp.Implicit(fp.Picard(), rule, "one-step"), g)
        assert solution.extras["adjoint"].replaced.tolist() == [False, True]
        assert torch.allclose(u[0], exact(problem, g)[0], rtol=1e-5)
        assert torch.allclose(u[1], g[1], rtol=1e-14)

    def test_the_floor_of_the_dtype_is_no_failure(self) -> None:
        estimator = {"name": "implicit", "termination": {"rtol": 1e-12}}
        _, solution = by_offset(self.problem.astype(torch.float32), estimator, self.g.float(), rtol=1e-5)
        report = solution.extras["adjoint"]
        assert "asks for more than float32 can give" in report.message or report.converged.all()


def test_the_report_is_filled_in_by_the_backward_pass_and_counts_every_product() -> None:
    weight, offset = parameters(4)
    seen = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: torch.Tensor) -> torch.Tensor:
            return z.clone()

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            seen.append(1)
            return g

    solution = fp.solve(lambda z: cell(weight, offset)(Watched.apply(z)), START, rtol=1e-12, gradient="implicit")
    report = solution.extras["adjoint"]
    assert (report.backwards, report.metrics()) == (0, {})
    assert repr(report) == "AdjointReport(no backward pass has run)"
    solution.z.sum().backward()
    assert report.backwards == 1
    assert len(seen) == report.rounds + 1  # the last one takes the answer to the parameters
    assert report.products.max() == report.rounds
    assert (report.relative_error <= 1e-6).all()
    assert set(report.metrics()) == {
        *("adjoint_error", "adjoint_rounds", "adjoint_products", "adjoint_replaced", "adjoint_unsolved")
    }


def test_what_is_evaluated_for_it_is_counted() -> None:
    weight, offset = parameters(4)
    plain = fp.solve(cell(weight, offset), START, rtol=1e-9)
    implicit = fp.solve(cell(weight, offset), START, rtol=1e-9, gradient="implicit")
    assert implicit.counts.rounds == plain.counts.rounds + 1
    assert (implicit.evaluations == plain.evaluations + 1).all()
    assert torch.equal(implicit.z, plain.z)


def test_modules_closures_and_conditioning_all_get_their_gradient() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3)).double().eval()
    for parameter in module.parameters():
        parameter.data *= 0.5
    x = cotangent(seed=1).requires_grad_()
    context = torch.tanh(x)  # made before the solve, not a leaf
    solution = fp.solve(lambda z: 0.5 * module(z) + context, START, rtol=1e-13, gradient=TIGHT)
    wanted = (x, *module.parameters())
    found = torch.autograd.grad(solution.z.sum(), wanted, retain_graph=True)
    (through,) = torch.autograd.grad(solution.z.sum(), context)
    assert torch.allclose(found[0], through * (1 - context.detach() ** 2), rtol=1e-9)
    z = START
    for _ in range(80):
        z = 0.5 * module(z) + torch.tanh(x)
    for one, other in zip(found, torch.autograd.grad(z.sum(), wanted), strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-12)


def test_backward_accumulates_in_leaves_and_nowhere_else() -> None:
    weight, offset = parameters(5)
    start = START.clone().requires_grad_()
    fp.solve(cell(weight, offset), start, rtol=1e-12, gradient="implicit").z.sum().backward()
    assert weight.grad is not None
    assert offset.grad is not None
    assert start.grad is None


def test_a_graph_that_was_not_kept_is_not_used_again() -> None:
    weight, offset = parameters(5)
    z = fp.solve(cell(weight, offset), START, gradient="implicit").z
    z.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        z.sum().backward()


def test_forward_mode_is_the_tangent_of_the_closed_form() -> None:
    weight, offset = (each.detach() for each in parameters(6))
    direction = cotangent(seed=8)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(offset, direction)
        solution = fp.solve(lambda z: z @ weight.T + dual, START, rtol=1e-13, gradient=TIGHT)
        tangent = forward_ad.unpack_dual(solution.z).tangent
        assert forward_ad.unpack_dual(fp.solve(lambda z: z @ weight.T + dual, START).z).tangent is None
        with torch.no_grad():
            quiet = fp.solve(lambda z: z @ weight.T + dual, START, rtol=1e-13, gradient=TIGHT)
            assert torch.equal(forward_ad.unpack_dual(quiet.z).tangent, tangent)
        with pytest.raises(RuntimeError, match="this gradient estimator has no forward mode"):
            fp.solve(lambda z: z @ weight.T + dual, START, gradient="one-step")
    wanted = torch.linalg.solve(torch.eye(3, dtype=torch.float64) - weight, direction.T).T
    assert torch.allclose(tangent, wanted, rtol=1e-11)
    assert solution.extras["adjoint"].converged.all()


@pytest.mark.parametrize("name", MAPS)
def test_forward_mode_passes_gradcheck(name: str) -> None:
    make, start = MAPS[name]

    def answer(weight: torch.Tensor, offset: torch.Tensor) -> Any:
        return fp.solve(make(weight, offset), start, solver="anderson", rtol=1e-13, gradient=TIGHT).z

    assert torch.autograd.gradcheck(answer, parameters(), check_forward_ad=True, check_backward_ad=False)


def test_mixed_derivatives_by_forward_over_reverse_are_refused() -> None:
    weight, offset = parameters(6)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(offset, torch.ones_like(offset))
        z = fp.solve(cell(weight, dual), START, solver="anderson", gradient=TIGHT).z
        tangent = forward_ad.unpack_dual(z).tangent
        with pytest.raises(RuntimeError, match="first derivatives only"):
            tangent.sum().backward()


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap, torch.func.jacfwd])
def test_transforms_of_functions_are_refused_with_a_sentence(transform: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"a solve cannot be transformed by torch.func \(grad, jvp, vmap"):
        transform(lambda b: fp.solve(lambda z: 0.5 * z + b, START, gradient="implicit").z.sum())(START)


def test_a_solve_within_a_solve_has_its_gradient() -> None:
    weight, offset = (each.detach() for each in parameters(9))
    a = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def outer(z: torch.Tensor) -> torch.Tensor:
        inner = fp.solve(lambda y: torch.tanh(a * y + z), START, solver="anderson", rtol=1e-13, gradient=TIGHT)
        return 0.3 * inner.z @ weight.T + offset

    def answer(a: torch.Tensor) -> torch.Tensor:
        return fp.solve(outer, START, solver="anderson", rtol=1e-12, gradient=TIGHT).z

    (found,) = torch.autograd.grad(answer(a).sum(), a)
    with torch.no_grad():
        values = []
        for step in (1e-6, -1e-6):
            a += step
            values.append(answer(a).sum())
            a -= step
    assert float(found) == pytest.approx(float(values[0] - values[1]) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_have_half_precision_gradients(dtype: torch.dtype) -> None:
    problem = affine_contraction((0.5, -0.4, 0.2), seed=5)
    g = cotangent(problem.start.shape)
    u, _ = by_offset(problem.astype(dtype), "implicit", g.to(dtype), solver="picard", rtol=1e-2)
    assert u.dtype == dtype
    wanted = exact(problem, g)
    error = torch.linalg.vector_norm(u.double() - wanted, dim=1) / torch.linalg.vector_norm(wanted, dim=1)
    assert bool((error <= 16 * torch.finfo(dtype).eps).all())


def test_autocast_is_the_same_in_first_and_second_derivatives() -> None:
    torch.manual_seed(1)
    layer = torch.nn.Linear(8, 8)
    layer.weight.data *= 0.4
    x = torch.randn(2, 8, requires_grad=True)
    seen = []

    def f(z: torch.Tensor) -> torch.Tensor:
        value = layer(z)
        seen.append(value.dtype)
        return torch.tanh(value.float()) + x

    with torch.autocast("cpu", dtype=torch.bfloat16):
        estimator = {"name": "implicit", "termination": {"rtol": 1e-2}}
        solution = fp.solve(f, torch.zeros(2, 8), solver="picard", rtol=1e-2, gradient=estimator)
    (first,) = torch.autograd.grad(solution.z.square().sum(), x, create_graph=True)
    torch.autograd.grad(first.sum(), x)
    assert set(seen) == {torch.bfloat16}
    assert first.dtype == torch.float32


def test_bytes_saved_for_backward_do_not_grow_with_the_rounds() -> None:
    weight, offset = parameters(1)

    def saved(gradient: Any, rounds: int) -> int:
        sizes: list[int] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            f = cell(weight, offset)
            solution = fp.solve(
                f,
                START,
                solver="picard",
                rtol=0.0,
                max_rounds=rounds,
                gradient=gradient,
                termination=fp.Termination(patience=1000),
            )
        assert solution.z.requires_grad
        return sum(sizes)

    assert saved("implicit", 50) <= 1.05 * saved("implicit", 5)
    assert saved("unrolled", 12) > 2 * saved("unrolled", 5)


def test_chains_are_problems_as_any_other() -> None:
    chain = wave_chain()
    x0 = cotangent((4, 3), seed=2).requires_grad_()
    solution = fp.solve(fp.ChainProblem(chain, x0), rtol=1e-13, gradient=TIGHT)
    last = solution.z[:, -1]
    g = torch.ones_like(last)
    (found,) = torch.autograd.grad(last, x0, g)
    x = x0
    for step in range(chain.length):
        x = chain.step(x, torch.full((4,), step), torch.arange(4))
    assert torch.allclose(found, torch.autograd.grad(x, x0, g)[0], rtol=1e-9)


def test_bad_options_are_refused() -> None:
    with pytest.raises(OptionError, match="Implicit: solver must not be a solver of chains"):
        fp.Implicit(solver=fp.ChainSolver())
    with pytest.raises(OptionError, match="Implicit: on_failure must be one of 'warn', 'raise', 'one-step'"):
        fp.Implicit(on_failure="ignore")  # type: ignore[arg-type]


def test_the_report_of_rows_is_host_numbers() -> None:
    _, solution = by_offset(TestFailures.problem, "implicit", TestFailures.g)
    report = solution.extras["adjoint"]
    assert isinstance(report.products, np.ndarray)
    assert isinstance(report.relative_error, np.ndarray)
