"""Errors of steps as colour: what is drawn of which record, where, and that one can read it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from fixedpoint.config.files import SCHEMA
from fixedpoint.config.folder import CellRow
from fixedpoint.config.record import Record
from fixedpoint.report.plot import png
from fixedpoint.report.reading import Entry, Group
from fixedpoint.report.steps import NARROW_GRID, WIDE_GRID, Grid, steps_figure, steps_of

NAN = np.nan


def entry(solver: str, errors: Any, rounds: Any = None, steps: Any = None, seed: int = 0) -> Entry:
    values: NDArray[Any] = np.array(errors, dtype=np.float32)
    arrays: dict[str, NDArray[Any]] = {
        "trace.step_errors": values,
        "trace.step_errors.rounds": np.array(range(1, values.shape[1] + 1) if rounds is None else rounds),
        "trace.step_errors.steps": np.array(range(1, values.shape[2] + 1) if steps is None else steps),
    }
    fields = {"hash": "0", "labels": {}, "config": {"termination": {"rtol": 1e-3}}, "seed": seed, "status": "ok"}
    more = {"threads": 1, "versions": {}, "machine": {}, "started": "", "finished": ""}
    record = Record.model_validate({"schema_version": SCHEMA, **fields, **more})
    return Entry(CellRow(hash="0", task="t", solver=solver, gradient=None, seed=seed), record, arrays=arrays)


def group(*entries: Entry) -> Group:
    return Group("t", None, entries)


def fading(rounds: int, steps: int) -> NDArray[np.float64]:
    """A front that moves along the chain."""
    behind = np.arange(rounds)[:, None] * steps / rounds - np.arange(steps)[None, :]
    return 10.0 ** -np.clip(behind / 3, 0, 9)


def panels(figure: Figure) -> list[Any]:
    return [axes for axes in figure.axes if axes.images]


def beyond(figure: Figure) -> list[Text]:
    """Labels of ticks that lie outside of their axis, which are not drawn."""
    found: list[Text] = []
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low <= tick.get_loc() <= high or not axis.get_visible():
                found += [tick.label1, tick.label2]
            else:
                found += [label for label in (tick.label1, tick.label2) if not label.get_visible()]
    return found


def test_the_first_row_of_the_first_seed_as_it_was_recorded() -> None:
    first = [[1.0, 0.5, NAN], [NAN, 0.1, 0.2]]
    shown = steps_of(group(entry("a", [first, [[9.0] * 3] * 2]), entry("b", [[[0.5]]]), entry("a", [[[7.0]]], seed=1)))
    assert [steps.solver for steps in shown] == ["a", "b"]
    np.testing.assert_array_equal(shown[0].errors, np.array(first, dtype=np.float32))


def test_a_row_that_ended_before_the_others_takes_no_room() -> None:
    (steps,) = steps_of(group(entry("a", [[[1.0, 1.0], [0.1, 0.1], [NAN, NAN]]], rounds=[4, 5, 6])))
    assert steps.rounds.tolist() == [4, 5]
    assert steps.extent == (0.5, 2.5, 5.5, 3.5)


@pytest.mark.parametrize(
    "damage",
    [
        {"trace.step_errors": np.ones((3, 4), dtype=np.float32)},
        {"trace.step_errors": np.zeros((1, 2, 2), dtype=np.float32)},
        {"trace.step_errors": np.ones((0, 2, 2), dtype=np.float32)},
        {"trace.step_errors.rounds": np.array([1, 2, 3])},
        {"trace.step_errors.steps": None},
    ],
)
def test_arrays_that_say_nothing_are_left_out(damage: dict[str, Any]) -> None:
    whole = entry("a", np.ones((1, 2, 2)))
    arrays = {name: values for name, values in {**whole.arrays, **damage}.items() if values is not None}
    assert steps_of(group(Entry(whole.cell, whole.record, arrays=arrays))) == []
    assert steps_of(group(Entry(whole.cell, whole.record))) == []
    assert steps_of(group(Entry(whole.cell, None))) == []


def test_colour_is_the_logarithm_on_one_scale_and_blank_stays_blank() -> None:
    one, other = fading(6, 10), fading(9, 10) * 2
    one[0, 7:] = NAN
    one[3, 2] = np.inf
    one[4, 1] = 0.0
    figure = steps_figure("t", steps_of(group(entry("a", [one]), entry("b", [other]))), 1e-3)
    first, second = (axes.images[0] for axes in panels(figure))
    assert first.norm is second.norm or (first.norm.vmin, first.norm.vmax) == (second.norm.vmin, second.norm.vmax)
    low, high = first.norm.vmin, first.norm.vmax
    assert low < 1e-3 < high
    np.testing.assert_array_equal(np.ma.getmaskarray(first.get_array()), np.isnan(one))
    colours = first.to_rgba(first.get_array())
    assert (colours[..., 3] == (~np.isnan(one))).all()
    shade = np.ma.getdata(first.norm(first.get_array()))[~np.isnan(one)]
    wanted = np.log(np.clip(one[~np.isnan(one)], low, high) / low) / np.log(high / low)
    np.testing.assert_allclose(shade, wanted, atol=1e-5)
    lightness = colours[..., :3] @ [0.2126, 0.7152, 0.0722]
    assert lightness[3, 2] > lightness[4, 1]  # infinite is light, none is dark
    marks = [line.get_xdata()[0] for axes in figure.axes if not axes.images for line in axes.lines]
    assert 1e-3 in marks


def test_rounds_go_down_on_one_scale_unless_one_would_vanish() -> None:
    alike = panels(steps_figure("t", steps_of(group(entry("a", [fading(10, 5)]), entry("b", [fading(40, 5)]))), 0.0))
    assert [axes.get_ylim() for axes in alike] == [(40.5, 0.5)] * 2
    unlike = panels(steps_figure("t", steps_of(group(entry("a", [fading(10, 5)]), entry("b", [fading(90, 5)]))), 0.0))
    assert [axes.get_ylim() for axes in unlike] == [(10.5, 0.5), (90.5, 0.5)]


def test_thinned_rounds_and_steps_stand_where_they_were() -> None:
    (steps,) = steps_of(group(entry("a", [fading(50, 25)], rounds=range(8, 401, 8), steps=range(4, 101, 4))))
    (axes,) = panels(steps_figure("t", [steps], 0.0))
    assert tuple(axes.images[0].get_extent()) == (0.5, 100.5, 400.5, 0.5)


@pytest.mark.parametrize("grid", [WIDE_GRID, NARROW_GRID])
@pytest.mark.parametrize("count", [1, 4, 8])
@pytest.mark.parametrize("name", ["chain (identity, anderson memory=3, window=30, one-jump, slack=0.3)", "x" * 70])
def test_nothing_is_cut_off_or_written_over(count: int, grid: Grid, name: str) -> None:
    entries = [entry(f"{name} {i}", [fading(20 + 9 * i, 100)]) for i in range(count)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = steps_figure("a task with a name", steps_of(group(*entries)), 1e-3, grid)
        figure.draw_without_rendering()
    assert len(panels(figure)) == count
    boxes = [axes.get_window_extent() for axes in panels(figure)]
    assert all(box.height > 0.5 * figure.dpi and box.width > 1.0 * figure.dpi for box in boxes)
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text not in beyond(figure)]
    drawn = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, drawn, strict=True):
        assert box.x0 >= -1, text
        assert box.x1 <= figure.bbox.width + 1, text
        assert box.y0 >= -1, text
        assert box.y1 <= figure.bbox.height + 1, text
        assert not any(box.overlaps(panel.padded(-1)) for panel in boxes), text
    clashes = [
        (one.get_text(), other.get_text())
        for i, (one, a) in enumerate(zip(texts, drawn, strict=True))
        for other, b in zip(texts[i + 1 :], drawn[i + 1 :], strict=True)
        if a.padded(-1).overlaps(b.padded(-1))
    ]
    assert clashes == []


@pytest.mark.parametrize("errors", [[[[1e-3]]], [[[np.inf, 1.0]]], [[[1e9, 1e9]]], [[[0.0, 1e-30]]], [[[np.inf]]]])
@pytest.mark.parametrize("tolerance", [0.0, 1e-12, 0.5])
def test_any_errors_can_be_drawn(errors: Any, tolerance: float) -> None:
    assert png(steps_figure("", steps_of(group(entry("a", errors))), tolerance))
