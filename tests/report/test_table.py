"""The table: what is in it, in what words, and what is marked as best."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest

from fixedpoint.report.numbers import count_text, number_text, seconds_text
from fixedpoint.report.reading import RunData, read_run
from fixedpoint.report.table import Section, sections, to_csv, to_markdown


@pytest.fixture
def run(folder: Path) -> RunData:
    return read_run(folder)


def section(run: RunData, title: str) -> Section:
    return next(each for each in sections(run) if each.title == title)


def test_one_section_for_every_task_and_seed(run: RunData) -> None:
    expected = [f"{task}, seed {seed}" for task in ("gray", "colour", "broken") for seed in (1, 2)]
    assert [each.title for each in sections(run)] == expected


def test_counts_come_first_and_then_the_metrics_of_the_task_in_its_order(run: RunData) -> None:
    assert section(run, "gray, seed 1").columns == (
        "rounds",
        "evaluations",
        "seconds",
        "relative_error",
        "cells_so_far",
        "draw",
    )


def test_how_a_cell_ended_is_said_in_words(run: RunData) -> None:
    assert [row.status for row in section(run, "gray, seed 1").rows] == ["3 converged"] * 3 + ["skipped"]
    assert section(run, "colour, seed 1").rows[0].status == "3 max rounds"
    assert [row.status for row in section(run, "broken, seed 2").rows] == ["failed"] * 3 + ["skipped"]
    assert all(item.text == "–" for item in section(run, "broken, seed 2").rows[0].items)


def test_the_best_is_the_least_among_those_that_converged(run: RunData) -> None:
    rows = section(run, "colour, seed 1").rows
    rounds = [int(row.items[0].text) for row in rows[:3]]
    best = [row.items[0].best for row in rows[:3]]
    assert not best[0]  # reached the limit on rounds
    assert [b for b, r in zip(best, rounds, strict=True) if r == min(rounds[1:])].count(True) >= 1
    draw = section(run, "gray, seed 1").columns.index("draw")
    assert not any(row.items[draw].best for row in rows)  # nobody knows whether less of it is better


def test_csv_has_every_cell_with_all_digits(run: RunData) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(run))))
    assert len(rows) == 3 * 2 * 4
    first = run.entries[0].record
    assert first is not None
    assert float(rows[0]["relative_error"]) == first.metrics["relative_error"]
    assert rows[1]["solver"] == "Anderson <1965> & friends $\\frac$"


def test_markdown_has_a_line_for_every_cell_and_bold_bests(run: RunData) -> None:
    text = to_markdown(sections(run))
    assert text.count("\n| ") == 6 * (4 + 1) - (1 if text.startswith("| ") else 0)
    assert "**" in text


def test_sentences_say_what_failed_and_what_was_skipped(run: RunData) -> None:
    assert "broken / picard / seed 1: failed: RuntimeError: out of <cheese>" in run.failures
    assert "gray / needy / seed 1: skipped: needy needs telepathy, which gray does not provide" in run.skips
    assert any(s.startswith("colour / picard / seed 1: relative_error is") for s in run.broken_expectations)


def test_damaged_and_missing_records_are_named_and_the_rest_is_used(folder: Path) -> None:
    before = read_run(folder)
    first, second, third = before.entries[:3]
    before.folder.record(first.cell.hash).write_bytes(b"{")
    before.folder.record(second.cell.hash).unlink()
    before.folder.arrays(third.cell.hash).write_bytes(b"")
    run = read_run(folder)
    assert len(run.notices) == 2
    assert "gray / picard / seed 1: the record is cut off or no JSON" in run.notices[0]
    assert "gray / Broyden / seed 1: the file of traces and images was changed" in run.notices[1]
    statuses = [row.status for row in section(run, "gray, seed 1").rows]
    assert statuses == ["its record is damaged", "not run yet", "3 converged", "skipped"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.2e-5, "3.2e-05"),
        (0.0, "0"),
        (0.012345, "0.01235"),
        (math.nan, "NaN"),
        (math.inf, "infinite"),
        (-1.5, "-1.5"),
        (1e7, "1.0e+07"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number_text(value) == text


def test_counts_and_seconds() -> None:
    assert [count_text(9625), count_text(20400)] == ["9625", "20,400"]
    assert [seconds_text(s) for s in (123.4, 5.128, 0.05, 2e-5)] == ["123", "5.13", "0.0500", "2.0e-05"]
