"""The gradient of a chain by its adjoint chain, against autograd through the steps one after another."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from ddim_cases import cases
from draws import examples
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import forward_ad

import fixedpoint as fp
from fixedpoint.chains.adjoint.gradient import ChainAdjoint
from fixedpoint.chains.capabilities import HasRepresentativeSteps
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.joint.solver import BlockSecant
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.slope.preconditioner import Coefficient, Gaussian, Jacobian
from fixedpoint.gradients.report import AdjointWarning

SOLVERS: list[Any] = [
    fp.ChainSolver(),
    fp.ChainSolver(accelerator=fp.Anderson(memory=3)),
    fp.ChainSolver(accelerator=BlockSecant()),
    fp.ChainSolver(window=7),
    fp.ChainSolver(window=5, accelerator=fp.Anderson(memory=2)),
    fp.Serial(),
]
TIGHT = fp.Termination(rtol=1e-13)
B, N, SHAPE = 3, 20, (2, 4)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Network(Chain):
    """``x + tanh(W x + c_row + s_i) / 4``: a weight, conditioning by row, and an offset for every step.

    ``seen`` are the numbers of pairs in every call that autograd records.
    """

    length = N

    def __init__(self, weight: Tensor, conditioning: Tensor, offsets: Tensor) -> None:
        self.weight, self.conditioning, self.offsets = weight, conditioning, offsets
        self.seen: list[int] = []

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        if x.requires_grad:
            self.seen.append(len(x))
        mixed = (self.weight * x.flatten(1).unsqueeze(1)).sum(-1).view(x.shape)
        return x + 0.25 * torch.tanh(mixed + self.conditioning[row] + self.offsets[index].view(-1, 1, 1))


def network() -> tuple[Network, tuple[Tensor, ...]]:
    size = SHAPE[0] * SHAPE[1]
    leaves = (0.4 * draw(1, size, size), draw(2, B, *SHAPE), draw(3, N), draw(4, B, *SHAPE))
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)
    return Network(*leaves[:3]), leaves


def serially(chain: Chain, x0: Tensor) -> Tensor:
    rows, states = torch.arange(len(x0)), [x0]
    for i in range(chain.length):
        states.append(chain.step(states[-1], torch.full_like(rows, i), rows))
    return torch.stack(states[1:], dim=1)


def solved(chain: Chain, x0: Tensor, estimator: Any = None, max_batch: int | None = None) -> fp.Solution:
    problem = ChainProblem(chain, x0, max_batch=max_batch)
    return fp.solve(problem, solver=fp.ChainSolver(), gradient=estimator or ChainAdjoint(termination=TIGHT), rtol=1e-13)


def gap(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@examples(12, 30)
@given(case=cases(steps=st.integers(1, 60), clip=st.just(False)), solver=st.sampled_from(SOLVERS))
def test_it_is_autograd_through_the_serial_chain(case: Any, solver: Any) -> None:
    problem = case.problem()
    x0 = problem.x0.clone().requires_grad_()
    problem = ChainProblem(problem.chain, x0, max_batch=problem.max_batch)
    target = draw(case.seed, *x0.shape)
    loss = (serially(problem.chain, x0)[:, -1] - target).square().sum()
    (exact,) = torch.autograd.grad(loss, x0)
    estimator = ChainAdjoint(solver=solver, termination=TIGHT)
    solution = fp.solve(problem, solver="serial", gradient=estimator, rtol=1e-12)
    (found,) = torch.autograd.grad((solution.z[:, -1] - target).square().sum(), x0)
    for row in range(len(x0)):
        assert gap(found[row], exact[row]) <= 1e-10
    report = solution.extras["adjoint"]
    assert report.rounds <= case.steps + 1
    assert report.products.min() >= case.steps


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("max_batch", [None, 7])
def test_a_loss_of_all_states_by_all_that_the_steps_depend_on(solver: Any, max_batch: int | None) -> None:
    chain, leaves = network()
    weights = draw(5, B, N, *SHAPE)
    exact = torch.autograd.grad((weights * serially(chain, leaves[-1])).sum(), leaves)
    solution = solved(chain, leaves[-1], ChainAdjoint(solver=solver, termination=TIGHT), max_batch)
    found = torch.autograd.grad((weights * solution.z).sum(), leaves)
    for one, other in zip(found, exact, strict=True):
        assert gap(one, other) <= 1e-10


def test_no_more_steps_are_recorded_at_once_than_a_micro_batch() -> None:
    chain, leaves = network()
    solution = solved(chain, leaves[-1], max_batch=7)
    chain.seen.clear()
    solution.z[:, -1].sum().backward()
    assert max(chain.seen) == 7
    assert sum(chain.seen) == int(solution.extras["adjoint"].products.sum()) + B * N


def test_what_is_not_a_leaf_passes_its_gradient_on() -> None:
    weight, conditioning, offsets, x0 = network()[1]
    made = Network(torch.sin(weight), conditioning.exp(), 2 * offsets)
    leaves = (weight, conditioning, offsets, x0)
    exact = torch.autograd.grad(serially(made, x0.square())[:, -1].sum(), leaves, retain_graph=True)
    found = torch.autograd.grad(solved(made, x0.square()).z[:, -1].sum(), leaves)
    for one, other in zip(found, exact, strict=True):
        assert gap(one, other) <= 1e-10


def test_gaussian_slopes_are_those_of_the_chain_from_its_end() -> None:
    """Data that is one Gaussian has affine steps, and one sweep of the adjoint chain solves it."""
    from fixedpoint_diffusion import DDIMSchedule, ddim_problem
    from fixedpoint_diffusion.denoisers.mixture import GaussianMixture

    schedule = DDIMSchedule(clip_sample=False)
    model = GaussianMixture(draw(6, 1, 5), torch.tensor([0.3]), torch.tensor([1.0]), schedule)
    x0 = draw(7, 2, 5).requires_grad_()
    problem = ddim_problem(model, schedule, x0, num_inference_steps=40)
    estimator = ChainAdjoint(solver=fp.ChainSolver(preconditioner=Gaussian(variance=0.3)), termination=TIGHT)
    solution = fp.solve(problem, solver="serial", gradient=estimator)
    solution.z[:, -1].square().sum().backward()
    assert solution.extras["adjoint"].rounds <= 3


def test_rows_without_a_cotangent_have_none_and_tiny_ones_do_not_vanish() -> None:
    chain, leaves = network()
    whole = torch.autograd.grad(solved(chain, leaves[-1]).z[:, -1].sum(), leaves[-1])[0]
    solution = solved(chain, leaves[-1])
    factors = torch.tensor([1e-200, 0.0, 1e100], dtype=torch.float64)
    (found,) = torch.autograd.grad((solution.z[:, -1].flatten(1).sum(1) * factors).sum(), leaves[-1])
    assert bool((found[1] == 0).all())
    assert gap(found[0] * 1e200, whole[0]) <= 1e-10
    assert gap(found[2] * 1e-100, whole[2]) <= 1e-10


def test_again_and_of_two_chains_at_once() -> None:
    chain, leaves = network()
    first, second = solved(chain, leaves[-1]), solved(chain, 0.5 * leaves[-1])
    loss = first.z[:, -1].square().sum() + second.z[:, 3].sum()
    exact_loss = serially(chain, leaves[-1])[:, -1].square().sum() + serially(chain, 0.5 * leaves[-1])[:, 3].sum()
    exact = torch.autograd.grad(exact_loss, leaves)
    for _ in range(2):
        for one, other in zip(torch.autograd.grad(loss, leaves, retain_graph=True), exact, strict=True):
            assert gap(one, other) <= 1e-10
    assert first.extras["adjoint"].backwards == 2


def test_a_backward_pass_that_fails_warns_or_raises() -> None:
    chain, leaves = network()
    rough = fp.Termination(rtol=1e-12, max_rounds=2)
    solution = solved(chain, leaves[-1], ChainAdjoint(termination=rough))
    with pytest.warns(AdjointWarning, match="3 of 3 rows was not solved"):
        solution.z[:, -1].sum().backward()
    assert not solution.extras["adjoint"].converged.any()
    solution = solved(chain, leaves[-1], ChainAdjoint(termination=rough, on_failure="raise"))
    with pytest.raises(fp.ConvergenceError, match="3 of 3 rows was not solved"):
        solution.z[:, -1].sum().backward()


def test_constants_have_no_gradient() -> None:
    chain = Network(draw(1, 8, 8), draw(2, B, *SHAPE), draw(3, N))
    assert not solved(chain, draw(4, B, *SHAPE)).z.requires_grad
    chain, leaves = network()
    with torch.no_grad():
        assert not solved(chain, leaves[-1]).z.requires_grad


def test_second_derivatives_and_forward_mode_are_refused() -> None:
    chain, leaves = network()
    (first,) = torch.autograd.grad(solved(chain, leaves[-1]).z[:, -1].square().sum(), leaves[-1], create_graph=True)
    with pytest.raises(RuntimeError, match="gives first derivatives only"):
        first.sum().backward()
    x0 = leaves[-1].detach()
    with forward_ad.dual_level():
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # torch warns of itself
            dual = forward_ad.make_dual(x0, torch.ones_like(x0))
        with pytest.raises(RuntimeError, match="'chain-adjoint' has no forward mode"):
            solved(chain, dual)


class Late(Network):
    """Whose later steps depend on a tensor that the first does not."""

    late = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        value = super().step(x, index, row)
        return value * self.late if bool((index > 3).any()) else value


def test_a_gradient_that_would_be_lost_is_refused() -> None:
    _, leaves = network()
    solution = solved(Late(*leaves[:3]), leaves[-1], max_batch=1)
    with pytest.raises(RuntimeError, match="depend on tensors that its first one does not"):
        solution.z[:, -1].sum().backward()


class Declared(Late, HasRepresentativeSteps):
    """The same, which says so."""

    def representative_steps(self) -> tuple[int, ...]:
        return 0, self.length - 1


def test_a_chain_may_declare_steps_that_depend_on_more() -> None:
    _, leaves = network()
    chain, of = Declared(*leaves[:3]), (Late.late, *leaves)
    exact = torch.autograd.grad(serially(chain, leaves[-1])[:, -1].square().sum(), of)
    solution = solved(chain, leaves[-1], max_batch=1)
    found = torch.autograd.grad(solution.z[:, -1].square().sum(), of)
    for one, other in zip(found, exact, strict=True):
        assert gap(one, other) <= 1e-10


def test_what_is_no_chain_is_refused() -> None:
    z0 = torch.zeros(2, 3)
    with pytest.raises(TypeError, match="needs of the solver trajectory"):
        fp.solve(torch.cos, z0, solver="anderson", gradient="chain-adjoint")
    chain, leaves = network()
    with pytest.raises(TypeError, match="all of whose states are kept, got ChainProblem with keep='last'"):
        fp.solve(ChainProblem(chain, leaves[-1], keep="last"), solver="serial", gradient="chain-adjoint")
    with pytest.raises(ValueError, match="must be a solver of chains, got Anderson"):
        ChainAdjoint(solver=fp.Anderson())
    with pytest.raises(ValueError, match="must not require jacobians, which an adjoint chain does not know"):
        ChainAdjoint(solver=fp.ChainSolver(preconditioner=Jacobian()))
    with pytest.raises(ValueError, match="must not require coarse, which"):
        ChainAdjoint(solver=fp.Parareal())


@pytest.mark.parametrize(("preconditioner", "name"), [(Gaussian(), "gaussian-slopes"), (Coefficient(), "coefficients")])
def test_what_its_solver_requires_of_the_chain_is_asked_before_the_solve(preconditioner: Any, name: str) -> None:
    estimator = ChainAdjoint(solver=fp.ChainSolver(preconditioner=preconditioner))
    assert estimator.needs == {"trajectory", name}

    class Unknowing(Chain):
        length = 3

        def step(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
            raise AssertionError("nothing is computed")

    problem = ChainProblem(Unknowing(), torch.zeros(2, 3, requires_grad=True))
    with pytest.raises(TypeError, match=f"requires a chain that knows its {name}, and Unknowing has none"):
        fp.solve(problem, solver="serial", gradient=estimator)
