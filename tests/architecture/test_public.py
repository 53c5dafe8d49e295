"""Public modules: flat names, each where it is said to be, documented once; docs and examples use no others."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import textwrap
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
    "fixedpoint_diffusion.modular": "plugins/fixedpoint_diffusion/modular/__init__.py",
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
    """On the page of one module; the pages of the others that export it link there."""
    pages = generated_pages()
    assert [path.removeprefix("reference/api/").removesuffix(".md") for path in pages] == ["index", *FACADES]
    shown = Counter(re.findall(r"^::: ([\w.]+)$", "\n".join(pages.values()), re.MULTILINE))
    shown.pop("fixedpoint.registry.hookspecs")
    homes = dict[int, str]()
    for facade in FACADES:
        module, page = importlib.import_module(facade), pages[f"reference/api/{facade}.md"]
        links = dict(re.findall(r"^\| \[`(\w+)`\]\[([\w.]+)\] \| \S", page, re.MULTILINE))
        assert sorted(links) == module.__all__
        for name, home in links.items():
            assert shown[home] == 1, home
            assert homes.setdefault(id(getattr(module, name)), home) == home
    assert set(shown) == set(homes.values())


def generated_pages() -> dict[str, str]:
    hooks = str(ROOT / "docs" / "hooks")
    sys.path.insert(0, hooks)
    try:
        pages: dict[str, str] = importlib.import_module("modules").pages()
    finally:
        sys.path.remove(hooks)
    return pages


@pytest.mark.parametrize("path", READ, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_and_examples_import_public_names_alone(path: Path) -> None:
    ours = {facade.split(".")[0] for facade in FACADES}
    for module, name in _imported(path):
        if module.split(".")[0] in ours:
            assert module in PUBLIC, module
            if module in FACADES and name is not None and f"{module}.{name}" not in PUBLIC:
                assert name in importlib.import_module(module).__all__, f"{module}.{name}"


@pytest.mark.parametrize(
    "path",
    [each for each in READ if each.name not in ("CONTRIBUTING.md", "design.md")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_pages_name_nothing_that_is_private(path: Path) -> None:
    """In backticks and alone: a module below the public ones."""
    for word in re.findall(r"`(fixedpoint[\w.]*)`", path.read_text()):
        parts = word.split(".")
        module = next(
            (".".join(parts[:n]) for n in (len(parts), len(parts) - 1) if ".".join(parts[:n]) in PUBLIC), None
        )
        assert module is not None or len(parts) == 1, word


def test_private_imports_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nfrom fixedpoint_diffusion import (\n    models,\n)\nimport fixedpoint.core\n```\n")
    assert list(_imported(page)) == [("fixedpoint_diffusion", "models"), ("fixedpoint.core", None)]


def _imported(path: Path) -> Iterator[tuple[str, str | None]]:
    text = path.read_text()
    blocks = [text] if path.suffix == ".py" else re.findall(r"^ *```python[^\n]*\n(.*?)^ *```", text, re.DOTALL | re.M)
    for block in blocks:
        plain = re.sub(r"^(>>>|\.\.\.) ?", "", textwrap.dedent(block), flags=re.MULTILINE)
        try:
            tree = ast.parse(plain)
        except SyntaxError:  # a session with its output: line by line
            tree = ast.parse("\n".join(line for line in plain.splitlines() if re.match(r"(from|import) [^(]+$", line)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, None) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((node.module or "", alias.name) for alias in node.names)
