"""Our solvers in torchdeq: forward and backward, in both of its graphs, with what it reports."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fixedpoint as fp
from fixedpoint.core.status import Status
from fixedpoint.registry import Component, UnknownComponentError, hookimpl, registry
from fixedpoint.testing.problems import affine_contraction, tanh_cell
from fixedpoint_torchdeq import as_torchdeq_solver, get_deq, register
from fixedpoint_torchdeq.adapter import GLOBALS
from fixedpoint_torchdeq.library import torchdeq

NAMES = ("fixedpoint-picard", "fixedpoint-anderson", "fixedpoint-broyden")
EACH = pytest.mark.parametrize("name", NAMES)
CORES = pytest.mark.parametrize("core", ["sliced", "indexing"])
TIGHT = {"f_tol": 1e-13, "b_tol": 1e-13, "f_max_iter": 300, "b_max_iter": 300, "ift": True}


@pytest.fixture(autouse=True)
def own_table() -> Iterator[None]:
    """torchdeq's table of solvers as it was."""
    table = torchdeq("solver")._solvers
    kept = dict(table)
    yield
    table.clear()
    table.update(kept)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def contraction() -> Tensor:
    matrix = noise(5, 5)
    return 0.8 * matrix / torch.linalg.matrix_norm(matrix, 2)


@EACH
@CORES
@pytest.mark.parametrize("mode", ["abs", "rel"])
def test_the_implicit_gradient_is_the_closed_form(name: str, core: str, mode: str) -> None:
    weight = contraction().requires_grad_()
    shift, cotangent = noise(4, 5, seed=1).requires_grad_(), noise(4, 5, seed=2)
    deq = get_deq(core=core, f_solver=name, b_solver=name, f_stop_mode=mode, b_stop_mode=mode, **TIGHT)
    backward: list[Any] = []
    (z,), info = deq(lambda z: z @ weight.T + shift, torch.zeros_like(shift), backward_writer=backward.append)
    of_weight, of_shift = torch.autograd.grad((z * cotangent).sum(), (weight, shift))
    with torch.no_grad():
        system = torch.eye(5, dtype=torch.float64) - weight
        solved = torch.linalg.solve(system, shift.T).T
        adjoint = torch.linalg.solve(system.T, cotangent.T).T
    assert torch.allclose(z, solved, rtol=0, atol=1e-12)
    assert torch.allclose(of_shift, adjoint, rtol=0, atol=1e-12)
    assert torch.allclose(of_weight, adjoint.T @ solved, rtol=0, atol=2e-12)
    for stat in (info, *backward):
        assert float(stat[f"{mode}_lowest"].max()) <= 1e-13
        assert stat.status == (Status.CONVERGED,) * 4
    assert len(backward) == 1


@EACH
def test_gradients_by_finite_differences(name: str) -> None:
    deq = get_deq(f_solver=name, b_solver=name, **TIGHT)

    def layer(weight: Tensor, shift: Tensor) -> Tensor:
        found: Tensor = deq(lambda z: torch.tanh(z @ weight.T + shift), torch.zeros_like(shift))[0][-1]
        return found

    inputs = ((0.6 * contraction()[:2, :2]).requires_grad_(), noise(2, 2, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(layer, inputs)


def test_gradients_are_those_of_torchdeqs_own_solvers() -> None:
    found = []
    for name in ("fixed_point_iter", *NAMES):
        weight = contraction().requires_grad_()
        deq = get_deq(f_solver=name, b_solver=name, **TIGHT)
        (z,), _ = deq(lambda z, w=weight: torch.tanh(z @ w.T + 1), torch.zeros(3, 5, dtype=torch.float64))
        found.append(torch.autograd.grad(z.square().sum(), weight)[0])
    for other in found[1:]:
        assert torch.allclose(other, found[0], rtol=1e-11, atol=1e-12)


@EACH
@CORES
def test_a_small_model_trains(name: str, core: str) -> None:
    torch.manual_seed(0)
    cell, readout = torch.nn.Linear(8, 8), torch.nn.Linear(8, 1)
    with torch.no_grad():
        cell.weight.mul_(0.5)
    inputs = noise(16, 8).float()
    target = inputs.sum(dim=1, keepdim=True).sin()
    deq = get_deq(core=core, f_solver=name, b_solver=name, ift=True, f_tol=1e-5, b_tol=1e-6)
    optimizer = torch.optim.Adam([*cell.parameters(), *readout.parameters()], lr=1e-2)
    losses = []
    for _ in range(15):
        z = deq(lambda z: torch.tanh(cell(z) + inputs), torch.zeros_like(inputs))[0][-1]
        loss = (readout(z) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


@EACH
@pytest.mark.parametrize("mode", ["abs", "rel"])
@pytest.mark.parametrize("max_iter", [3, 100])
def test_what_is_reported_is_of_the_point_returned(name: str, mode: str, max_iter: int) -> None:
    problem = tanh_cell(gain=0.8, seed=3)
    solver = as_torchdeq_solver(name.removeprefix("fixedpoint-"))
    z, trajectory, info = solver(problem, problem.initial(), max_iter=max_iter, tol=1e-6, stop_mode=mode)
    assert trajectory == []
    fz = problem(z)
    absolute = (fz - z).norm(dim=1)
    assert torch.allclose(info["abs_lowest"], absolute, rtol=1e-8)
    assert torch.allclose(info["rel_lowest"], absolute / fz.norm(dim=1), rtol=1e-8)
    for kind in ("abs", "rel"):
        trace = info[f"{kind}_trace"]
        assert trace.shape == (4, max_iter + 1)
        assert torch.equal(trace[:, 0], torch.full((4,), 1e8, dtype=torch.float64))
        assert torch.equal(trace.gather(1, info["nstep"].long()[:, None])[:, 0], info[f"{kind}_lowest"])
        assert torch.equal(trace[:, -1], info[f"{kind}_lowest"]) or max_iter == 3
    if max_iter == 100:
        assert float(info[f"{mode}_lowest"].max()) <= 1e-6
        before = info[f"{mode}_trace"].gather(1, info["nstep"].long()[:, None] - 1)
        assert float(before.min()) > 1e-6


@EACH
def test_shapes_are_those_of_torchdeqs_own(name: str) -> None:
    problem = tanh_cell(gain=0.8, seed=3)
    table = torchdeq("solver")
    register()
    (z, _, ours), (x, _, theirs) = (
        table.get_solver(key)(problem, problem.initial(), max_iter=20) for key in (name, "fixed_point_iter")
    )
    assert type(ours) is type(theirs)
    assert set(ours) == set(theirs)
    assert {key: ours[key].shape for key in ours} == {key: theirs[key].shape for key in theirs}
    assert z.shape == x.shape


def test_a_row_depends_on_no_other() -> None:
    problem = tanh_cell(gain=0.8, seed=3)
    solver = as_torchdeq_solver("anderson")
    whole, _, info = solver(problem, problem.initial(), tol=1e-2)
    for row in range(4):
        one = problem.take(torch.tensor([row]))
        alone, _, stat = solver(one, one.initial(), tol=1e-2)
        assert torch.equal(alone[0], whole[row])
        assert stat["nstep"][0] == info["nstep"][row]


@EACH
def test_several_states_are_sampled_on_the_way(name: str) -> None:
    problem = tanh_cell(gain=0.8, seed=3)
    solver = as_torchdeq_solver(name.removeprefix("fixedpoint-"))
    z, trajectory, _ = solver(problem, problem.initial(), max_iter=40, tol=1e-10, indexing=[1, 3, 40])
    first, third, last = trajectory
    assert torch.equal(first, problem.initial())
    assert torch.equal(third, solver(problem, problem.initial(), max_iter=3, tol=1e-10)[0])
    assert torch.equal(last, z)


@CORES
def test_all_states_come_out_though_the_solver_stops_early(core: str) -> None:
    shift = noise(4, 5, seed=1).requires_grad_()
    deq = get_deq(core=core, f_solver="fixedpoint-anderson", n_states=3, f_max_iter=60, f_tol=1e-8, ift=True)
    states, _ = deq(lambda z: 0.5 * torch.tanh(z) + shift, torch.zeros_like(shift))
    assert len(states) == 3
    assert torch.allclose(states[0], states[2], atol=1e-6)
    (found,) = torch.autograd.grad(states[-1].sum(), shift)
    slope = 0.5 * (1 - torch.tanh(states[-1].detach()) ** 2)
    assert torch.allclose(found, 1 / (1 - slope), atol=1e-5)


def test_return_final_goes_to_the_end() -> None:
    problem = affine_contraction((3.0, 0.5, -0.5), seed=4)
    calls = []

    def f(z: Tensor) -> Tensor:
        calls.append(z.clone())
        return problem(z)

    solver = as_torchdeq_solver("picard")
    z, (second,), info = solver(f, problem.initial(), max_iter=12, tol=1e-3, return_final=True, indexing=[2])
    assert len(calls) == 12
    assert torch.equal(z, calls[-1])
    assert torch.equal(second, calls[1])
    assert info["nstep"].tolist() == [12.0] * 4
    assert torch.allclose(info["abs_lowest"], (problem(z) - z).norm(dim=1))


def test_several_tensors_are_one_state() -> None:
    register()
    shift = noise(3, 2, 4, seed=1)
    start = (torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 2, 4, dtype=torch.float64))
    deq = get_deq(f_solver="fixedpoint-anderson", f_tol=1e-12, f_max_iter=100).eval()
    (found,), info = deq(lambda a, b: (0.5 * b.mean(dim=2), 0.3 * a[:, :, None] + 0.2 * b.sin() + shift), start)
    a, b = found
    assert torch.allclose(a, 0.5 * b.mean(dim=2), atol=1e-11)
    assert torch.allclose(b, 0.3 * a[:, :, None] + 0.2 * b.sin() + shift, atol=1e-11)
    assert info["nstep"].shape == (3,)


def test_states_of_any_shape() -> None:
    solver = as_torchdeq_solver("broyden")
    for shape in ((), (3,), (2, 3, 4), (2, 1, 2, 2)):
        z, _, info = solver(torch.cos, torch.zeros(shape, dtype=torch.float64), tol=1e-10)
        assert z.shape == shape
        assert torch.allclose(z, torch.full(shape, 0.7390851332151607, dtype=torch.float64), atol=1e-9)
        assert info["abs_lowest"].shape == (shape[0] if shape else 1,)
    strided = torch.zeros(4, 3).T
    assert solver(torch.cos, strided)[0].shape == (3, 4)


def test_no_iterations_give_the_start_back() -> None:
    """What pure unrolling in torchdeq requires: f_max_iter=0 and a few steps of phantom gradient."""
    shift = noise(2, 3).requires_grad_()
    deq = get_deq(f_solver="fixedpoint-anderson", f_max_iter=0, grad=2)
    (z,), info = deq(lambda z: 0.5 * z + shift, torch.zeros_like(shift))
    assert torch.allclose(z, 1.5 * shift)
    assert info["nstep"].tolist() == [0.0, 0.0]
    assert info["abs_lowest"].shape == (2,)


def test_the_spectral_radius_is_torchdeqs_business() -> None:
    deq = get_deq(f_solver="fixedpoint-broyden").eval()
    _, info = deq(lambda z: 0.5 * z + 1, torch.zeros(2, 3), sradius_mode=True)
    assert torch.allclose(info["sradius"], torch.tensor([0.5, 0.5]))


def test_options_by_our_names_or_torchdeqs() -> None:
    problem = tanh_cell(gain=0.8, seed=3)

    def steps(**options: Any) -> list[float]:
        info = as_torchdeq_solver("anderson")(problem, problem.initial(), tol=1e-10, max_iter=100, **options)[2]
        found: list[float] = info["nstep"].tolist()
        return found

    assert steps(m=1) == steps(memory=1) != steps()
    assert steps(tau=0.5) == steps(relaxation=0.5) != steps()
    assert steps(m=None, f_tol=1.0, core="sliced", gamma=0.8) == steps()
    one = as_torchdeq_solver(fp.Anderson(memory=1))(problem, problem.initial(), tol=1e-10, max_iter=100)[2]
    assert one["nstep"].tolist() == steps(memory=1)
    assert as_torchdeq_solver("broyden")(problem, problem.initial(), LBFGS_thres=2)[2]["nstep"].shape == (4,)


def test_unknown_options_are_refused_with_the_nearest() -> None:
    register()
    deq = get_deq(f_solver="fixedpoint-anderson").eval()
    for wrong, hint in (("memroy", 'did you mean "memory"'), ("lam", "known: LBFGS_thres, ")):
        with pytest.raises(TypeError, match=f"Anderson: unknown option '{wrong}'; {hint}"):
            deq(torch.cos, torch.zeros(2, 3), solver_kwargs={wrong: 2})
    with pytest.raises(TypeError, match="Picard: unknown option 'm'"):
        as_torchdeq_solver("picard")(torch.cos, torch.zeros(2, 3), m=3)


def test_the_options_passed_over_are_those_of_torchdeqs_parser() -> None:
    parser = argparse.ArgumentParser()
    torchdeq().add_deq_args(parser)
    theirs = set(vars(parser.parse_args([])))
    assert theirs - GLOBALS == {"tau", "indexing"}  # of a solver, too
    assert GLOBALS - theirs == {"no_stat"}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"stop_mode": "both"}, "stop_mode must be 'abs' or 'rel', got 'both'"),
        ({"max_iter": -1}, "max_iter must be a whole number, 0 or more, got -1"),
        ({"max_iter": 2.5}, "max_iter must be a whole number"),
        ({"tol": -1.0}, "atol must be at least 0"),
        ({"tol": 2.0, "stop_mode": "rel"}, "rtol must be less than 1"),
    ],
    ids=str,
)
def test_bad_values_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        as_torchdeq_solver("picard")(torch.cos, torch.zeros(2, 3), **wrong)


def test_what_is_no_step_solver_is_refused() -> None:
    for wrong in ("chain", "serial", "torchdeq-picard"):
        with pytest.raises(TypeError, match="torchdeq requires a step solver"):
            as_torchdeq_solver(wrong)
    with pytest.raises(TypeError, match="x0 must be a tensor, got list"):
        as_torchdeq_solver("picard")(torch.cos, [torch.zeros(2, 3)])  # type: ignore[arg-type]


def test_solvers_with_options_of_their_own_serve_backwards() -> None:
    names = register(deep=fp.Anderson(memory=9))
    assert set(names) >= {*NAMES, "fixedpoint-deep"}
    deq = torchdeq().get_deq(f_solver="fixedpoint-anderson", b_solver="fixedpoint-deep", ift=True)
    assert deq.b_solver.solver == fp.Anderson(memory=9)
    assert not any("chain" in name or "serial" in name or "torchdeq-" in name for name in names)


def test_strangers_step_solvers_come_along() -> None:
    class Plugin:
        """Brings a solver that torchdeq can have, and one that cannot be imported."""

        @hookimpl
        def fixedpoint_solvers(self) -> list[Component]:
            return [Component("mine", fp.Picard), Component("broken", "no_such_module:Solver")]

    plugin = Plugin()
    registry.register(plugin, name="strangers")
    try:
        names = register()
    finally:
        registry.unregister(plugin)
    assert "fixedpoint-mine" in names
    assert "fixedpoint-broken" not in names


def test_get_deq_leaves_the_callers_configuration_alone() -> None:
    config = {"f_tol": 1e-5}
    assert get_deq(config, f_solver="fixedpoint-anderson").f_tol == 1e-5
    assert config == {"f_tol": 1e-5}
    namespace = argparse.Namespace(f_max_iter=7)
    assert get_deq(namespace, f_solver="fixedpoint-picard").f_max_iter == 7
    assert vars(namespace) == {"f_max_iter": 7}
    assert get_deq(torchdeq("utils.config").DEQConfig({"f_max_iter": 9})).f_max_iter == 9
    with pytest.raises(UnknownComponentError, match=r"'fixedpoint-andersn'; did you mean .fixedpoint-anderson."):
        get_deq(f_solver="fixedpoint-andersn")


def test_failing_to_converge_is_said() -> None:
    growing = affine_contraction((3.0, 0.5, -0.5), seed=4)
    _, _, info = as_torchdeq_solver("picard")(growing, growing.initial(), max_iter=5)
    assert info.status == (Status.MAX_ROUNDS,) * 4
    assert "limit on rounds" in info.message
    assert info.counts.rounds == 5


def test_half_precision() -> None:
    cell = tanh_cell(gain=0.8, seed=3).astype(torch.bfloat16)
    z, _, info = as_torchdeq_solver("anderson")(cell, cell.initial(), tol=2e-2, stop_mode="rel")
    assert z.dtype == torch.bfloat16
    assert info["rel_lowest"].dtype == torch.float32
    assert float(info["rel_lowest"].max()) <= 2e-2
