"""A run: what becomes of its cells, what is kept, what is computed again."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from fixedpoint.config.files import SCHEMA
from fixedpoint.config.folder import Folder
from fixedpoint.config.record import read_arrays, read_record
from fixedpoint.config.runfile import load
from fixedpoint.registry import hookimpl, registry
from fixedpoint.runs.plan import plan
from fixedpoint.runs.run import InterruptedRunError, Outcome, execute
from fixedpoint.runs.work import Work

pytestmark = pytest.mark.usefixtures("toys")

STUDY = "tasks: [toy]\nsolvers: [picard, anderson]\ntermination: {rtol: 1e-8}\n"


def run(folder: Path, text: str = STUDY, *overrides: str, fresh: bool = False) -> Outcome:
    folder.mkdir(exist_ok=True)
    (folder / "study.yaml").write_text(text)
    return execute(load(folder / "study.yaml", overrides), folder / "out", fresh)


class Listener:
    """Notes the life cycle of a run."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.rounds: list[tuple[str, int, float]] = []

    @hookimpl
    def fixedpoint_run_started(self, folder: Path, cells: int) -> None:
        self.heard.append(f"started {cells}")

    @hookimpl
    def fixedpoint_round(self, cell: str, round: int, running: int, relative_error: float) -> None:
        self.rounds.append((cell, round, relative_error))

    @hookimpl
    def fixedpoint_cell_finished(self, record: Mapping[str, Any]) -> None:
        self.heard.append(f"cell {record['labels']['solver']} {record['status']}")

    @hookimpl
    def fixedpoint_run_finished(self, folder: Path) -> None:
        self.heard.append("finished")


@pytest.fixture
def listener() -> Iterator[Listener]:
    plugin = Listener()
    registry.register(plugin)
    yield plugin
    registry.unregister(plugin)


def test_every_cell_of_the_grid_has_a_record(tmp_path: Path) -> None:
    outcome = run(tmp_path, STUDY + "seeds: [1, 2]\n", "tasks=[toy, {name: toy, rows: 2}]")
    assert outcome.ok
    assert len(outcome.records) == 2 * 2 * 2
    assert len({record.hash for record in outcome.records}) == 8
    assert {json.dumps(record.rows) for record in outcome.records} == {'{"converged": 3}', '{"converged": 2}'}
    assert all(record.metrics["relative_error"] < 1e-7 for record in outcome.records)


def test_a_record_says_all_there_is_to_know(tmp_path: Path) -> None:
    outcome = run(tmp_path)
    record = outcome.records[0]
    assert record.schema_version == SCHEMA
    assert record.labels == {"task": "toy", "solver": "picard"}
    assert record.config["solver"] == {"name": "picard", "relaxation": 1.0}
    assert record.config["termination"]["rtol"] == 1e-8
    assert record.rounds > 5
    assert record.evaluations >= record.rounds
    assert record.versions["torch"] == torch.__version__
    assert set(record.versions) >= {"python", "fixedpoint", "numpy"}
    assert record.machine["cpus"]
    assert record.started <= record.finished
    assert "converged" in record.message
    trace = read_arrays(outcome.folder.arrays(record.hash), record)["trace.relative_error"]
    assert trace.shape == (record.rounds, 3)
    assert read_record(outcome.folder.record(record.hash), record.hash) == record


def test_what_forms_and_the_errors_of_steps_are_kept_and_stay(tmp_path: Path) -> None:
    chains = (
        "tasks: [{name: ddim-sampling, model: shapes, num_inference_steps: 12, batch: 5}]\n"
        "solvers: [serial, picard, {name: chain, window: 4}]\n"
    )
    first = run(tmp_path, chains)
    kept = [read_arrays(first.folder.arrays(record.hash), record) for record in first.records]
    again = run(tmp_path, chains, "solvers=[serial, picard, {name: chain, window: 4}, {name: chain, window: 5}]")
    assert again.reused == 3
    for arrays, record in zip(kept, again.records, strict=False):
        now = read_arrays(again.folder.arrays(record.hash), record)
        assert now.keys() == arrays.keys()
        for name, values in arrays.items():
            np.testing.assert_array_equal(now[name], values)
    serial, whole, windowed = kept
    assert not [name for name in serial if name.startswith("trace.step")]
    for arrays, record in zip(kept, first.records, strict=True):
        rounds = arrays["forming.rounds"]
        assert arrays["forming.pixels"].shape == (len(rounds), 16, 16)
        assert arrays["forming.range"].tolist() == [-1.0, 1.0]
        assert rounds[-1] <= record.rounds
    assert serial["forming.rounds"].tolist() == [1, 3, 5, 7, 9, 11, 12]
    for arrays in (whole, windowed):
        errors = arrays["trace.step_errors"]
        assert errors.dtype == np.float32
        assert errors.shape == (4, len(arrays["trace.step_errors.rounds"]), 12)
        assert arrays["trace.step_errors.steps"].tolist() == list(range(1, 13))
    assert not np.isnan(whole["trace.step_errors"][:, 0]).any()
    assert (np.isnan(windowed["trace.step_errors"][:, 0]).sum(axis=1) == 8).all()


def test_the_run_itself_is_described(tmp_path: Path) -> None:
    outcome = run(tmp_path, STUDY + "expect: {relative_error: 1}\n")
    info = outcome.folder.read_info()
    assert [cell.solver for cell in info.cells] == ["picard", "anderson"]
    assert info.finished is not None
    assert info.expect == {"relative_error": 1.0}
    again = load(outcome.folder.config)
    assert [cell.hash for cell in plan(again)] == [cell.hash for cell in info.cells]


def test_a_plugin_that_took_part_is_named_with_its_version(tmp_path: Path, toys: ModuleType) -> None:
    assert "toy_plugin" in run(tmp_path).records[0].versions


def test_the_seed_alone_decides_what_is_drawn(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = run(tmp_path / "a", STUDY + "seeds: [3, 4]\n")
    torch.manual_seed(2)
    second = run(tmp_path / "b", STUDY + "seeds: [4]\n")
    draws = {(record.seed, record.metrics["draw"]) for record in first.records}
    assert len(draws) == 2
    assert (4, second.records[0].metrics["draw"]) in draws


def test_the_hash_knows_the_config_and_nothing_else(tmp_path: Path) -> None:
    def hashes(text: str, *overrides: str) -> list[str]:
        (tmp_path / "study.yaml").write_text(text)
        return [cell.hash for cell in plan(load(tmp_path / "study.yaml", overrides))]

    base = hashes(STUDY)
    assert hashes(STUDY + "name: other\nthreads: 1\nexpect: {relative_error: 1}\n") == base
    assert hashes(STUDY, "solvers[0]={name: picard, label: other, relaxation: 1}") == base
    for change in ("tasks[0].rows=4", "termination.rtol=1e-7", "seeds=[1]"):
        assert not set(hashes(STUDY, change)) & set(base)


def test_finished_cells_are_reused_and_fresh_ones_computed(tmp_path: Path, listener: Listener) -> None:
    run(tmp_path)
    listener.heard.clear()
    again = run(tmp_path, STUDY, "solvers=[picard, broyden]")
    assert again.reused == 1
    assert listener.heard == ["started 1", "cell broyden ok", "finished"]
    listener.heard.clear()
    assert run(tmp_path, STUDY, fresh=True).reused == 0
    assert listener.heard == ["started 2", "cell picard ok", "cell anderson ok", "finished"]


def test_rounds_are_told_to_those_who_listen(tmp_path: Path, listener: Listener) -> None:
    outcome = run(tmp_path)
    told = [(round, error) for cell, round, error in listener.rounds if cell == "toy / picard / seed 0"]
    assert [round for round, _ in told] == list(range(1, outcome.records[0].rounds + 1))
    assert told[-1][1] < 1e-8 < told[0][1]


def test_a_failure_is_a_record_and_the_run_goes_on(tmp_path: Path) -> None:
    outcome = run(tmp_path, STUDY, "tasks=[{name: toy, error: out of cheese}, {name: toy, rows: 2}]")
    assert [record.status for record in outcome.records] == ["failed", "failed", "ok", "ok"]
    error = outcome.records[0].error
    assert error is not None
    assert (error.type, error.message) == ("RuntimeError", "out of cheese")
    assert "in problem" in error.traceback
    assert not outcome.ok
    assert len(outcome.failures) == 2
    assert outcome.failures[0].endswith("RuntimeError: out of cheese")


def test_a_failed_cell_is_tried_again(tmp_path: Path, toys: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = toys.ToyTask.problem

    def broken(self: Any, seed: int) -> Any:
        raise OSError("disk on fire")

    monkeypatch.setattr(toys.ToyTask, "problem", broken)
    assert len(run(tmp_path).failures) == 2
    monkeypatch.setattr(toys.ToyTask, "problem", sound)
    again = run(tmp_path)
    assert again.ok
    assert again.reused == 0


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda content: content[: len(content) // 2], "is cut off or no JSON"),
        (lambda _: b"", "is empty"),
        (lambda content: content.replace(b'"converged": 3', b'"converged": 2'), "its checksum does not fit"),
        (lambda content: content.replace(b'"schema_version": 1', b'"schema_version": 99'), "of another version (99"),
        (lambda _: b"[1]", "does not have the right form"),
    ],
)
def test_a_damaged_record_is_reported_and_computed_again(tmp_path: Path, damage: Any, sentence: str) -> None:
    first = run(tmp_path)
    path = first.folder.record(first.records[0].hash)
    path.write_bytes(damage(path.read_bytes()))
    again = run(tmp_path)
    (notice,) = again.notices
    assert sentence in notice
    assert "toy / picard / seed 0 is computed again" in notice
    assert again.reused == 1
    assert again.records[0].metrics == first.records[0].metrics
    assert not run(tmp_path).notices


def test_damaged_arrays_are_reported_and_computed_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    path = first.folder.arrays(first.records[1].hash)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    again = run(tmp_path)
    assert "checksum does not fit); toy / anderson / seed 0 is computed again" in again.notices[0]
    assert read_arrays(path, again.records[1])


def test_a_record_under_the_name_of_another_cell_is_not_taken(tmp_path: Path) -> None:
    first = run(tmp_path)
    one, other = (first.folder.record(record.hash) for record in first.records)
    other.write_bytes(one.read_bytes())
    assert "is that of another cell" in run(tmp_path).notices[0]


def test_a_pair_that_cannot_go_together_is_skipped_with_the_reason(tmp_path: Path) -> None:
    outcome = run(tmp_path, STUDY, "solvers=[needy, picard]")
    assert [record.status for record in outcome.records] == ["skipped", "ok"]
    assert outcome.records[0].reason == "needy needs telepathy, which toy does not provide"
    assert outcome.ok


def test_solvers_of_chains_are_left_out_where_there_is_no_chain(tmp_path: Path) -> None:
    outcome = run(tmp_path, STUDY, "solvers=[serial, chain, picard]")
    assert [record.status for record in outcome.records] == ["skipped", "skipped", "ok"]
    assert outcome.records[0].reason == "serial needs chain, which toy does not provide"


def test_an_expectation_that_does_not_hold_is_a_sentence(tmp_path: Path) -> None:
    outcome = run(tmp_path, STUDY + "expect: {relative_error: 1e-20}\n")
    assert not outcome.ok
    assert len(outcome.broken) == 2
    assert outcome.broken[0].startswith("toy / picard / seed 0: relative_error is ")
    assert outcome.broken[0].endswith("expected at most 1e-20")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("tasks[0].nan=true", "relative_error is nan, expected at most 1"),
        ("expect={truth: 1}", "has no metric truth, expected at most 1"),
    ],
)
def test_nan_and_a_missing_metric_break_an_expectation(tmp_path: Path, override: str, sentence: str) -> None:
    outcome = run(tmp_path, STUDY + "expect: {relative_error: 1}\n", override)
    assert sentence in outcome.broken[0]


def test_nan_survives_being_written_as_json(tmp_path: Path) -> None:
    outcome = run(tmp_path, STUDY, "tasks[0].nan=true")
    path = outcome.folder.record(outcome.records[0].hash)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert np.isnan(read_record(path, outcome.records[0].hash).metrics["relative_error"])


def test_an_interrupt_keeps_what_is_done_and_the_next_run_goes_on(
    tmp_path: Path, toys: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = toys.ToyTask.judge
    calls = []

    def interrupted(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sound(self, *arguments)

    monkeypatch.setattr(toys.ToyTask, "judge", interrupted)
    with pytest.raises(InterruptedRunError, match="1 of 2 cells"):
        run(tmp_path)
    assert Folder(tmp_path / "out").read_info().finished is None
    assert run(tmp_path).reused == 1


def test_cells_of_a_task_share_and_a_pickled_work_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    first, second = plan(load(tmp_path / "study.yaml"))
    work = Work()
    work(first)
    assert work(second).record.metrics["cells_so_far"] == 2
    copy = pickle.loads(pickle.dumps(work))
    assert copy(pickle.loads(pickle.dumps(second))).record.metrics["cells_so_far"] == 1


def test_threads_are_as_asked_for_and_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    outcome = run(tmp_path, STUDY, f"threads={before + 1}")
    assert outcome.records[0].threads == before + 1
    assert torch.get_num_threads() == before


def test_a_hook_that_raises_is_noted_and_the_run_goes_on(tmp_path: Path) -> None:
    class Sulky:
        @hookimpl
        def fixedpoint_cell_finished(self, record: Mapping[str, Any]) -> None:
            raise ValueError("no")

    plugin = Sulky()
    registry.register(plugin)
    outcome = run(tmp_path)
    registry.unregister(plugin)
    assert outcome.ok
    assert outcome.notices == ("the hook fixedpoint_cell_finished of the plugin Sulky raised ValueError: no",)


def test_no_half_written_file_is_left(tmp_path: Path) -> None:
    run(tmp_path)
    files = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [name for name in files if name.startswith(".")]


def test_nothing_of_the_users_is_deleted_in_a_folder_that_is_not_ours_alone(tmp_path: Path) -> None:
    run(tmp_path)
    folder = tmp_path / "out"
    mine = [folder / "records" / "vinyl.json", folder / ".draft.part", folder / "deep" / ".x.1.fixedpoint-part"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    left = folder / "records" / f".{'a' * 64}.json.1.fixedpoint-part"
    left.write_text("half")
    assert run(tmp_path, fresh=True).reused == 0
    assert all(path.read_text() == "mine" for path in mine)
    assert not left.exists()
