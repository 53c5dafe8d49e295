"""The description of a component is derived from the declaration of its options."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from fixedpoint.config.describe import describe
from fixedpoint.config.runfile import load
from fixedpoint.registry import KINDS, registry


def test_options_in_words(toys: ModuleType) -> None:
    rows = {row.name: row for row in describe("solver", "anderson").options}
    memory = rows["memory"]
    assert (memory.type, memory.default, memory.range) == ("an integer", "5", ">= 1")
    assert memory.help
    assert rows["relaxation"].range == "> 0, <= 2"
    toy = describe("task", "toy")
    assert {row.name: row.type for row in toy.options}["sizes"] == "a list (each an integer)"
    assert [row.name for row in toy.choices["slope: Slope"]] == ["value"]


def test_every_component_can_be_described_and_its_example_is_read(tmp_path: Path) -> None:
    for kind in KINDS:
        for component in registry.components(kind).values():
            found = describe(kind, component.name)
            assert all(row.help for row in found.options), component.name
            lines = {"task": "tasks: [ddim-sampling]", "solver": "solvers: [picard]"}
            lines[kind] = found.example
            file = tmp_path / "study.yaml"
            file.write_text("\n".join(lines.values()) + "\n")
            load(file)


def test_what_is_missing_is_said_with_the_install_command(toys: ModuleType) -> None:
    with pytest.raises(ImportError, match=r"pip install 'fixedpoint-solvers\[far\]'"):
        describe("solver", "far")
