import copy
import warnings
from typing import Any

import pytest
import torch
from layer_cells import TanhCell, TwoScales, draw
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fixedpoint import ConvergenceError, Picard, Termination
from fixedpoint.layers import EquilibriumLayer, EquilibriumWarning, WarmStart

TIGHT = {"training": Termination(rtol=1e-12), "evaluation": Termination(rtol=1e-12)}
X = draw(7, 3, 6)


def repeated(cell: nn.Module, x: torch.Tensor, times: int = 400) -> torch.Tensor:
    z = torch.zeros_like(x)
    for _ in range(times):
        z = cell(z, x)
    return z


@pytest.mark.parametrize("solver", ["anderson", "broyden", "picard", "auto"])
@pytest.mark.parametrize(
    "gradient",
    [None, {"name": "implicit", "termination": {"rtol": 1e-12}}, "unrolled", {"name": "neumann", "terms": 200}],
)
def test_the_layer_is_the_cell_without_end(solver: str, gradient: Any) -> None:
    cell = TanhCell()
    layer = EquilibriumLayer(cell, solver=solver, gradient=gradient, **TIGHT)
    x = X.clone().requires_grad_()
    z = layer(x)
    torch.testing.assert_close(z, repeated(cell, x), rtol=1e-9, atol=1e-9)
    weights = [x, *cell.parameters()]
    found = torch.autograd.grad(z.square().sum(), weights)
    wanted = torch.autograd.grad(repeated(cell, x).square().sum(), weights)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_states_of_several_tensors() -> None:
    cell = TwoScales()
    layer = EquilibriumLayer(cell, lambda x: (torch.zeros_like(x), x.new_zeros(len(x), 2)), **TIGHT)
    x = draw(3, 5, 4).requires_grad_()
    fine, coarse = layer(x)
    again = cell((fine, coarse), x)
    torch.testing.assert_close(again, (fine, coarse), rtol=1e-10, atol=1e-10)
    (coarse.sum() + fine.square().sum()).backward()
    assert x.grad is not None
    assert all(parameter.grad.abs().sum() > 0 for parameter in cell.parameters())


def test_training_and_evaluation_have_terminations_and_statistics_of_their_own() -> None:
    layer = EquilibriumLayer(
        TanhCell(), training=Termination(rtol=1e-2), evaluation=Termination(rtol=1e-10), solver="picard"
    )
    z = layer(X)
    z.sum().backward()
    layer.eval()
    with torch.no_grad():
        layer(X)
        layer(X)
    trained, evaluated = layer.statistics["training"], layer.statistics["evaluation"]
    assert (trained.solves, trained.rows, evaluated.solves, evaluated.rows) == (1, 3, 2, 6)
    assert trained.means()["error"] <= 1e-2
    assert evaluated.means()["error"] <= 1e-10
    assert evaluated.means()["rounds"] > 3 * trained.means()["rounds"]
    assert trained.backwards == 1
    assert trained.means()["products"] >= 1
    assert "products" not in evaluated.means()
    trained.reset()
    assert trained.means() == {}


def test_several_forwards_before_one_backward_are_all_counted() -> None:
    layer = EquilibriumLayer(TanhCell())
    total = sum(layer(X + shift).sum() for shift in (0.0, 0.1, 0.2))
    total.backward()
    statistics = layer.statistics["training"]
    assert statistics.means()["products"] > 1
    assert statistics.backwards == 3
    assert statistics.adjoint_rows == 9


@pytest.mark.parametrize("gradient", [{"name": "implicit", "termination": {"rtol": 1e-12}}, "checkpointed-unrolled"])
def test_dropout_is_the_same_mask_in_a_solve_and_its_backward_pass(gradient: Any) -> None:
    """The fixed point of a masked cell, and its gradient, for each solve its own mask."""
    torch.manual_seed(3)
    cell = TanhCell(dropout=0.4)
    layer = EquilibriumLayer(cell, gradient=gradient, **TIGHT)
    first, second = layer.solve(X), layer.solve(X)
    assert first.solution.converged.all()
    torch.testing.assert_close(first.f(first.z), first.z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(second.f(second.z), second.z, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(first.z, second.z)
    found = torch.autograd.grad(first.z.sum() + second.z.square().sum(), cell.linear.weight)[0]

    def unrolled(f: Any) -> torch.Tensor:
        z = torch.zeros_like(X)
        for _ in range(300):
            z = f(z)
        return z

    value = unrolled(first.f).sum() + unrolled(second.f).square().sum()
    (wanted,) = torch.autograd.grad(value, cell.linear.weight)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def test_the_random_stream_goes_on_by_one_call() -> None:
    """After a solve the generator is where one call of the cell leaves it."""
    for share in (0.4, 0.0):
        cell = TanhCell(dropout=share)
        layer = EquilibriumLayer(cell, **TIGHT)
        torch.manual_seed(11)
        layer(X)
        after = torch.rand(3)
        torch.manual_seed(11)
        cell(X, X)
        assert torch.equal(torch.rand(3), after)


def test_in_evaluation_mode_nothing_is_dropped() -> None:
    layer = EquilibriumLayer(TanhCell(dropout=0.4), **TIGHT).eval()
    torch.testing.assert_close(layer(X), layer(X), rtol=0, atol=0)


def test_batch_normalisation_is_refused_in_training_mode_only() -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(6, dtype=torch.float64)

        def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return 0.5 * self.norm(z) + x

    layer = EquilibriumLayer(Cell())
    with pytest.raises(ValueError, match="norm is BatchNorm1d in training mode: it mixes the rows"):
        layer(X)
    layer.eval()
    assert layer(X).shape == X.shape


def test_failures_are_told() -> None:
    short = {"training": Termination(rtol=1e-12, max_rounds=2), "solver": "picard"}
    with pytest.warns(EquilibriumWarning, match="3 of 3 rows of an equilibrium layer did not converge"):
        EquilibriumLayer(TanhCell(), **short)(X)
    with pytest.raises(ConvergenceError, match="did not converge"):
        EquilibriumLayer(TanhCell(), on_failure="raise", **short)(X)
    layer = EquilibriumLayer(TanhCell(), on_failure="ignore", **short)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(X)
    assert layer.statistics["training"].unsolved == 3


def test_warm_starts_take_fewer_rounds_to_the_same_answer() -> None:
    cell = TanhCell(gain=0.95)
    warm = EquilibriumLayer(cell, warm_start=WarmStart(10, 6, torch.float64), solver="picard", **TIGHT)
    samples = torch.tensor([4, 0, 9])
    first = warm.solve(X, samples=samples)
    again = warm.solve(X, samples=samples)
    assert again.solution.rounds.max() == 1 < first.solution.rounds.min()
    torch.testing.assert_close(again.z, first.z, rtol=1e-10, atol=1e-10)
    other = warm.solve(X, samples=torch.tensor([1, 0, 2]))
    assert other.solution.rounds[0] == first.solution.rounds[0]
    assert warm.warm_start is not None
    assert warm.warm_start.seen.sum() == 5
    warm.eval()
    warm(X[:1], samples=torch.tensor([7]))
    assert warm.warm_start.seen.sum() == 5
    warm.warm_start.forget()
    assert warm.solve(X[:1], samples=samples[:1]).solution.rounds[0] > 1


def test_rows_that_were_cut_short_are_gone_on_with_and_lost_ones_begin_anew() -> None:
    class Running(TanhCell):
        def forward(self, z: torch.Tensor, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
            return gain * z + super().forward(0.0 * z, x)

    layer = EquilibriumLayer(
        Running(),
        warm_start=WarmStart(3, 6, torch.float64),
        training=Termination(rtol=1e-12, max_rounds=12, divergence=10),
        solver="picard",
        on_failure="ignore",
    )
    gain = torch.tensor([[0.01], [0.9], [2.0]], dtype=torch.float64)
    first = layer.solve(X, gain, samples=torch.arange(3))
    assert [status.label for status in first.solution.status] == ["converged", "max_rounds", "diverged"]
    assert layer.warm_start is not None
    assert layer.warm_start.seen.tolist() == [True, True, False]
    again = layer.solve(X, gain, samples=torch.arange(3))
    assert again.solution.relative_error[1] < 0.5 * first.solution.relative_error[1]
    assert again.solution.rounds[2] == first.solution.rounds[2]


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: EquilibriumLayer(torch.tanh), "cell must be a torch.nn.Module, got builtin"),
        (lambda: EquilibriumLayer(TanhCell(), 3), "state must be a function of the inputs, got int"),
        (lambda: EquilibriumLayer(TanhCell(), solver="andersen"), 'did you mean "anderson"'),
        (lambda: EquilibriumLayer(TanhCell(), corrections=(3, 2)), "increasing numbers of rounds, from 1, got"),
        (lambda: EquilibriumLayer(TanhCell(), corrections=(0,)), "increasing numbers of rounds, from 1, got"),
        (lambda: EquilibriumLayer(TanhCell(), on_failure="shout"), "must be 'warn', 'raise' or 'ignore', got 'shout'"),
        (lambda: EquilibriumLayer(TanhCell())(), "at least one input"),
        (lambda: EquilibriumLayer(TanhCell())("x"), "requires a tensor among its inputs"),
        (lambda: EquilibriumLayer(TanhCell())(torch.arange(6)), "got torch.int64; say with state= what the state is"),
        (lambda: EquilibriumLayer(TanhCell())(X, samples=torch.arange(3)), "for a layer with a warm_start"),
        (lambda: EquilibriumLayer(TanhCell(), warm_start=WarmStart(3, 6))(X), "requires samples=, the numbers"),
        (
            lambda: EquilibriumLayer(TanhCell(), warm_start=WarmStart(3, 5))(X, samples=torch.arange(3)),
            "a state has 6 unknowns, and WarmStart room for 5",
        ),
        (
            lambda: EquilibriumLayer(TanhCell(), warm_start=WarmStart(3, 6))(X, samples=torch.ones(3)),
            "samples must be 3 integers, one a row, got torch.float32",
        ),
        (
            lambda: EquilibriumLayer(TanhCell(), warm_start=WarmStart(3, 6))(X, samples=torch.tensor([0, 1, 3])),
            "samples must be 0 to 2, got 3",
        ),
        (
            lambda: EquilibriumLayer(TanhCell(), warm_start=WarmStart(3, 6))(X, samples=torch.tensor([0, -1, 2])),
            "samples must be 0 to 2, got -1",
        ),
        (lambda: WarmStart(0, 5), "samples must be an integer of at least 1, got 0"),
    ],
)
def test_bad_input_is_a_sentence(act: Any, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        act()


def test_corrections_are_states_on_the_way() -> None:
    cell = TanhCell()
    layer = EquilibriumLayer(cell, solver="picard", corrections=(1, 3, 500), **TIGHT)
    found = layer.solve(X)
    assert len(found.corrections) == 3
    torch.testing.assert_close(found.corrections[2], found.z)
    for rounds, state in zip((1, 3), found.corrections, strict=False):
        torch.testing.assert_close(state, repeated(cell, X, rounds + 1), rtol=1e-12, atol=1e-12)
    before = repeated(cell, X, 3).detach()
    (wanted,) = torch.autograd.grad(cell(before, X).sum(), cell.linear.weight)
    (given,) = torch.autograd.grad(found.corrections[1].sum(), cell.linear.weight)
    torch.testing.assert_close(given, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("solver", ["anderson", "newton-krylov", "squarem", "auto"])
def test_there_are_as_many_corrections_as_were_asked_for(solver: str) -> None:
    """Solvers that tell no state in some rounds, and solves that end before, included."""
    found = EquilibriumLayer(TanhCell(), solver=solver, corrections=(1, 2, 3, 4, 600, 700), **TIGHT).solve(X)
    assert len(found.corrections) == 6
    torch.testing.assert_close(found.corrections[4:], (found.z, found.z), rtol=1e-9, atol=1e-9)
    left = [float((state - found.z).detach().norm()) for state in found.corrections]
    assert left[0] > left[3] > left[5]


def test_the_implicit_gradient_is_one_thing_and_follows_the_terminations_of_the_layer() -> None:
    def errors(gradient: Any, rule: Termination) -> tuple[int, float]:
        layer = EquilibriumLayer(TanhCell(), gradient=gradient, training=Termination(rtol=1e-1))
        layer.terminations["training"] = rule
        found = layer.solve(X)
        found.z.square().sum().backward()
        report = found.solution.extras["adjoint"]
        return int(report.products.sum()), float(report.relative_error.max())

    loose, tight = Termination(rtol=1e-2, max_rounds=50), Termination(rtol=1e-10, max_rounds=50)
    for rule in (loose, tight):
        default = errors(None, rule)
        assert default == errors("implicit", rule) == errors({"name": "implicit"}, rule)
        assert default[1] <= rule.rtol
    assert errors(None, loose)[0] < errors(None, tight)[0]


def test_layers_are_copied_averaged_converted_and_saved() -> None:
    layer = EquilibriumLayer(TanhCell(), warm_start=WarmStart(3, 6, torch.float64, persistent=True), **TIGHT)
    layer(X, samples=torch.arange(3)).sum().backward()
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(twin.eval()(X), layer.eval()(X), rtol=1e-10, atol=1e-10)
    averaged = AveragedModel(layer)
    averaged.update_parameters(layer)
    torch.testing.assert_close(averaged.module.eval()(X), layer(X), rtol=1e-10, atol=1e-10)
    single = copy.deepcopy(layer).float().eval()
    single.terminations["evaluation"] = Termination(rtol=1e-5)
    torch.testing.assert_close(single(X.float()).double(), layer(X), rtol=1e-4, atol=1e-4)
    other = EquilibriumLayer(TanhCell(seed=5), warm_start=WarmStart(3, 6, torch.float64, persistent=True), **TIGHT)
    other.load_state_dict(layer.state_dict())
    assert other.solve(X, samples=torch.arange(3)).solution.rounds.max() == 1
    assert "picard" in repr(EquilibriumLayer(TanhCell(), solver="picard")).lower()


def test_second_derivatives_go_through_a_layer() -> None:
    layer = EquilibriumLayer(TanhCell(size=3), gradient={"name": "implicit", "termination": {"rtol": 1e-12}}, **TIGHT)
    x = draw(2, 2, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(layer, (x,), atol=1e-5)


class Sized(TanhCell):
    """Notes how many rows it is called with."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sizes: list[int] = []

    def forward(self, z: torch.Tensor, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(z))
        return torch.tanh(gain * self.linear(self.dropout(z)) + x)


GAINS = torch.tensor([0.0, 0.3, 0.7, 1.1], dtype=torch.float64).unsqueeze(1)


def test_rows_that_are_done_are_left_out_of_the_calls() -> None:
    cell = Sized()
    layer = EquilibriumLayer(cell, solver="picard", **TIGHT)
    x = draw(5, 4, 6)
    found = layer.solve(x, GAINS)
    sizes = cell.sizes[:-1]  # the last one is what autograd recorded
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1], cell.sizes[-1]) == (4, 1, 4)
    assert sum(cell.sizes) == found.solution.evaluations.sum() == found.solution.counts.computed
    for row in range(4):
        alone = layer.solve(x[row : row + 1], GAINS[row : row + 1])
        torch.testing.assert_close(alone.z[0], found.z[row], rtol=1e-12, atol=1e-12)
        assert alone.solution.rounds[0] == found.solution.rounds[row]


def test_rows_of_a_cell_that_drops_keep_their_masks() -> None:
    torch.manual_seed(0)
    cell = Sized(dropout=0.5)
    layer = EquilibriumLayer(cell, solver="picard", **TIGHT)
    found = layer.solve(draw(5, 4, 6), GAINS)
    assert found.solution.converged.all()
    assert set(cell.sizes) == {4}
    assert len(set(found.solution.rounds.tolist())) > 1
    torch.testing.assert_close(found.f(found.z), found.z, rtol=1e-10, atol=1e-10)


def test_what_has_another_first_dimension_belongs_to_every_row() -> None:
    class Shared(nn.Module):
        def forward(self, z: torch.Tensor, x: dict[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
            return torch.tanh(z @ weight + x["x"])

    weight = 0.3 * draw(0, 6, 6)
    found = EquilibriumLayer(Shared(), lambda x, _: torch.zeros_like(x["x"]), solver="picard", **TIGHT).solve(
        {"x": X * torch.tensor([[0.0], [1.0], [3.0]])}, weight
    )
    assert found.solution.converged.all()
    assert len(set(found.solution.rounds.tolist())) > 1


@pytest.mark.parametrize("solver", [{"name": "krylov", "method": "gmres"}, "picard", "anderson"], ids=str)
def test_rows_that_are_done_leave_the_adjoint_solve(solver: Any) -> None:
    """Once half of them are; the gradient is what it was."""
    cell = Sized(size=20)
    gradient = {"name": "implicit", "solver": solver, "termination": {"rtol": 1e-11}}
    layer = EquilibriumLayer(cell, solver="picard", gradient=gradient, **TIGHT)
    x = draw(5, 4, 20).requires_grad_()
    z = layer(x, GAINS)
    before = len(cell.sizes)
    found = torch.autograd.grad(z.square().sum(), [x, *cell.parameters()])
    assert cell.sizes[before:] in ([2, 1], [2], [1])
    again = torch.zeros_like(x)
    for _ in range(800):
        again = cell(again, x, GAINS)
    wanted = torch.autograd.grad(again.square().sum(), [x, *cell.parameters()])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


class Scaled(nn.Module):
    """``factor z + x``."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.factor * z + x


@pytest.mark.parametrize("call", ["forward", "solve"])
def test_a_warning_points_at_the_line_that_called_the_layer(call: str) -> None:
    layer = EquilibriumLayer(Scaled(2.0), solver=Picard(), training=Termination(max_rounds=3))
    x = torch.ones(2, 3)
    with pytest.warns(EquilibriumWarning) as caught:
        _ = layer(x) if call == "forward" else layer.solve(x)
    assert [warning.filename for warning in caught] == [__file__]


def test_a_start_that_is_given_goes_before_the_memory() -> None:
    layer = EquilibriumLayer(Scaled(0.5), solver=Picard(), warm_start=WarmStart(2, 3)).train()
    x, samples = torch.ones(2, 3), torch.tensor([0, 1])
    layer(x, samples=samples)
    assert layer.solve(x, samples=samples).solution.counts.rounds <= 2
    assert layer.solve(x, samples=samples, start=torch.full((2, 3), 1e3)).solution.counts.rounds > 10
