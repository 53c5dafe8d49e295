"""Public modules: flat names, each where it is said to be, documented once; docs and examples use no others."""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FACADES = {
    "fixedpoint": "fixedpoint/__init__.py",
    "fixedpoint.chains": "fixedpoint/chains/__init__.py",
    "fixedpoint.layers": "fixedpoint/layers/__init__.py",
    "fixedpoint.plugin": "fixedpoint/plugin.py",
    "fixedpoint.testing": "fixedpoint/testing/__init__.py",
    "fixedpoint_diffusion": "plugins/fixedpoint_diffusion/__init__.py",
    "fixedpoint_sequences": "plugins/fixedpoint_sequences/__init__.py",
    "fixedpoint_torchdeq": "plugins/fixedpoint_torchdeq/__init__.py",
}
# ``strategies`` needs hypothesis, ``cli.main`` is the program: public, and no part of a facade.
PUBLIC = {*FACADES, "fixedpoint.testing.strategies", "fixedpoint.cli.main"}
READ = [
    *(ROOT / "docs").rglob("*.md"),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "examples").rglob("*.py"),
    *(ROOT / "examples").rglob("*.md"),
]


@pytest.mark.parametrize("facade", FACADES)
def test_every_public_name_can_be_imported(facade: str) -> None:
    module = importlib.import_module(facade)
    assert module.__all__
    for name in module.__all__:
        assert hasattr(module, name), name
    assert dir(module) == module.__all__
    with pytest.raises(AttributeError, match=re.escape(f"module {facade!r} has no attribute 'nothing'")):
        _ = module.nothing


@pytest.mark.parametrize("facade", FACADES)
def test_type_checkers_are_told_the_same(facade: str) -> None:
    tree = ast.parse((ROOT / FACADES[facade]).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {
        (statement.module, alias.name, alias.asname)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    (table,) = (node for node in ast.walk(tree) if isinstance(node, ast.Dict))
    where = {(module, name, name) for module, names in ast.literal_eval(table).items() for name in names}
    assert told == where


def test_every_public_name_is_documented_once() -> None:
    page = (ROOT / "docs/api.md").read_text()
    shown = Counter(re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)) + Counter(
        re.findall(r"`(fixedpoint[\w.]*\.\w+)`", page)
    )
    objects = Counter[tuple[str, str]]()
    for facade in FACADES:
        module = importlib.import_module(facade)
        for name in module.__all__:
            value = getattr(module, name)
            key = (getattr(value, "__module__", facade), name) if callable(value) else ("", name)
            objects[key] += shown[f"{facade}.{name}"]
    assert {name: times for (_, name), times in objects.items() if times != 1} == {}


@pytest.mark.parametrize("path", READ, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_and_examples_import_public_modules_alone(path: Path) -> None:
    for module in _imported(path):
        if module.split(".")[0] in {facade.split(".")[0] for facade in FACADES}:
            assert module in PUBLIC, module


def _imported(path: Path) -> Iterator[str]:
    text = path.read_text()
    blocks = [text] if path.suffix == ".py" else re.findall(r"^ *```python[^\n]*\n(.*?)^ *```", text, re.DOTALL | re.M)
    for block in blocks:
        for line in re.findall(r"^\s*(?:>>> )?((?:from|import) [\w., ]+)", block, re.MULTILINE):
            words = line.split()
            yield from [words[1]] if words[0] == "from" else [each.strip(",") for each in words[1:]]
