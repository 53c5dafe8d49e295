"""Neumann, phantom, SHINE and checkpointed unrolling: the identities between them, and closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from draws import examples
from gradient_cases import START, by_offset, cell, cotangent, exact, parameters
from hypothesis import given, settings
from hypothesis import strategies as st

import fixedpoint as fp
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.testing.chains import wave_chain
from fixedpoint.testing.problems import affine_contraction
from fixedpoint.testing.strategies import affine_contractions

RELATIVE = 1e-12


def near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).norm() <= RELATIVE * wanted.norm())


@examples(15, 40)
@given(st.data())
def test_unrolling_from_the_solution_is_the_neumann_series(data: st.DataObject) -> None:
    problem = data.draw(affine_contractions(bound=0.95), label="problem")
    terms = data.draw(st.integers(1, 8), label="terms")
    g = cotangent(problem.start.shape, data.draw(st.integers(0, 99), label="seed"))
    series, solution = by_offset(problem, fp.Neumann(terms), g)
    offset = problem.offset.clone().requires_grad_()
    z = solution.state.detach()
    for _ in range(terms):
        z = (problem.matrix * z.unsqueeze(1)).sum(-1) + offset
    assert near(series, torch.autograd.grad(z, offset, g)[0])
    unrolled, _ = by_offset(problem.starting_at(solution.state.detach()), fp.Phantom(terms, tau=1.0), g)
    assert near(unrolled, series)


@examples(15, 40)
@given(st.data())
def test_the_error_of_the_series_is_at_most_the_norm_of_the_power(data: st.DataObject) -> None:
    problem = data.draw(affine_contractions(bound=0.95, normal=False), label="problem")
    terms = data.draw(st.integers(1, 12), label="terms")
    g = cotangent(problem.start.shape)
    found, _ = by_offset(problem, fp.Neumann(terms), g)
    wanted = exact(problem, g)
    left_out = torch.linalg.matrix_norm(torch.linalg.matrix_power(problem.matrix, terms), 2)
    error = (found - wanted).norm(dim=1)
    assert bool((error <= (left_out * (1 + 1e-9) + RELATIVE) * wanted.norm(dim=1)).all())


def test_the_spectral_radius_to_the_power_is_no_bound() -> None:
    problem = affine_contraction((0.5, 0.5, 0.5, 0.5), normal=False, bound=0.99, seed=1)
    g = cotangent(problem.start.shape)
    found, _ = by_offset(problem, fp.Neumann(4), g)
    wanted = exact(problem, g)
    assert float(((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max()) > 1.2 * 0.5**4


@examples(15, 40)
@given(st.data())
def test_phantom_is_the_damped_series_and_one_plain_step_is_one_step(data: st.DataObject) -> None:
    problem = data.draw(affine_contractions(), label="problem")
    steps, tau = data.draw(st.integers(1, 6), label="steps"), data.draw(st.floats(0.1, 1.0), label="tau")
    g = cotangent(problem.start.shape)
    damped = (1 - tau) * torch.eye(g.shape[1], dtype=g.dtype) + tau * problem.matrix.mT
    total, term = torch.zeros_like(g), g
    for _ in range(steps):
        total, term = total + term, (damped @ term.unsqueeze(2)).squeeze(2)
    assert near(by_offset(problem, fp.Phantom(steps, tau), g)[0], tau * total)
    plain = by_offset(problem, "one-step", g)[0]
    assert near(by_offset(problem, fp.Phantom(1, 1.0), g)[0], plain)
    assert torch.equal(by_offset(problem, fp.Neumann(1), g)[0], plain)


def test_damping_tames_what_the_plain_series_does_not_survive() -> None:
    problem = affine_contraction((-1.5, 0.3), seed=2)
    g = cotangent(problem.start.shape)
    wanted = exact(problem, g)
    damped, _ = by_offset(problem, fp.Phantom(60, 0.5), g, solver="broyden")
    assert torch.allclose(damped, wanted, rtol=1e-6)
    plain, _ = by_offset(problem, fp.Neumann(60), g, solver="broyden")
    assert float((plain - wanted).norm() / wanted.norm()) > 1e6


@pytest.mark.parametrize("solver", [fp.Broyden(), fp.Broyden(update="bad"), fp.Anderson()], ids=str)
def test_the_inverse_holds_the_secants_of_the_solver(solver: Any) -> None:
    problem = affine_contraction((0.9, 0.5, -0.6, 0.2, -0.1), rows=2, seed=3)
    f = Evaluator(problem)
    f.wanted = frozenset({"inverse"})
    points: list[torch.Tensor] = []

    class Watching(type(problem)):  # type: ignore[misc]
        def __call__(self, z: torch.Tensor) -> torch.Tensor:
            points.append(z.clone())
            return super().__call__(z)

    f.problem = Watching(problem.start, problem.solution, problem.matrix, problem.offset)
    with torch.no_grad():
        inverse = solver.solve(f, problem.start, fp.Termination(rtol=1e-30, max_rounds=5)).extras["inverse"]
    dz = points[-2] - points[-3]  # the last step that the state has seen
    dg = (problem(points[-2]) - points[-2]) - (problem(points[-3]) - points[-3])
    assert torch.allclose(inverse.apply(dg), dz, rtol=1e-9, atol=1e-12)
    v, w = cotangent((2, 5), 1), cotangent((2, 5), 2)
    assert torch.allclose((inverse.apply(v) * w).sum(1), (v * inverse.transpose_apply(w)).sum(1), rtol=1e-10)


@settings(max_examples=20)
@given(st.data())
def test_shine_is_exact_where_anderson_has_spanned_the_space(data: st.DataObject) -> None:
    spectrum = (0.9, -0.7, 0.4)
    problem = affine_contraction(spectrum, rows=3, seed=data.draw(st.integers(0, 2**16), label="seed"))
    g = cotangent(problem.start.shape)
    found, solution = by_offset(problem, "shine", g, solver=fp.Anderson(memory=3), rtol=1e-12)
    assert torch.allclose(found, exact(problem, g), rtol=1e-5, atol=1e-7)
    assert not solution.extras["adjoint"].replaced.any()


def test_a_row_keeps_what_it_has_learnt_while_others_go_on() -> None:
    fast = affine_contraction((0.3, -0.2, 0.1), rows=1, seed=4)
    slow = affine_contraction((0.99, -0.9, 0.7), rows=1, seed=5)
    names = ("start", "solution", "matrix", "offset")
    both = type(fast)(*(torch.cat([getattr(fast, name), getattr(slow, name)]) for name in names))
    g = cotangent((2, 3))
    for solver in (fp.Broyden(memory=3), fp.Anderson(memory=2)):
        whole, _ = by_offset(both, fp.Shine(fallback="never"), g, solver=solver, rtol=1e-8)
        alone, one = by_offset(fast, fp.Shine(fallback="never"), g[:1], solver=solver, rtol=1e-8)
        _, other = by_offset(slow, fp.Shine(fallback="never"), g[1:], solver=solver, rtol=1e-8)
        assert other.counts.rounds > one.counts.rounds + 3
        assert torch.equal(whole[0], alone[0])


def test_shine_falls_back_where_the_adjoint_equation_says_so() -> None:
    problem = affine_contraction(torch.linspace(-0.9, 0.95, 12).tolist(), normal=False, bound=0.97, seed=6)
    g = cotangent(problem.start.shape)
    options = {"solver": fp.Anderson(memory=1), "rtol": 1e-3}
    never, _ = by_offset(problem, fp.Shine(fallback="never"), g, **options)
    found, solution = by_offset(problem, "shine", g, **options)
    transposed = lambda v: (problem.matrix.mT @ v.unsqueeze(2)).squeeze(2)  # noqa: E731
    worse = (transposed(never) + g - never).norm(dim=1) > transposed(g).norm(dim=1)
    assert solution.extras["adjoint"].replaced.tolist() == worse.tolist()
    assert torch.allclose(found, torch.where(worse.unsqueeze(1), g, never), rtol=1e-12)
    long = never.norm(dim=1) > 1.3 * g.norm(dim=1)
    _, solution = by_offset(problem, fp.Shine(fallback="norm"), g, **options)
    assert solution.extras["adjoint"].replaced.tolist() == long.tolist()


def test_refinement_is_the_adjoint_iteration_from_the_estimate() -> None:
    problem = affine_contraction(torch.linspace(-0.5, 0.8, 8).tolist(), seed=7)
    g = cotangent(problem.start.shape)
    options = {"solver": "broyden", "rtol": 1e-4}
    u, _ = by_offset(problem, fp.Shine(fallback="never"), g, **options)
    for _ in range(3):
        u = (problem.matrix.mT @ u.unsqueeze(2)).squeeze(2) + g
    found, solution = by_offset(problem, fp.Shine(refine=3, fallback="never"), g, **options)
    assert torch.allclose(found, u, rtol=1e-10)
    assert solution.extras["adjoint"].products.tolist() == [3] * 4


@pytest.mark.parametrize(
    ("gradient", "solver"), [("shine", "auto"), ("shine", "picard"), ("checkpointed-unrolled", "auto")]
)
def test_a_solver_that_does_not_provide_it_is_refused_before_the_solve(gradient: str, solver: str) -> None:
    called: list[int] = []
    _, offset = parameters()
    with pytest.raises(TypeError, match=r"needs of the solver \w+, which .* does not provide; .*broyden"):
        fp.solve(lambda z: called.append(1) or 0.5 * z + offset, START, solver=solver, gradient=gradient)
    f = lambda z: (called.append(1) or 0.5 * z[0] + offset, z[1])  # noqa: E731
    with pytest.raises(TypeError, match="requires one set of weights per row"):
        fp.solve(f, (START, START), solver=fp.Anderson(mixing="block"), gradient="shine")
    assert not called


UNROLLABLE = ["picard", "anderson", "broyden", "aitken", "squarem", "anderson-type1", "damped", "restarted"]


@pytest.mark.parametrize("solver", UNROLLABLE)
@pytest.mark.parametrize("every", [1, 4, 100])
def test_checkpointed_is_unrolled(solver: str, every: int) -> None:
    found = []
    for gradient in (fp.Unrolled(complete=False), fp.CheckpointedUnrolled(every=every, complete=False)):
        weight, offset = parameters(3)
        solution = fp.solve(cell(weight, offset), START, solver=solver, rtol=1e-6, gradient=gradient)
        found.append(torch.autograd.grad(solution.z.square().sum(), (weight, offset)))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-14)


def test_checkpointed_takes_the_way_back_from_a_point_that_is_not_finite() -> None:
    problem = affine_contraction((1.5, -0.5, 0.2, 0.1), seed=1)
    found, rescued = [], []

    class Watched(fp.Broyden):
        def reset(self, state: Any, rows: torch.Tensor) -> Any:
            rescued.append(bool(rows.any()))
            return super().reset(state, rows)

    for gradient in (fp.Unrolled(complete=False), fp.CheckpointedUnrolled(every=2, complete=False)):
        offset = problem.offset.clone().requires_grad_()

        def f(z: torch.Tensor, offset: torch.Tensor = offset) -> torch.Tensor:
            value = (problem.matrix * z.unsqueeze(1)).sum(-1) + offset
            return value.masked_fill(z.detach().abs().amax(1, keepdim=True) > 3.0, torch.nan)

        solution = fp.solve(f, 0.1 * problem.start, solver=Watched(), rtol=1e-8, max_rounds=60, gradient=gradient)
        assert solution.converged.all()
        found.append(torch.autograd.grad(solution.z.sum(), offset)[0])
    assert any(rescued)
    assert torch.allclose(*found, rtol=1e-10)


def test_checkpointed_ends_where_the_solve_ended_though_another_point_was_better() -> None:
    # Logistic growth from little: the error rises before it falls, and the first point has the smallest.
    found = []
    for gradient in (fp.Unrolled(complete=False), fp.CheckpointedUnrolled(every=4, complete=False)):
        a = torch.tensor(0.15, dtype=torch.float64, requires_grad=True)
        start = torch.full((1, 1), 0.01, dtype=torch.float64)
        solution = fp.solve(lambda z, a=a: z + a * z * (1 - z), start, solver="picard", rtol=5e-3, gradient=gradient)
        assert solution.converged.all()
        assert float(solution.error) > 0.15 * 0.01
        found.append(torch.autograd.grad(solution.z.sum(), a)[0])
    assert float(found[0]) > 0.1
    assert torch.allclose(*found, rtol=1e-12)


def test_a_chain_solver_has_a_loop_of_its_own_and_is_refused() -> None:
    x0 = cotangent((4, 3), seed=2).requires_grad_()
    with pytest.raises(
        TypeError, match=r"needs of the solver decisions, which PlannedChainSolver\(.*\) does not provide"
    ):
        fp.solve(fp.ChainProblem(wave_chain(), x0), gradient="checkpointed-unrolled")


def test_checkpointed_holds_less() -> None:
    def saved(gradient: Any) -> int:
        weight, offset = parameters(1)
        sizes: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks
        with hooks(lambda tensor: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor):
            fp.solve(cell(weight, offset), START, solver="picard", rtol=1e-12, gradient=gradient)
        return sum(sizes)

    held = saved("unrolled")
    assert saved(fp.CheckpointedUnrolled(every=10, complete=False)) < 0.3 * held
    assert saved(fp.CheckpointedUnrolled(every=10)) < 0.3 * held


@pytest.mark.parametrize("gradient", ["neumann", "phantom", "shine", "checkpointed-unrolled"])
def test_second_derivatives_are_refused(gradient: str) -> None:
    weight, offset = parameters(3)
    z = fp.solve(cell(weight, offset), START, solver="anderson", gradient=gradient).z
    (first,) = torch.autograd.grad(z.sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only; gradient='implicit' and gradient='unrolled' give"):
        torch.autograd.grad(first.sum(), weight)


def test_solving_is_counted_and_nothing_is_evaluated_behind_the_counts() -> None:
    weight, offset = parameters(3)
    for gradient, more in (("one-step", 1), (fp.Neumann(7), 1), (fp.Phantom(4), 4), ("shine", 1)):
        calls: list[int] = []
        f = lambda z: calls.append(1) or torch.tanh(z @ weight.T + offset)  # noqa: E731, B023
        plain = fp.solve(f, START, solver="anderson")
        before = len(calls)
        attached = fp.solve(f, START, solver="anderson", gradient=gradient)
        assert len(calls) - before == attached.counts.calls
        assert (attached.evaluations == plain.evaluations + more).all()
