"""Overrides: what is typed is what is set, or it is refused with what was typed and the string to type instead."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from fixedpoint.config.errors import ConfigError
from fixedpoint.config.runfile import load
from fixedpoint.config.words import type_words

pytestmark = pytest.mark.usefixtures("toys")

GOOD = "tasks: [toy]\nsolvers: [picard]\n"
# What is text to whoever types it, and something else to YAML.
EATEN = [
    *("#1", "#final", "a #b", "[1, 2] # two", "&x", "&x y", "*x", "!tag", "! y", "!!str 5", "|", ">", "|\n a", "---"),
    *("--- y", "...", "%YAML 1.2", "%x", "[", "]", "{", "}", "[a,,b]", "'", '"', "@x", "`x", ",", "<<", ": x", "x\ny"),
]
READ_OTHERWISE = [
    *("1E234", "1e5", "1_000", "0x1F", "0o17", "010", "1.", "-.5", "+1", ".inf", "-.INF", ".nan", "true", "False"),
    *("~", "Null", "NULL", "a: b", "a:", "{a}", "{a: 1}", "- a", "-", "[]", "? a", "1e999", "1e-999"),
]
TEXT = ["yes", "on", "12:30", "2024-01-01", "a,b", "=x", "a#b", "x:y", "1.2.3", "null and void", "é", "a=b", "--x"]


def loaded(folder: Path, text: str, *overrides: str) -> Any:
    (folder / "study.yaml").write_text(text)
    return load(folder / "study.yaml", overrides)


def refused(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text, *overrides)
    (line,) = str(caught.value).replace(f"{folder}/", "").splitlines()
    return line


@pytest.mark.parametrize("value", [*EATEN, *READ_OTHERWISE])
def test_what_is_no_text_to_yaml_is_refused_as_it_was_typed_with_the_text_to_type(tmp_path: Path, value: str) -> None:
    line = refused(tmp_path, GOOD, f"solvers[0].label={value}")
    assert line.startswith("override: solvers[0].label: ")
    shown, _, hint = line.partition("; in quotes it is a string: ")
    assert value.splitlines()[0] in shown or "cannot be read" in shown
    # What is said is what a shell makes the very text of.
    (argument,) = shlex.split(hint.replace(r"\n", "\n") if "\n" in value else hint)
    if "\n" not in value:
        assert loaded(tmp_path, GOOD, argument).solvers[0].label == value


@pytest.mark.parametrize("value", TEXT)
def test_text_is_text(tmp_path: Path, value: str) -> None:
    assert loaded(tmp_path, GOOD, f"name={value}").name == value


@pytest.mark.parametrize("key", ["name", "threads", "solvers[0].label", "termination.max_rounds"])
@pytest.mark.parametrize("value", ["", " ", "\t"])
def test_nothing_is_no_value(tmp_path: Path, key: str, value: str) -> None:
    assert refused(tmp_path, GOOD, f"{key}={value}") == f"override: {key}: has no value; null stands for none"


@pytest.mark.parametrize("value", ["null", "~"])
def test_null_stands_for_none(tmp_path: Path, value: str) -> None:
    assert loaded(tmp_path, GOOD + "name: x\nthreads: 2\n", f"threads={value}").threads is None


@pytest.mark.parametrize("override", ["name=''", 'name=" "'])
def test_a_name_is_not_empty(tmp_path: Path, override: str) -> None:
    assert "must not be empty" in refused(tmp_path, GOOD, override)


def test_what_a_file_extends_is_no_override(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(GOOD + "seeds: [3]\n")
    for text in (GOOD, "extends: base.yaml\n"):
        for value in ("base.yaml", "null", "5"):
            assert "extends: is read of files alone" in refused(tmp_path, text, f"extends={value}")


def test_a_value_that_is_what_was_wanted_is_set(tmp_path: Path) -> None:
    config = loaded(tmp_path, GOOD, "seeds=[0x10, 1_000, 3]", "termination={rtol: 1e-3}", "threads=+2", 'name="#1"')
    assert (config.seeds, config.termination["rtol"], config.threads, config.name) == ((16, 1000, 3), 1e-3, 2, "#1")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("threads=1e5", "threads: must be an integer or null, got 1e5"),
        ("termination.rtol=1E5", "termination.rtol: must be less than 1, got 1E5"),
        ("seeds=[-1_0]", "seeds[0]: must be at least 0 and less than 2^32, got -1_0"),
        ("solvers[0].relaxation=-.5", "solvers[0].relaxation: must be greater than 0, got -.5"),
        ("solvers=[1E1]", "solvers[0]: must be the name of a solver or a mapping with a name, got 1E1; in quotes"),
        ("solvers[0].name=0x1", "solvers[0].name: a solver requires a name, got 0x1; known: "),
        ("expect.relative_error=TRUE", "expect.relative_error: must be a number, got TRUE"),
        ("termination.norm=~", 'termination.norm: must be one of "l2", "rms", "max", got ~, which is null; in quotes'),
        ("termination=[1]", "termination: must be a mapping of options, got [1], which is a list"),
        ("threads=010", "threads: its value cannot be read: 010 can be read as decimal or octal; write 10 or 0o10"),
        ("expect.relative_error=1e999", "expect.relative_error: its value cannot be read: 1e999 is larger than any"),
        ("termination.atol=1e-999", "termination.atol: its value cannot be read: 1e-999 is so small that it would be"),
    ],
)
def test_values_are_shown_as_they_were_typed(tmp_path: Path, override: str, line: str) -> None:
    assert refused(tmp_path, GOOD, override).startswith(f"override: {line}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            f"{GOOD}name: 1E234\n",
            'study.yaml:3:7: name: must be a string or null, got 1E234; in quotes it is a string: name: "1E234"',
        ),
        (
            f"{GOOD}name: #final\n",
            'name: has no value, for #final is a comment; in quotes it is a string: name: "#final"',
        ),
        ("tasks: [toy]\nsolvers: [{name: picard, label: 0x1}]\n", 'got 0x1; in quotes it is a string: label: "0x1"'),
        ("tasks: [toy]\nsolvers:\n  - name: picard\n    label: #1\n", "solvers[0].label: has no value, for #1 is a"),
        ("tasks: [toy]\nsolvers:\n  - name: picard\n    label:\n", "solvers[0].label: must be a string, got nothing"),
        ("tasks: [toy]\nsolvers: # all of them\n", "solvers: must be a list, got nothing"),
        (f"{GOOD}seeds: [007]\n", "seeds[0]: 007 can be read as decimal or octal; write 7 or 0o7"),
        ("tasks: toy\nsolvers: [picard]\n", 'study.yaml:1:8: tasks: must be a list, got "toy"'),
        (f"{GOOD}name: {{a: 1}}\n", "name: must be a string or null, got a mapping"),
    ],
)
def test_so_are_those_of_files(tmp_path: Path, text: str, line: str) -> None:
    assert line in refused(tmp_path, text)


def test_a_comment_is_a_comment_where_it_looks_like_one(tmp_path: Path) -> None:
    assert loaded(tmp_path, GOOD + "name: # of the file\nthreads: 2 # two\n").threads == 2


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (tuple[Any, ...], "a list"),
        (Any, "anything"),
        (list, "a list"),
        (dict, "a mapping"),
        (dict[str, Any], "a mapping"),
        (tuple[int, str], "a list of an integer, a string"),
        (tuple[float, ...] | None, "a list (each a number) or null"),
        (Path | None, "a Path (from Python only) or null"),
    ],
)
def test_types_are_told_in_words(annotation: Any, words: str) -> None:
    assert type_words(annotation) == words
