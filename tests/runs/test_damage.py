"""Files of a run damaged in any way: named, computed again, and never a wrong number."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fixedpoint.config.files import DamagedError
from fixedpoint.config.runfile import load
from fixedpoint.report.reading import read_run
from fixedpoint.runs.run import Outcome, execute

STUDY = "tasks: [{name: toy, pictures: true}]\nsolvers: [picard, anderson]\nseeds: [0, 1, 2]\n"


def run(folder: Path) -> Outcome:
    (folder / "study.yaml").write_text(STUDY)
    return execute(load(folder / "study.yaml"), folder / "out")


@pytest.fixture
def folder(toys: ModuleType, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in it; a copy, for running takes longer."""
    whole = tmp_path_factory.getbasetemp() / "whole"
    if not whole.exists():
        whole.mkdir()
        run(whole)
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path


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
def test_what_is_damaged_is_named_and_computed_again(folder: Path, kind: str, damage: Any, seed: int) -> None:
    chance = random.Random(seed)
    first = run(folder)
    paths = sorted((folder / "out" / kind).iterdir())
    victims = chance.sample(paths, 3)
    for path in victims:
        path.write_bytes(damage(path.read_bytes(), chance))
    left_out = read_run(folder / "out").notices  # a report leaves them out, and says so
    again = run(folder)
    assert facts(again) == facts(first)
    # A flip that leaves the JSON saying the same (e to E in a number) is none; every other one is told.
    assert len(again.notices) == len(left_out) == len(first.records) - again.reused
    assert len(again.notices) >= (2 if damage is flipped and kind == "records" else 3)
    assert all(sum(str(path) in notice for notice in again.notices) <= 1 for path in victims)
    assert run(folder).reused == len(first.records)


@pytest.mark.parametrize("seed", range(60))
def test_no_flip_of_a_record_is_taken_for_something_else(folder: Path, seed: int) -> None:
    first = run(folder)
    path = first.folder.record(first.records[0].hash)
    path.write_bytes(flipped(path.read_bytes(), random.Random(seed)))
    found = read_run(folder / "out")
    if not found.notices:
        assert found.entries[0].record == first.records[0]


@pytest.mark.parametrize("damage", [truncated, emptied, flipped])
def test_a_damaged_run_json_is_a_sentence_and_the_next_run_mends_it(folder: Path, damage: Any) -> None:
    first = run(folder)
    path = folder / "out" / "run.json"
    path.write_bytes(damage(path.read_bytes(), random.Random(7)))
    with pytest.raises(DamagedError) as caught:
        read_run(folder / "out")
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    again = run(folder)
    assert again.reused == len(first.records)
    assert len(json.loads(path.read_text())["cells"]) == 6
