"""A record is reused only where what made it is the same; what is said of it; makers that are gone."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fixedpoint as fp
from fixedpoint.config import makers
from fixedpoint.config.files import sealed
from fixedpoint.config.makers import UNREADABLE, ComponentCode, Maker, Makers, changes
from fixedpoint.config.record import read_record
from fixedpoint.config.runfile import load
from fixedpoint.registry import Component, registry, sources
from fixedpoint.registry.sources import Unit, digest_of, imports_of, unit_of
from fixedpoint.report.drawing import Attempts
from fixedpoint.report.makers import remarks, version_rows
from fixedpoint.report.page import page
from fixedpoint.report.palette import strokes
from fixedpoint.report.reading import read_run
from fixedpoint.runs.run import Outcome, execute

SOLVER = """\
from dataclasses import dataclass
from fixedpoint import Picard
from fixedpoint.registry import Component, hookimpl

@dataclass(frozen=True)
class Mine(Picard):
    pass

@hookimpl
def fixedpoint_solvers():
    return [Component("mine", "mine_plug:Mine", "mine", ())]
"""
STUDY = "tasks: [{name: linear-contraction, size: 4}]\nsolvers: [picard, mine, {name: damped, solver: mine}]\n"


@dataclass
class Installed:
    """A plugin on the path with metadata as pip writes them, and a study that uses it."""

    folder: Path
    python: str

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def release(self, version: str) -> None:
        self.write("plug/mine-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: mine\nVersion: {version}\n")
        self.write("plug/mine-1.dist-info/entry_points.txt", "[fixedpoint]\nmine = mine_plug\n")

    def program(self, *arguments: str, status: int = 0, without: bool = False) -> subprocess.CompletedProcess[str]:
        plugin = [] if without else [str(self.folder / "plug")]
        path = os.pathsep.join([*plugin, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "80", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [self.python, "-m", "fixedpoint", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done


@pytest.fixture
def installed(tmp_path: Path, python: str) -> Installed:
    plugin = Installed(tmp_path, python)
    plugin.release("1.0")
    plugin.write("plug/mine_plug.py", SOLVER)
    plugin.write("study.yaml", STUDY)
    return plugin


def test_a_plugin_through_its_life(installed: Installed) -> None:
    assert "reused" not in installed.program("run", "study.yaml").stdout
    installed.release("2.0")
    again = installed.program("run", "study.yaml")
    # Not picard's: the plugin had no part in it. But what holds the plugin's solver is made by it, too.
    assert "3 cells: 1 reused, 2 run: mine is now 2.0, was 1.0" in again.stdout

    record = next(
        each
        for each in map(json.loads, (p.read_text() for p in (installed.folder / "runs/study/records").iterdir()))
        if each["labels"]["solver"] == "mine"
    )
    assert record["made_by"]["mine"]["version"] == record["versions"]["mine"] == "2.0"
    assert record["made_by"]["mine"]["brings"] == ["solver mine"]
    assert set(record["made_by"]) == {"fixedpoint", "mine", "numpy", "torch"}

    gone = "the solver mine of the distribution mine 2.0, which is not installed"
    report = installed.program("report", "runs/study", without=True)
    assert f"2 of 3 cells were made by {gone}" in report.stderr.splitlines()
    assert gone in (installed.folder / "runs/study/report.html").read_text()
    missing = installed.program("run", "study.yaml", without=True, status=2)
    assert missing.stderr.splitlines() == [
        f'study.yaml:2:19: solvers[1]: unknown solver "mine"; runs/study has records made by {gone}',
        f'study.yaml:2:48: solvers[2].solver: unknown solver "mine"; runs/study has records made by {gone}',
    ]

    installed.write("plug/mine_plug.py", f"import numpi\n{SOLVER}")
    fault = "the plugin mine (mine 2.0) cannot be used: ModuleNotFoundError: No module named 'numpi'"
    first, _ = installed.program("run", "study.yaml", status=2).stderr.splitlines()
    assert first == (
        'study.yaml:2:19: solvers[1]: unknown solver "mine"; runs/study has records made by the solver mine of the '
        f"distribution mine 2.0, which is installed but no longer brings it; {fault}; see fixedpoint doctor"
    )
    elsewhere = installed.program("run", "study.yaml", "-o", "new/one", status=2).stderr.splitlines()[0]
    assert elsewhere == f'study.yaml:2:19: solvers[1]: unknown solver "mine"; {fault}; see fixedpoint doctor'
    shown = installed.program("show", "mine", status=2).stderr
    assert shown == f'unknown component "mine"; did you mean "shine"?; {fault}; see fixedpoint doctor\n'
    checked = installed.program("check", "mine", status=2).stderr
    assert f'unknown solver "mine"; {fault}; see fixedpoint doctor' in checked


@pytest.fixture
def plugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with a solver, registered in this process, and the folder it stands in."""
    package = tmp_path / "code" / "plugged_package"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "table.json").write_text("[1]")
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "inner.py").write_text("from ...plugged_package import other\n")
    (package / "other.py").write_text("def f():\n    import plugged_helper\n")
    (tmp_path / "code" / "plugged_helper.py").write_text("")
    (package / "called.py").write_text(
        "import importlib\n\n\ndef f():\n    importlib.import_module('plugged_called')\n    __import__('json')\n"
    )
    (tmp_path / "code" / "plugged_called.py").write_text("")
    (package / "solver.py").write_text(
        "from dataclasses import dataclass\nfrom fixedpoint import Picard\n"
        "from fixedpoint.registry import Component, hookimpl\n\n"
        "@dataclass(frozen=True)\nclass Plugged(Picard):\n    pass\n\n"
        "@hookimpl\ndef fixedpoint_solvers():\n    return [Component('plugged', Plugged)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "code")
    plugin = importlib.import_module("plugged_package.solver")
    registry.register(plugin)
    yield package
    registry.unregister(plugin)
    for name in [name for name in sys.modules if name.startswith("plugged_")]:
        del sys.modules[name]


def run(folder: Path, solvers: str = "[picard, plugged]", **more: Any) -> Outcome:
    (folder / "study.yaml").write_text(f"tasks: [{{name: linear-contraction, size: 4}}]\nsolvers: {solvers}\n")
    return execute(load(folder / "study.yaml"), folder / "out", **more)


def edited(file: Path) -> None:
    """Change a file and let go of what was read, as in another process."""
    file.write_text(file.read_text() + "\n")
    sources._digest_of.cache_clear()
    sources._imports_of.cache_clear()


@pytest.mark.parametrize(
    "file", ["solver.py", "other.py", "deep/inner.py", "table.json", "../plugged_helper.py", "../plugged_called.py"]
)
def test_every_file_of_a_package_counts_and_so_does_what_it_imports(plugged: Path, tmp_path: Path, file: str) -> None:
    run(tmp_path)
    assert run(tmp_path).story == "2 of 2 cells had their record already"
    edited(plugged / file)
    assert run(tmp_path).story == "2 cells: 1 reused, 1 run: the code of plugged_package.solver has changed"


def test_caches_backups_and_run_folders_are_no_code(plugged: Path, tmp_path: Path) -> None:
    run(tmp_path)
    for name in ("__pycache__/solver.pyc", ".hidden/x.py", "solver.py~", "runs/once/run.json"):
        (plugged / name).parent.mkdir(parents=True, exist_ok=True)
        (plugged / name).write_text("")
    sources._digest_of.cache_clear()
    assert run(tmp_path).reused == 2


def test_code_that_was_loaded_is_that_of_its_files_then_until_it_is_loaded_again(plugged: Path) -> None:
    unit = unit_of("plugged_package.solver")
    assert unit == Unit("plugged_package", plugged)
    before = digest_of(unit)
    (plugged / "solver.py").write_text((plugged / "solver.py").read_text() + "\n# edited\n")
    assert digest_of(unit) == before
    importlib.reload(sys.modules["plugged_package.solver"])
    assert digest_of(unit) != before


def test_imports_are_found_wherever_they_stand(plugged: Path) -> None:
    unit = unit_of("plugged_package")
    assert unit is not None
    found = imports_of(unit)
    assert {
        "plugged_helper",
        "plugged_called",
        "json",
        "plugged_package.other",
        "fixedpoint.Picard",
        "fixedpoint",
    } <= found
    assert unit_of("json.decoder") is None
    assert unit_of("no_such_module") is None


def test_another_version_of_the_library_or_of_torch_computes_everything_again(
    plugged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    monkeypatch.setattr(fp, "__version__", "99.0")
    assert run(tmp_path).story.startswith("2 cells: 0 reused, 2 run: fixedpoint is now 99.0, was ")
    monkeypatch.setattr(makers.torch, "__version__", "98.0")
    assert "2 run: torch is now 98.0, was " in run(tmp_path).story
    sound = makers.digest_of
    monkeypatch.setattr(makers, "digest_of", lambda unit, without: sound(unit, without) + unit.name)
    story = run(tmp_path).story
    assert (
        "1 (the code of fixedpoint 99.0 has changed); 1 (the code of fixedpoint 99.0 has changed; the code of" in story
    )


def test_an_old_record_says_nothing_of_its_makers_and_is_not_reused(plugged: Path, tmp_path: Path) -> None:
    first = run(tmp_path)
    for record in first.records:
        data = {key: value for key, value in record.model_dump().items() if key != "made_by"}
        first.folder.record(record.hash).write_bytes(sealed(data))
    shown = remarks(read_run(tmp_path / "out"))
    assert shown == ["2 of 2 cells were made before records said what code made them"]
    assert run(tmp_path).story == "2 cells: 0 reused, 2 run: nothing in the record says what made it"


def test_what_is_new_and_what_failed_is_told_apart(plugged: Path, tmp_path: Path) -> None:
    run(tmp_path)
    edited(plugged / "solver.py")
    story = run(tmp_path, "[picard, plugged, anderson]").story
    assert story == "3 cells: 1 reused, 2 run: 1 (the code of plugged_package.solver has changed); 1 (new)"


def test_records_of_several_versions_are_told_cell_by_cell(plugged: Path, tmp_path: Path) -> None:
    first = run(tmp_path)
    picard, mine = first.records
    made_by = {**mine.made_by, "mine": Maker(version="0.9", code="ab", brings=["solver plugged"])}
    versions = {**mine.versions, "mine": "0.9", "python": "3.99"}
    changed = mine.model_copy(update={"made_by": made_by, "versions": versions})
    first.folder.record(mine.hash).write_bytes(sealed(changed.model_dump()))
    data = read_run(tmp_path / "out")
    rows = {row.name: row.versions for row in version_rows(data)}
    label = "linear-contraction / plugged / seed 0"
    assert rows["python"]["3.99"] == [label]
    assert rows["mine"] == {"0.9": [label]}
    assert list(rows["torch"]) == [picard.versions["torch"]]
    said = remarks(data)
    assert "1 of 2 cells was made by the solver plugged of the distribution mine 0.9, which is not installed" in said
    assert (
        f"the records were not made by one version of python: {picard.versions['python']} in 1 cell, 3.99 in 1 cell"
        in said
    )
    shown = " ".join(page(data, [], strokes(data.solvers, set()), [], Attempts()).split())
    assert f"<summary>3.99: 1 cell</summary><ul><li>{label}</li></ul>" in shown
    assert "which is not installed.</p>" in shown


def test_records_of_one_version_and_different_code_are_told_apart(plugged: Path, tmp_path: Path) -> None:
    first = run(tmp_path)
    record = first.records[1]
    fixedpoint = record.made_by["fixedpoint"].model_copy(update={"units": {"fixedpoint": "0123456789"}})
    changed = record.model_copy(update={"made_by": {**record.made_by, "fixedpoint": fixedpoint}})
    first.folder.record(record.hash).write_bytes(sealed(changed.model_dump()))
    assert read_record(first.folder.record(record.hash), record.hash) == changed
    (row,) = [row for row in version_rows(read_run(tmp_path / "out")) if row.name == "fixedpoint"]
    assert [version.partition(" ")[2][:20] for version in row.versions] == ["(code of fixedpoint "] * 2
    assert f"{fp.__version__} (code of fixedpoint 01234567)" in row.versions


@pytest.fixture
def loose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two solvers, each in a module of its own, added to this process without a plugin, and the folder of both."""
    folder = tmp_path / "code"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"loose_{name}.py").write_text(
            "from dataclasses import dataclass\nfrom fixedpoint import Picard\n\n"
            "@dataclass(frozen=True)\nclass Loose(Picard):\n    pass\n"
        )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(registry._brought, "solver", dict(registry.components("solver")))
    for name in ("one", "two"):
        registry.add("solver", Component(f"loose-{name}", f"loose_{name}:Loose"))
    yield folder
    for name in [name for name in sys.modules if name.startswith("loose_")]:
        del sys.modules[name]


def test_cells_that_use_different_modules_were_made_by_one_version(loose: Path, tmp_path: Path) -> None:
    solvers = "[loose-one, loose-two, {name: damped, solver: loose-one}]"
    first = run(tmp_path, solvers)
    assert len({record.made_by["this process"].code for record in first.records}) == 2
    data = read_run(tmp_path / "out")
    assert remarks(data) == []
    (row,) = [row for row in version_rows(data) if row.name == "this process"]
    assert {version: len(labels) for version, labels in row.versions.items()} == {"unknown": 3}

    # The same module in two versions: a record of before the edit stands beside one of after it.
    old = first.records[0]
    edited(loose / "loose_one.py")
    run(tmp_path, solvers)
    first.folder.record(old.hash).write_bytes(sealed(old.model_dump()))
    _story, said = remarks(read_run(tmp_path / "out"))
    before = old.made_by["this process"].units["loose_one"][:8]
    assert said.startswith(
        f"the records were not made by one version of this process: unknown (code of loose_one {before}) in 1 cell, "
        "unknown in 1 cell, unknown (code of loose_one "
    )


def test_records_that_hold_one_digest_are_compared_where_their_components_are_the_same(
    loose: Path, tmp_path: Path
) -> None:
    first = run(tmp_path, "[loose-one, loose-two]")
    for record in first.records:
        made_by = {name: maker.model_copy(update={"units": {}}) for name, maker in record.made_by.items()}
        old = record.model_copy(update={"made_by": made_by})
        first.folder.record(old.hash).write_bytes(sealed(old.model_dump()))
    assert remarks(read_run(tmp_path / "out")) == []


class TestChanges:
    """What makes a record unfit."""

    def test_the_same_makers_change_nothing(self) -> None:
        both = {"mine": Maker(version="1", code="a", brings=["solver mine"])}
        assert changes(both, dict(both)) == []

    def test_another_distribution_of_the_same_component(self) -> None:
        then = {"mine": Maker(version="1", brings=["solver mine"])}
        now = {"yours": Maker(version="3", brings=["solver mine"])}
        assert changes(then, now) == ["the solver mine is now brought by yours 3, was by mine 1"]

    def test_a_dependency_that_comes_or_goes(self) -> None:
        torch, scipy = {"torch": Maker(version="2")}, {"scipy": Maker(version="1")}
        assert changes(torch, torch | scipy) == ["scipy 1 takes part now"]
        assert changes(torch | scipy, torch) == ["scipy 1 takes no part now"]

    def test_code_that_cannot_be_read_is_never_the_same(self) -> None:
        both = {"this process": Maker(version="", code=UNREADABLE)}
        (said,) = changes(both, both)
        assert "cannot be read" in said

    def test_an_option_within_an_option_brings_its_distribution(self) -> None:
        @dataclass(frozen=True)
        class Uses(fp.Picard):
            uses = ("pytest",)

        part = ComponentCode.of(fp.Damped(solver=Uses()), "solver damped", "fixedpoint-solvers", "")
        found = Makers().of((part,))
        assert found["pytest"].version == pytest.__version__
        assert found["fixedpoint"].brings == ["solver damped"]

    def test_a_class_of_a_notebook(self) -> None:
        cell: dict[str, Any] = {"__name__": "notebook_without_a_file", "fp": fp, "dataclass": dataclass}
        sys.modules["notebook_without_a_file"] = type(sys)("notebook_without_a_file")
        try:
            exec("@dataclass(frozen=True)\nclass InACell(fp.Picard):\n    pass\n", cell)
            found = Makers().of((ComponentCode.of(cell["InACell"](), "solver x", "", ""),))
        finally:
            del sys.modules["notebook_without_a_file"]
        assert found["this process"].code == UNREADABLE
