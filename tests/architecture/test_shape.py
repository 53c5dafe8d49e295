"""The shape of the code: files and functions that can be read in one go, and imports without cycles of any kind."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = [*(ROOT / "fixedpoint").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
LINES, STATEMENTS = 350, 60


def test_no_file_is_longer_than_can_be_read_in_one_go() -> None:
    assert [str(path.relative_to(ROOT)) for path in FILES if path.read_text().count("\n") > LINES] == []


def test_no_function_is_longer_than_a_screen() -> None:
    """Without its docstring."""
    too_long = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                said = node.body[0] if ast.get_docstring(node) is not None else None
                told = 0 if said is None else (said.end_lineno or 0) - said.lineno + 1
                if (node.end_lineno or 0) - node.lineno + 1 - told > STATEMENTS:
                    too_long.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert too_long == []


def test_imports_make_no_cycle() -> None:
    """Those in functions and under ``TYPE_CHECKING`` count like all others."""
    modules = {_name(path): path for path in FILES}
    graph = {name: set(_imported(name, path, modules)) for name, path in modules.items()}
    cycles = [cycle for cycle in _components(graph) if len(cycle) > 1]
    assert cycles == []


def test_a_cycle_is_seen() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set[str]()}
    assert sorted(map(sorted, _components(graph))) == [["a", "b", "c"], ["d"]]


def _name(path: Path) -> str:
    base = ROOT / "plugins" if path.is_relative_to(ROOT / "plugins") else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


def _imported(name: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules and alias.name != name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found = f"{node.module}.{alias.name}"
                found = found if found in modules else node.module
                if found in modules and found != name:
                    yield found


def _components(graph: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected components: by who reaches whom, which is quick enough for some hundred modules."""
    reached = {name: _reached(name, graph) for name in graph}
    left, found = set(graph), []
    while left:
        name = left.pop()
        component = {name, *(other for other in reached[name] if name in reached[other])}
        left -= component
        found.append(component)
    return found


def _reached(start: str, graph: dict[str, set[str]]) -> set[str]:
    seen, open_ends = set[str](), [start]
    while open_ends:
        for other in graph[open_ends.pop()] - seen:
            seen.add(other)
            open_ends.append(other)
    return seen
