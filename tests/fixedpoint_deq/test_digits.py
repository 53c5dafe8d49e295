"""The digits task: data, what a record has, that it learns, and that a training goes on to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fixedpoint
from fixedpoint.registry import registry
from fixedpoint.tasks.task import Context, Result
from fixedpoint_deq.data import SPLITS, digits
from fixedpoint_deq.model import Cell, Classifier, Repeated
from fixedpoint_deq.task import DigitsDEQ, bytes_saved
from fixedpoint_deq.training import Recipe, Training

SMALL = DigitsDEQ(channels=8, epochs=1, batch=128, held_out_rtol=0.1)
ROUGH = fixedpoint.Termination(rtol=0.1, max_rounds=30)


def context(solver: str = "anderson", gradient: Any = None, seed: int = 0) -> Context:
    estimator = registry.create("gradient", gradient or {"name": "implicit", "termination": {"rtol": 0.1}})
    return Context(solver=registry.create("solver", solver), termination=ROUGH, seed=seed, gradient=estimator)


def run(task: DigitsDEQ, *arguments: Any, **options: Any) -> Result:
    return task.run(context(*arguments, **options))


def test_every_image_is_held_out_once() -> None:
    splits = [digits(number) for number in range(SPLITS)]
    assert sum(len(split.held_out_images) for split in splits) == 1797
    for split in splits:
        assert len(split.images) + len(split.held_out_images) == 1797
        assert split.images.shape[1:] == (1, 8, 8)
        assert abs(float(split.images.mean())) < 1e-5
        assert float(split.images.std()) == pytest.approx(1, abs=1e-5)
        counts = torch.bincount(split.held_out_labels, minlength=10)
        assert int(counts.min()) >= 34
    seen = torch.cat([split.held_out_images * 1 for split in splits]).flatten(1)
    assert len(torch.unique(seen, dim=0)) > 1780


def test_it_learns_and_says_what_it_took() -> None:
    result = run(replace(SMALL, epochs=2, batch=64, learning_rate=1e-2))
    assert result.metrics["accuracy"] > 0.7
    assert result.metrics["loss"] < 1
    assert result.rounds == pytest.approx(result.metrics["rounds_a_step"] * 2 * 22, rel=1e-9)
    assert result.evaluations <= result.rounds * 64
    assert result.metrics["products_a_step"] > 1
    assert 0.1 < result.metrics["spectral_radius"] < 3
    assert result.seconds == pytest.approx(result.metrics["seconds_a_step"] * 44)
    assert sum(result.status.values()) == 64
    assert list(result.epochs) == ["accuracy", "loss", "rounds", "products"]
    assert result.epochs["accuracy"][-1] == result.metrics["accuracy"]
    assert (np.diff(result.epochs["loss"]) < 0).all()


def test_a_display_is_told_of_every_step() -> None:
    told: list[Any] = []
    result = SMALL.run(replace(context(), on_round=told.append))
    assert len(told) == 1437 // 128
    assert told[-1].round == result.rounds
    assert [each.round for each in told] == sorted({each.round for each in told})
    assert all(0 < each.relative_error < 10 for each in told)


def test_seeds_differ_and_repeat() -> None:
    first, again, other = run(SMALL), run(SMALL), run(SMALL, seed=1)
    for name in ("accuracy", "loss", "rounds_a_step", "saved_mb"):
        assert first.metrics[name] == again.metrics[name]
    assert first.metrics["loss"] != other.metrics["loss"]


@pytest.mark.parametrize(
    ("gradient", "products"),
    [
        ("one-step", False),
        ("unrolled", True),  # those that complete the derivatives of solved rows
        ({"name": "unrolled", "complete": False}, False),
        ({"name": "phantom", "steps": 2}, False),
    ],
)
def test_any_gradient_trains_it(gradient: Any, products: bool) -> None:
    result = run(SMALL, gradient=gradient)
    assert result.metrics["accuracy"] > 0.3
    assert (result.metrics["products_a_step"] > 0) == products


def test_unrolling_saves_what_implicit_does_not() -> None:
    saved = {name: run(SMALL, "picard", name).metrics["saved_mb"] for name in ("implicit", "unrolled")}
    assert saved["unrolled"] > 1.5 * saved["implicit"]


def test_warm_starts_dropout_and_penalty() -> None:
    more = replace(SMALL, epochs=2, warm_start=True, dropout=0.2, jacobian=0.5)
    assert run(more).metrics["accuracy"] > 0.3
    plain, kept = run(SMALL), run(replace(SMALL, jacobian=3.0))
    assert kept.metrics["spectral_radius"] < plain.metrics["spectral_radius"]


def test_what_autograd_holds_is_counted_once() -> None:
    x = torch.randn(1000, requires_grad=True)
    assert bytes_saved(lambda: x * x + x * x) == 4000
    assert bytes_saved(lambda: x.exp().exp()) == 8000


def test_a_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    task = replace(SMALL, epochs=2, dropout=0.1, warm_start=True)

    def begun() -> Training:
        torch.manual_seed(0)
        return task.training(context())

    whole = begun()
    epochs = [whole.run_epoch(), whole.run_epoch()]
    stopped = begun()
    stopped.run_epoch()
    stopped.save(tmp_path / "checkpoint.safetensors")
    torch.rand(7)
    resumed = begun()
    resumed.restore(tmp_path / "checkpoint.safetensors")
    last = resumed.run_epoch()
    assert (last.number, last.loss, last.accuracy) == (2, epochs[1].loss, epochs[1].accuracy)
    for one, two in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: DigitsDEQ(channels=10), "channels must be a multiple of 4, got 10"),
        (lambda: DigitsDEQ(split=5), "split must be at most 4, got 5"),
        (lambda: replace(SMALL, batch=2000).training(context()), "a batch of 2000 is more than the 1437 images"),
    ],
)
def test_bad_input_is_a_sentence(act: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        act()


def test_another_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    replace(SMALL, epochs=2).training(context()).save(path)
    with pytest.raises(ValueError, match="belongs to another training: epochs is 2 there, and 1 here"):
        SMALL.training(context()).restore(path)
    with pytest.raises(ValueError, match=r"another training: solver is Anderson\(.*\) there, and Broyden\(.*\) here"):
        replace(SMALL, epochs=2).training(context("broyden")).restore(path)
    with pytest.raises(ValueError, match=r"another training: task is .*split=0.* there, and .*split=1.* here"):
        replace(SMALL, epochs=2, split=1).training(context()).restore(path)
    training = replace(SMALL, epochs=2).training(context())
    training.model = Classifier(Repeated(Cell(4), 2), 4)
    with pytest.raises(ValueError, match="belongs to another model"):
        training.restore(path)
    path.write_bytes(b"nothing at all")
    with pytest.raises(ValueError, match="is no checkpoint, or a damaged one"):
        SMALL.training(context()).restore(path)


def test_the_explicit_network_is_the_cell_over_and_over() -> None:
    cell = Cell(8).double()
    x = torch.randn(2, 8, 8, 8, dtype=torch.float64)
    z = torch.zeros_like(x)
    for _ in range(3):
        z = cell(z, x)
    torch.testing.assert_close(Repeated(cell, 3)(x), z)
    model = Classifier(Repeated(cell, 3), 8).double()
    assert model(torch.randn(2, 1, 8, 8, dtype=torch.float64)).shape == (2, 10)
    training = Training(Classifier(Repeated(Cell(8), 2), 8), digits(0), Recipe(epochs=1, batch=256))
    assert training.run_epoch().row().keys() == {"epoch", "loss", "accuracy", "seconds"}


@pytest.mark.parametrize("gradient", ["implicit", "unrolled"])
def test_the_gradient_of_the_classifier_is_that_of_finite_differences(gradient: str) -> None:
    torch.manual_seed(0)
    rule = fixedpoint.Termination(rtol=1e-12, max_rounds=500)
    estimator = fixedpoint.Implicit(termination=rule) if gradient == "implicit" else fixedpoint.Unrolled()
    made = Context(solver=fixedpoint.Anderson(), termination=rule, seed=0, gradient=estimator)
    training = DigitsDEQ(channels=4, epochs=1).training(made)
    training.model.double()
    training.data = replace(training.data, images=training.data.images[:8].double(), labels=training.data.labels[:8])
    weight = training.model.body.cell.conv_1.weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (slope,) = torch.autograd.grad(training.loss(torch.arange(8)), weight)
    step = 1e-7  # units that change sides on the way would be seen
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            weight += sign * step * direction
            values.append(float(training.loss(torch.arange(8))))
            weight -= sign * step * direction
    assert float((slope * direction).sum()) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)
