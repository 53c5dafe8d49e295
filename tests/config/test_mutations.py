"""Run files changed by chance: each is read, or refused in lines that say where; never an exception of another kind."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from ruamel.yaml import YAML

from fixedpoint.config.document import parse
from fixedpoint.config.errors import ConfigError, Mistake
from fixedpoint.config.runfile import RunConfig, load, to_yaml
from fixedpoint.runs.plan import plan

pytestmark = pytest.mark.usefixtures("toys")

GOOD = """\
name: demo
seeds: [0, 3]
threads: 1
tasks:
  - {name: toy, rows: 2, slope: {value: 0.25}, sizes: [2, 3]}
  - name: ddim-sampling
    model: {name: shapes, variance: 0.1}
    num_inference_steps: 10
    eta: 1.0
solvers:
  - picard
  - {name: anderson, memory: 4, relaxation: 1, label: "four"}
  - name: chain
    preconditioner: coefficient
    accelerator: &fast {name: anderson, memory: 2, mixing: triangular}
  - {name: chain, preconditioner: zero, accelerator: *fast}
gradients: [one-step]
termination: {rtol: 1e-4, max_rounds: 50, norm: rms}
expect: {relative_error: 1e-3}
executor: in-process
"""
TOKENS = [
    *"ab:{}[]-#&*!|>'\"%@\t\n ,.0?~<=",
    "\x00",
    "\x85",
    "\u2028",
    "\ufeff",
    "\U0001f600",
    "\r\n",
    ": ",
    "- ",
    "? ",
    "<<: ",
    "*fast",
    "&fast ",
    "!!python/name:os.system ",
    "!!binary ",
    "!!set ",
    "---\n",
    "...\n",
    "null",
    "true",
    ".nan",
    "-.inf",
    "1e400",
    "-0",
    "0x10",
    "1_000",
    "12:30:45",
    "2026-11-23",
    "9" * 5000,
    "extends: study.yaml\n",
    "extends: [nowhere.yaml]\n",
    "name: ../../escape\n",
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.just(10**30),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(["picard", "anderson", "chain", "toy", "shapes", "serial", "unrolled", "../x", "", "needy", "far"]),
    st.just([]),
    st.just({}),
    st.lists(st.integers(-1, 1), max_size=3),
    st.dictionaries(
        st.sampled_from(["name", "memory", "label", "x"]), st.integers(0, 2) | st.text(max_size=3), max_size=2
    ),
)
FEW = hypothesis.settings(max_examples=70, suppress_health_check=list(hypothesis.HealthCheck))
MANY = hypothesis.settings(FEW, max_examples=5000)


@st.composite
def changed_texts(draw: st.DrawFn) -> str:
    """The good file after a few cuts, insertions and doublings."""
    text = GOOD
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, len(text)))
        end = position + draw(st.integers(0, 8))
        new = draw(st.one_of(st.sampled_from(TOKENS), st.just(text[position:end] * 2), st.characters()))
        text = text[:position] + new + text[end:]
    return text


@st.composite
def changed_trees(draw: st.DrawFn) -> str:
    """The good file with values exchanged, keys misspelt, things left out."""
    tree: Any = copy.deepcopy(YAML(typ="safe").load(GOOD))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["value", "key", "drop", "copy"]))
        if kind == "value":
            holder[key] = draw(VALUES)
        elif kind == "copy":
            other, at = draw(st.sampled_from(places))
            holder[key] = copy.deepcopy(other[at])
        else:
            value = holder.pop(key)
            if kind == "key" and isinstance(holder, dict):
                holder[draw(st.one_of(st.just(f"{key}s"), st.text(max_size=3), st.integers(0, 2)))] = value
    return to_yaml(tree) if isinstance(tree, dict) else GOOD


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def loaded(file: Path) -> tuple[RunConfig | None, tuple[Mistake, ...]]:
    try:
        return load(file), ()
    except ConfigError as error:
        return None, error.mistakes


def read(text: str, folder: Path) -> bool:
    """Whether the text is a good run file; a bad one is refused in lines with their place."""
    file = folder / "study.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    config, mistakes = loaded(file)
    if config is None:
        assert mistakes
        for mistake in mistakes:
            assert len(str(mistake).splitlines()) == 1
            assert str(mistake).startswith((f"{file}:", "nowhere.yaml", str(folder)))
            assert len(str(mistake)) < 1100 + len(str(file))
        return False
    plan(config)
    resolved = to_yaml(config.plain())
    assert parse(resolved, "config.yaml").data
    file.write_text(resolved)
    assert load(file).plain() == config.plain()
    return True


def test_the_good_file_is_good(tmp_path: Path) -> None:
    assert read(GOOD, tmp_path)


@FEW
@hypothesis.given(text=changed_texts())
def test_a_changed_text_is_read_or_refused_in_lines(tmp_path: Path, text: str) -> None:
    read(text, tmp_path)


@FEW
@hypothesis.given(text=changed_trees())
def test_a_changed_tree_is_read_or_refused_in_lines(tmp_path: Path, text: str) -> None:
    read(text, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@MANY
@hypothesis.given(text=changed_texts())
def test_five_thousand_changed_texts(tmp_path: Path, text: str) -> None:
    read(text, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@MANY
@hypothesis.given(text=changed_trees())
def test_five_thousand_changed_trees(tmp_path: Path, text: str) -> None:
    read(text, tmp_path)
