"""Epochs as lines: what is drawn of which record, and where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fixedpoint.config.files import SCHEMA
from fixedpoint.config.folder import CellRow
from fixedpoint.config.record import Record
from fixedpoint.report.learning import learning_figure, learnings_of
from fixedpoint.report.palette import strokes
from fixedpoint.report.plot import png
from fixedpoint.report.reading import Entry, Group


def entry(solver: str, gradient: str | None, seed: int = 0, task: str = "t", **epochs: Any) -> Entry:
    fields = {"hash": "0", "labels": {}, "config": {}, "seed": seed, "status": "ok"}
    more = {"threads": 1, "versions": {}, "machine": {}, "started": "", "finished": ""}
    record = Record.model_validate({"schema_version": SCHEMA, **fields, **more})
    arrays = {f"epochs.{name}": np.array(values, dtype=float) for name, values in epochs.items()}
    return Entry(CellRow(hash="0", task=task, solver=solver, gradient=gradient, seed=seed), record, arrays=arrays)


def groups(*entries: Entry) -> list[Group]:
    keys = dict.fromkeys((each.cell.task, each.cell.gradient) for each in entries)
    return [
        Group(task, gradient, tuple(e for e in entries if (e.cell.task, e.cell.gradient) == (task, gradient)))
        for task, gradient in keys
    ]


def test_a_row_a_number_a_column_an_estimator_a_line_a_solver() -> None:
    made = groups(
        *(
            entry(solver, gradient, seed, accuracy=[0.5, 0.75 + 0.1 * seed], loss=[2, 1])
            for gradient in ("implicit", "one-step")
            for solver in ("picard", "anderson")
            for seed in (0, 1)
        )
    )
    (learning,) = learnings_of(made)
    assert (learning.columns, learning.names) == (("implicit", "one-step"), ("accuracy", "loss"))
    assert learning.solvers == ["picard", "anderson"]
    figure = learning_figure(learning, strokes(learning.solvers, learning.solvers))
    panels = figure.axes
    assert len(panels) == 4
    assert [axes.get_title(loc="left") for axes in panels] == ["implicit", "one-step", "", ""]
    assert [panels[0].get_ylabel(), panels[2].get_ylabel()] == ["accuracy", "loss"]
    means = [line.get_ydata() for line in panels[0].lines if len(line.get_ydata()) == 2 and line.get_alpha() is None]
    np.testing.assert_allclose(means, [[0.5, 0.8]] * 2)
    assert png(figure)[:4] == b"\x89PNG"


@pytest.mark.parametrize(("count", "columns", "panels"), [(1, 4, 1), (3, 2, 4), (5, 4, 8)])
def test_many_estimators_go_on_below(count: int, columns: int, panels: int) -> None:
    (learning,) = learnings_of(groups(*(entry("picard", f"g{i}", loss=[3, 2, 1]) for i in range(count))))
    figure = learning_figure(learning, strokes(["picard"], ["picard"]), columns)
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(figure.axes) == panels
    assert [axes.get_title(loc="left") for axes in shown] == [f"g{i}" for i in range(count)]
    assert all(axes.get_xlabel() == "epoch" for axes in shown)


def test_tasks_without_epochs_have_none_and_seeds_may_end_early() -> None:
    assert learnings_of(groups(entry("picard", None))) == []
    made = groups(entry("picard", None, loss=[1, 2]), entry("picard", None, 1, loss=[1]), entry("x", None, task="u"))
    (learning,) = learnings_of(made)
    assert learning.task == "t"
    assert learning.columns == ("",)
    learning_figure(learning, strokes(["picard"], ["picard"]))
