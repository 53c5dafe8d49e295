"""Runs of thousands of cells: the report takes seconds, and the page stays small."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import report_size

from fixedpoint.report.reading import read_run
from fixedpoint.report.table import sections


@pytest.mark.slow
@pytest.mark.parametrize("shape", report_size.SHAPES)
def test_five_thousand_cells(tmp_path: Path, shape: str) -> None:
    folder = report_size.made(tmp_path / "run", *report_size.SHAPES[shape](5000))
    found = report_size.measured(folder)
    assert found["read"] + found["sections"] + found["files"] < 30, found
    assert found["page"] < 10
    assert len((folder / "table.csv").read_text().splitlines()) == 5001


def test_a_page_names_some_cells_and_counts_the_rest(tmp_path: Path) -> None:
    folder = report_size.made(tmp_path / "run", 15, 4, 2)
    report_size.measured(folder)
    page = (folder / "report.html").read_text()
    assert "drawn are the first 12 of 15 groups; the tables have all" in page
    assert "<li>69 more</li>" in page  # 119 cells have the note, and one failed
    assert page.count("task 14, seed 1") >= 2


@pytest.mark.parametrize("shape", report_size.SHAPES)
def test_sections_take_time_in_proportion_to_the_cells(tmp_path: Path, shape: str) -> None:
    """Ten times the cells, a hundred times the time if it were quadratic."""
    times = []
    for cells in (100, 1000):
        run = read_run(report_size.made(tmp_path / str(cells), *report_size.SHAPES[shape](cells)))
        taken = []
        for _ in range(3):
            began = time.process_time()
            assert sum(len(section.rows) for section in sections(run)) == cells
            taken.append(time.process_time() - began)
        times.append(min(taken))
    assert times[1] < 30 * times[0]
