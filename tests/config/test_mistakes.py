"""Every mistake in a run file is one line that says where, what, and what was perhaps meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixedpoint.config.errors import ConfigError
from fixedpoint.config.runfile import load

pytestmark = pytest.mark.usefixtures("toys")

GOOD = "tasks: [toy]\nsolvers: [picard]\n"

WRONG = {
    "misspelt option": (
        "tasks: [toy]\nsolvers:\n  - picard\n  - name: anderson\n    memroy: 3\n",
        'study.yaml:5:5: solvers[1].memroy: unknown option; did you mean "memory"?',
    ),
    "misspelt inner option": (
        "tasks: [toy]\nsolvers:\n  - {name: chain, accelerator: {name: anderson, memroy: 3}}\n",
        'study.yaml:3:49: solvers[0].accelerator.memroy: unknown option; did you mean "memory"?',
    ),
    "misspelt key": (
        f"{GOOD}tresholds: 3\n",
        "study.yaml:3:1: tresholds: unknown option; did you mean",
    ),
    "wrong type": (
        "tasks: [toy]\nsolvers: [{name: anderson, memory: 1.5}]\n",
        "study.yaml:2:36: solvers[0].memory: must be an integer, got 1.5",
    ),
    "a number in quotes": (
        'tasks: [toy]\nsolvers: [{name: anderson, memory: "5"}]\n',
        'study.yaml:2:36: solvers[0].memory: must be an integer, got "5"',
    ),
    "true is no number": (
        f"{GOOD}termination: {{max_rounds: true}}\n",
        "study.yaml:3:27: termination.max_rounds: must be an integer or null, got true",
    ),
    "out of range": (
        "tasks: [toy]\nsolvers: [{name: anderson, memory: 0}]\n",
        "study.yaml:2:36: solvers[0].memory: must be at least 1, got 0",
    ),
    "not a choice": (
        f"{GOOD}termination: {{norm: l3}}\n",
        'study.yaml:3:21: termination.norm: must be one of "l2", "rms", "max", got "l3"',
    ),
    "item of a list": (
        "tasks: [{name: toy, sizes: [4, x]}]\nsolvers: [picard]\n",
        'study.yaml:1:32: tasks[0].sizes[1]: must be an integer, got "x"',
    ),
    "duplicate key": (
        "tasks: [toy]\nsolvers: [picard]\ntasks: [toy]\n",
        "study.yaml:3:1: tasks: the key stands here twice (first in line 1)",
    ),
    "unknown solver": (
        "tasks: [toy]\nsolvers: [andersen]\n",
        'study.yaml:2:11: solvers[0]: unknown solver "andersen"; did you mean "anderson"?',
    ),
    "unknown task": (
        "tasks: [{name: toi}]\nsolvers: [picard]\n",
        'study.yaml:1:16: tasks[0].name: unknown task "toi"; did you mean "toy"?',
    ),
    "missing extra": (
        "tasks: [toy]\nsolvers: [far]\n",
        "study.yaml:2:11: solvers[0]: 'far' needs surely_not_installed: pip install 'fixedpoint-solvers[far]'",
    ),
    "a class that is not there": (
        "tasks: [toy]\nsolvers: [lost]\n",
        "study.yaml:2:11: solvers[0]: lost (toy_plugin) cannot be loaded: toy_plugin has no Lost",
    ),
    "a class that is no dataclass": (
        "tasks: [toy]\nsolvers: [plain]\n",
        "study.yaml:2:11: solvers[0]: plain (toy_plugin) cannot be loaded: toy_plugin:NoOptions is no dataclass",
    ),
    "no name": (
        "tasks: [toy]\nsolvers:\n  - {memory: 3}\n",
        "study.yaml:3:5: solvers[0].name: a solver requires a name, it has none",
    ),
    "no component": (
        "tasks: [toy]\nsolvers: [3]\n",
        "study.yaml:2:11: solvers[0]: must be the name of a solver or a mapping with a name, got 3",
    ),
    "options that do not go together": (
        "tasks:\n  - {name: toy, colour: true}\nsolvers: [picard]\n",
        "study.yaml:2:25: tasks[0].colour: requires pictures: true",
    ),
    "range of a nested choice": (
        "tasks:\n  - {name: toy, slope: {value: 1}}\nsolvers: [picard]\n",
        "study.yaml:2:32: tasks[0].slope.value: must be less than 1, got 1",
    ),
    "a nested choice that is none": (
        "tasks: [{name: toy, slope: {name: Slop}}]\nsolvers: [picard]\n",
        'study.yaml:1:35: tasks[0].slope.name: unknown name "Slop"; did you mean "Slope"?',
    ),
    "tab": ("tasks:\n\t- toy\n", "study.yaml:2:1: a tab cannot indent YAML; use spaces"),
    "no YAML": ("tasks: [toy\nsolvers: 3\n", "study.yaml:2:8: is not YAML"),
    "wrong top level": ("- toy\n", "study.yaml:1:1: must be a mapping with tasks and solvers, got a list"),
    "empty file": ("", "study.yaml:1:1: the file is empty; a run requires tasks and solvers"),
    "only comments": ("# nothing\n", "study.yaml:1:1: the file is empty; a run requires tasks and solvers"),
    "mapping for a list": (
        "tasks: {name: toy}\nsolvers: [picard]\n",
        "study.yaml:1:8: tasks: must be a list",
    ),
    "list for a mapping": (
        f"{GOOD}termination: [1]\n",
        "study.yaml:3:14: termination: must be a mapping of options, got a list",
    ),
    "missing list": ("tasks: [toy]\n", "study.yaml:1:1: solvers: is required"),
    "empty list": ("tasks: [toy]\nsolvers: []\n", "study.yaml:2:10: solvers: requires at least one solver"),
    "the same twice": (
        "tasks: [toy]\nsolvers: [picard, {name: picard, relaxation: 1}]\n",
        "study.yaml:2:19: solvers[1]: is the same as solvers[0]",
    ),
    "a label twice": (
        "tasks: [toy]\nsolvers: [{name: picard, label: a}, {name: anderson, label: a}]\n",
        'study.yaml:2:37: solvers[1]: the label "a" is already that of solvers[0]',
    ),
    "a label that is no text": (
        "tasks: [toy]\nsolvers: [{name: picard, label: 3}]\n",
        "study.yaml:2:33: solvers[0].label: must be a string, got 3",
    ),
    "a seed twice": (f"{GOOD}seeds: [1, 1]\n", "study.yaml:3:12: seeds[1]: the seed 1 stands here twice"),
    "a seed below zero": (f"{GOOD}seeds: [-1]\n", "study.yaml:3:9: seeds[0]: must be at least 0"),
    "an expectation in words": (
        f"{GOOD}expect: {{relative_error: small}}\n",
        'study.yaml:3:26: expect.relative_error: must be a number, got "small"',
    ),
    "a tag": (f"{GOOD}name: !!python/name:os.system x\n", "study.yaml:3:7: name: the tag"),
    "an alias within itself": (f"{GOOD}name: &a [*a]\n", "study.yaml:3:7: name[0]: an alias must not repeat"),
    "a key that is no text": (f"{GOOD}3: x\n", "study.yaml:3:1: a key must be a string, got 3"),
}


def lines(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line_with_its_place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, expected = WRONG[name]
    Path("study.yaml").write_text(text)
    (line,) = lines(Path("study.yaml"))
    assert line.startswith(expected)


def test_several_mistakes_are_all_reported_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("tasks: [toy, tuy]\nsolvers: [pikard]\nseeds: x\nthreads: 0\n")
    found = [line.removeprefix(f"{file}:").split(":")[0] for line in lines(file)]
    assert found == ["1", "2", "3", "4"]


def test_a_missing_file_has_no_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert lines(Path("study.yaml")) == ["study.yaml: no such file"]


def test_bytes_that_are_no_text_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_bytes(b"tasks: \xff\n")
    assert lines(Path("study.yaml")) == ["study.yaml: is not UTF-8 text (byte 7)"]
