"""Files of a run damaged in any way: named, computed again, and never a wrong number."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from fixedpoint.config.files import DamagedError
from fixedpoint.config.runfile import load
from fixedpoint.report.reading import read_run
from fixedpoint.runs.run import Outcome, execute

pytestmark = pytest.mark.usefixtures("toys")

STUDY = "tasks: [{name: toy, pictures: true}]\nsolvers: [picard, anderson]\nseeds: [0, 1, 2]\n"


def run(folder: Path) -> Outcome:
    (folder / "study.yaml").write_text(STUDY)
    return execute(load(folder / "study.yaml"), folder / "out")


def facts(outcome: Outcome) -> list[dict[str, Any]]:
    volatile = {"seconds", "started", "finished"}
    data = [record.model_dump(exclude=volatile) for record in outcome.records]
    for entry in data:
        entry["metrics"].pop("cells_so_far")  # how many cells this process has seen
    return data


def truncated(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(1, len(content))]


def emptied(content: bytes, chance: random.Random) -> bytes:
    return b""


def flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("damage", [truncated, emptied, flipped])
@pytest.mark.parametrize("kind", ["records", "arrays"])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_damaged_is_named_and_computed_again(tmp_path: Path, kind: str, damage: Any, seed: int) -> None:
    chance = random.Random(seed)
    first = run(tmp_path)
    paths = sorted((tmp_path / "out" / kind).iterdir())
    victims = chance.sample(paths, 3)
    for path in victims:
        path.write_bytes(damage(path.read_bytes(), chance))
    left_out = read_run(tmp_path / "out").notices  # a report leaves them out, and says so
    again = run(tmp_path)
    assert facts(again) == facts(first)
    # A flip that leaves the JSON saying the same (e to E in a number) is none; every other one is told.
    assert len(again.notices) == len(left_out) == len(first.records) - again.reused
    assert len(again.notices) >= (2 if damage is flipped and kind == "records" else 3)
    assert all(sum(str(path) in notice for notice in again.notices) <= 1 for path in victims)
    assert run(tmp_path).reused == len(first.records)


@pytest.mark.parametrize("seed", range(60))
def test_no_flip_of_a_record_is_taken_for_something_else(tmp_path: Path, seed: int) -> None:
    first = run(tmp_path)
    path = first.folder.record(first.records[0].hash)
    path.write_bytes(flipped(path.read_bytes(), random.Random(seed)))
    found = read_run(tmp_path / "out")
    if not found.notices:
        assert found.entries[0].record == first.records[0]


@pytest.mark.parametrize("damage", [truncated, emptied, flipped])
def test_a_damaged_run_json_is_a_sentence_and_the_next_run_mends_it(tmp_path: Path, damage: Any) -> None:
    first = run(tmp_path)
    path = tmp_path / "out" / "run.json"
    path.write_bytes(damage(path.read_bytes(), random.Random(7)))
    try:
        read_run(tmp_path / "out")
    except DamagedError as error:
        assert str(path) in str(error)
        assert len(str(error).splitlines()) == 1
    again = run(tmp_path)
    assert again.reused == len(first.records)
    assert len(json.loads(path.read_text())["cells"]) == 6
