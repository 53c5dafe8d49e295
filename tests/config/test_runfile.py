"""A good run file: numbers, defaults, labels, ``extends`` and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixedpoint.config.errors import ConfigError
from fixedpoint.config.runfile import RunConfig, load, to_yaml
from fixedpoint.registry import registry

pytestmark = pytest.mark.usefixtures("toys")


def written(folder: Path, text: str, name: str = "study.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def loaded(folder: Path, text: str, *overrides: str) -> RunConfig:
    return load(written(folder, text), overrides)


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    config = loaded(tmp_path, "tasks: [toy]\nsolvers: [{name: chain, accelerator: {name: anderson, memory: 3}}]\n")
    assert config.name == "study"
    assert config.seeds == (0,)
    assert config.termination["rtol"] == 1e-6
    assert config.executor.config == {"name": "in-process"}
    assert config.threads is None
    chain = config.solvers[0].config
    assert chain["preconditioner"] == {"name": "identity"}
    assert chain["accelerator"]["memory"] == 3
    assert chain["accelerator"]["relaxation"] == 1.0
    assert config.tasks[0].config["slope"] == {"name": "Slope", "value": 0.5}
    assert registry.create("task", config.tasks[0].config) == registry.create("task", "toy")


@pytest.mark.parametrize("number", ["1e-6", "1E-6", "1.0e-06", ".000001", "0.000001"])
def test_every_way_to_write_a_number(tmp_path: Path, number: str) -> None:
    config = loaded(tmp_path, f"tasks: [toy]\nsolvers: [picard]\ntermination: {{rtol: {number}}}\n")
    assert config.termination["rtol"] == 1e-6


def test_an_integer_is_a_number_and_hashes_as_one(tmp_path: Path) -> None:
    config = loaded(tmp_path, "tasks: [toy]\nsolvers: [{name: picard, relaxation: 1}]\n")
    assert isinstance(config.solvers[0].config["relaxation"], float)


def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_bytes(b"\xef\xbb\xbftasks: [toy]\r\nsolvers:\r\n  - picard\r\n")
    assert load(file).solvers[0].config["name"] == "picard"


def test_an_anchor_may_be_set_anew(tmp_path: Path) -> None:
    config = loaded(tmp_path, "tasks: [toy]\nsolvers: [&a picard, {name: anderson, label: &a other}]\nname: *a\n")
    assert config.name == "other"


def test_labels_say_what_sets_a_solver_apart(tmp_path: Path) -> None:
    solvers = (
        "[picard, {name: chain, preconditioner: {name: banded, order: 5}}, {name: chain, preconditioner: zero},"
        " {name: chain, accelerator: {name: anderson, memory: 3}},"
        " {name: anderson, memory: 2}, {name: broyden, label: B}]"
    )
    config = loaded(tmp_path, f"tasks: [toy, {{name: toy, rows: 5}}]\nsolvers: {solvers}\n")
    labels = [choice.label for choice in config.solvers]
    assert labels == [
        "picard",
        "chain (banded order=5, picard)",
        "chain (zero, picard)",
        "chain (identity, anderson memory=3)",
        "anderson (memory=2)",
        "B",
    ]
    assert [choice.label for choice in config.tasks] == ["toy (rows=3)", "toy (rows=5)"]


def test_the_resolved_file_says_the_same_and_leaves_nothing_to_defaults(tmp_path: Path) -> None:
    first = loaded(
        tmp_path,
        "tasks: [{name: toy, sizes: [2, 3]}]\nsolvers: [picard, {name: chain, accelerator: anderson}]\nseeds: [3, 5]\n"
        "expect: {relative_error: 1}\nthreads: 1\ngradients: [one-step]\n",
    )
    again = loaded(tmp_path, to_yaml(first.plain()))
    assert again == first


def test_extends_merges_mappings_and_replaces_lists(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    written(tmp_path, "tasks: [toy]\nsolvers: [picard, anderson]\ntermination: {rtol: 1e-3, atol: 1}\n", "base.yaml")
    top = written(tmp_path / "sub", "extends: ../base.yaml\nsolvers: [broyden]\ntermination: {rtol: 1e-5}\n")
    config = load(top)
    assert [choice.label for choice in config.solvers] == ["broyden"]
    assert config.termination["rtol"] == 1e-5
    assert config.termination["atol"] == 1.0


def test_a_mistake_in_an_extended_file_is_reported_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path(), "tasks: [toy]\nsolvers: [pikard]\n", "base.yaml")
    written(Path(), "extends: base.yaml\nseeds: [x]\n")
    with pytest.raises(ConfigError) as caught:
        load("study.yaml")
    assert str(caught.value).splitlines() == [
        'base.yaml:2:11: solvers[0]: unknown solver "pikard"; did you mean "picard"?',
        'study.yaml:2:9: seeds[0]: must be an integer, got "x"',
    ]


def test_a_circle_of_extends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path(), "extends: study.yaml\n", "base.yaml")
    written(Path(), "tasks: [toy]\nextends: base.yaml\n")
    with pytest.raises(ConfigError) as caught:
        load("study.yaml")
    expected = "base.yaml:1:10: extends: goes in a circle: study.yaml -> base.yaml -> study.yaml"
    assert str(caught.value) == expected


def test_an_extended_file_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path(), "extends: base.yaml\n")
    with pytest.raises(ConfigError, match=r'^study.yaml:1:10: extends: no such file "base.yaml"$'):
        load("study.yaml")


BASE = "tasks: [toy]\nsolvers: [{name: anderson, memory: 2}]\n"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("tasks[0].rows=7", lambda config: config.tasks[0].config["rows"] == 7),
        ("tasks.0.rows=7", lambda config: config.tasks[0].config["rows"] == 7),
        ("tasks[0].slope.value=0.25", lambda config: config.tasks[0].config["slope"]["value"] == 0.25),
        ("solvers[0].memory=4", lambda config: config.solvers[0].config["memory"] == 4),
        ("solvers=[picard, broyden]", lambda config: len(config.solvers) == 2),
        ("termination.rtol=1e-3", lambda config: config.termination["rtol"] == 1e-3),
        ("seeds=[1, 2]", lambda config: config.seeds == (1, 2)),
        ("name=other", lambda config: config.name == "other"),
    ],
)
def test_overrides(tmp_path: Path, override: str, read: object) -> None:
    assert callable(read)
    assert read(loaded(tmp_path, BASE, override))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("rows", "override 'rows': must be key.path=value, e.g. termination.rtol=1e-5"),
        ("=3", "override '=3': must be key.path=value, e.g. termination.rtol=1e-5"),
        ("tasks[3].rows=1", "override: tasks[3]: tasks has 1 item, counted from 0"),
        ("tasks.first.rows=1", "override: tasks.first: tasks has 1 item, counted from 0"),
        ("solvers[0].memory=x", 'override: solvers[0].memory: must be an integer, got "x"'),
        ("solvers[0].memroy=3", 'override: solvers[0].memroy: unknown option; did you mean "memory"?'),
        ("solvers[0]=andersen", 'override: solvers[0]: unknown solver "andersen"; did you mean "anderson"?'),
        ("seeds=[1", "override: seeds: its value cannot be read: is not YAML"),
        ("name.of.it=3", "override: name: must be a string or null, got a mapping"),
    ],
)
def test_a_bad_override_is_a_line_without_a_position(tmp_path: Path, override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, BASE, override)
    (found,) = str(caught.value).splitlines()
    assert found.startswith(line)


def test_labels_show_in_what_nested_settings_differ(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    plain, karras = "EulerDiscreteScheduler", "{name: EulerDiscreteScheduler, use_karras_sigmas: true}"
    tasks = "".join(
        f"  - {{name: sampling, scheduler: {each}}}\n" for each in (plain, karras, "UniPCMultistepScheduler")
    )
    file.write_text(f"tasks:\n{tasks}solvers: [serial]\n")
    assert [task.label for task in load(file).tasks] == [
        "sampling (EulerDiscreteScheduler)",
        "sampling (EulerDiscreteScheduler use_karras_sigmas=true)",
        "sampling (UniPCMultistepScheduler)",
    ]


def test_files_beside_the_run_file_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "data").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    text = "tasks: [toy, {{name: toy, data: {}}}]\nsolvers: [picard]\n"
    file = written(tmp_path / "studies", text.format("data"))
    found = [load(given).tasks[1].config["data"] for given in ("studies/study.yaml", file)]
    assert found == ["studies/data", str(tmp_path / "studies" / "data")]
    monkeypatch.chdir(tmp_path / "studies")
    assert load("study.yaml").tasks[1].config["data"] == "data"
    monkeypatch.chdir(tmp_path)
    for given in ("here", "nowhere", str(tmp_path / "here"), "~/data"):
        assert loaded(tmp_path / "studies", text.format(given)).tasks[1].config["data"] == given
    written(tmp_path / "studies", text.format("data"))
    assert load("studies/study.yaml", ["tasks[1].data=data"]).tasks[1].config["data"] == "data"  # typed in this folder
