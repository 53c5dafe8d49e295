"""Tables and curves of records made by hand, where the right answer is plain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import matplotlib.figure
import numpy as np
from numpy.typing import NDArray

from fixedpoint.config.files import SCHEMA
from fixedpoint.config.folder import CellRow
from fixedpoint.config.record import Record
from fixedpoint.report.curves import curves_of
from fixedpoint.report.plot import svg
from fixedpoint.report.reading import Entry, Group
from fixedpoint.report.table import _section

NAN = np.nan


def entry(solver: str, seed: int = 0, trace: Any = None, **fields: Any) -> Entry:
    record = Record.model_validate(
        {
            "schema_version": SCHEMA,
            "hash": "0",
            "labels": {},
            "config": {},
            "seed": seed,
            "status": "ok",
            "rows": {"converged": 2},
            "threads": 1,
            "versions": {},
            "machine": {},
            "started": "",
            "finished": "",
            **fields,
        }
    )
    arrays: dict[str, NDArray[Any]] = {} if trace is None else {"trace.relative_error": np.array(trace)}
    return Entry(CellRow(hash="0", task="t", solver=solver, gradient=None, seed=seed), record, arrays=arrays)


def test_a_row_that_did_not_converge_is_never_best() -> None:
    section = _section(
        "t",
        [
            entry("gave up", rounds=2, metrics={"error": 0.5}, rows={"converged": 1, "stalled": 1}),
            entry("slow", rounds=9, metrics={"error": 0.5}),
            entry("fast", rounds=4, metrics={"error": 0.7}),
            entry("as fast", rounds=4, metrics={"error": NAN}),
        ],
    )
    assert [row.items[0].best for row in section.rows] == [False, False, True, True]
    assert [row.items[3].best for row in section.rows] == [False, True, False, False]
    assert [row.items[3].text for row in section.rows] == ["0.5", "0.5", "0.7", "NaN"]
    assert section.rows[0].status == "1 converged, 1 stalled"


def test_a_row_that_has_finished_keeps_its_error() -> None:
    first = entry("s", seed=0, rounds=3, trace=[[1.0, 0.5], [0.5, 0.01], [0.1, NAN]])
    second = entry("s", seed=1, rounds=2, trace=[[0.2], [0.3]])
    (curve,) = curves_of(Group("t", None, (first, second)))
    np.testing.assert_array_equal(curve.worst, [1.0, 0.5, 0.3])
    np.testing.assert_array_equal(curve.best, [0.2, 0.01, 0.01])
    assert curve.rounds == 3


def test_errors_are_drawn_after_the_round_in_which_they_were_known() -> None:
    newton = entry("newton", rounds=7, trace=[[1.0, 1.0], [0.5, 0.1], [0.2, NAN], [0.1, NAN]])
    arrays = {**newton.arrays, "trace.relative_error.rounds": np.array([1, 3, 6, 6])}
    (curve,) = curves_of(Group("t", None, (replace(newton, arrays=arrays),)))
    np.testing.assert_array_equal(curve.worst, [1.0, 1.0, 0.5, 0.5, 0.5, 0.1])
    np.testing.assert_array_equal(curve.best, [1.0, 1.0, 0.1, 0.1, 0.1, 0.1])


def test_an_error_that_is_not_finite_is_left_out() -> None:
    (curve,) = curves_of(Group("t", None, (entry("s", rounds=2, trace=[[np.inf, 0.5], [np.inf, 0.1]]),)))
    np.testing.assert_array_equal(curve.worst, [0.5, 0.1])
    (curve,) = curves_of(Group("t", None, (entry("serial", rounds=50, trace=[[0.0]]),)))
    assert not curve.drawable


def test_ids_depend_on_the_salt() -> None:
    figure = matplotlib.figure.Figure()
    figure.subplots().plot([1, 2], marker="o")
    ids = [{part.split('"')[0] for part in svg(figure, salt, bare=True).split('id="m')[1:]} for salt in "ab"]
    assert ids[0]
    assert not ids[0] & ids[1] - {"atplotlib.axis_1", "atplotlib.axis_2"}
