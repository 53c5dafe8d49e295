"""Sources: the files that a module's code stands in, a digest of them, and what else that code imports.

A unit is what changes as one: the outermost regular package a module belongs to, with every file in it, data too, or
the module itself. Files are read once per process: code that was loaded is that of the files as they were then,
whatever is edited later, unless the module is reloaded.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path

__all__ = ["Unit", "digest_of", "imports_of", "unit_of"]

# Beyond this a file is data by all appearance, told by its size and time; reading it would hold up every run.
_LARGEST = 16 * 2**20
# Folders that are not code, and change by themselves.
_PASSING = {"__pycache__", "node_modules"}


@dataclass(frozen=True)
class Unit:
    """A package with all its files, or a single module.

    Attributes
    ----------
    name
        Its dotted name, ``"mine"`` for ``mine.solvers.fast``.
    path
        Folder of the package, or file of the module.
    """

    name: str
    path: Path


def unit_of(module: str) -> Unit | None:
    """The unit of a module; None for the standard library, and for what stands in no file (a notebook).

    Of a namespace package, which several distributions may share, it is the outermost regular package within.
    Nothing but namespace packages is imported to find out.
    """
    if module.partition(".")[0] in sys.stdlib_module_names:
        return None
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        name = ".".join(parts[:length])
        path = _path_of(name)
        if path is not None:
            return Unit(name, path)
    return None


def digest_of(unit: Unit, without: tuple[str, ...] = ()) -> str:
    """sha256 of the names and contents of a unit's files.

    Parameters
    ----------
    without
        Subfolders to leave out.
    """
    return _digest_of(unit, without, _Loaded(unit.name))


def imports_of(unit: Unit) -> frozenset[str]:
    """The modules that a unit's own files import, anywhere in them; of ``from a import b`` both ``a`` and ``a.b``.

    Of imports by a call those whose name stands there.
    """
    return _imports_of(unit, _Loaded(unit.name))


class _Loaded:
    """Which modules of a unit are loaded: the part of a cache's key that a reload changes."""

    def __init__(self, name: str) -> None:
        modules = [(each, module) for each, module in list(sys.modules.items()) if f"{each}.".startswith(f"{name}.")]
        # Held, so that no other object comes to have the identity; a module loaded again has a new one.
        self._specs = {each: getattr(module, "__spec__", None) for each, module in modules}

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Loaded):
            return NotImplemented
        common = self._specs.keys() & other._specs.keys()
        return all(self._specs[each] is other._specs[each] for each in common)


@functools.lru_cache(maxsize=256)
def _digest_of(unit: Unit, without: tuple[str, ...], _loaded: _Loaded) -> str:
    total = hashlib.sha256()
    for name, file in _files(unit, without):
        total.update(f"{name}\0".encode())
        with suppress(OSError):  # gone meanwhile, or not to be read: its name alone
            facts = file.stat()
            if facts.st_size > _LARGEST:
                total.update(f"{facts.st_size} {facts.st_mtime_ns}\0".encode())
            else:
                total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


@functools.lru_cache(maxsize=256)
def _imports_of(unit: Unit, _loaded: _Loaded) -> frozenset[str]:
    found: set[str] = set()
    for name, file in _files(unit, ()):
        if not name.endswith(".py"):
            continue
        with suppress(OSError, SyntaxError, ValueError):
            tree = ast.parse(file.read_bytes())
            parts = [unit.name, *Path(name).with_suffix("").parts] if unit.path.is_dir() else [unit.name]
            found.update(_imports(tree, parts))
    return frozenset(found)


def _imports(tree: ast.AST, parts: list[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = ".".join(parts).split(".")[: -node.level] if node.level else []
            base = ".".join([*around, *([node.module] if node.module else [])])
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.Call):
            yield from _imported_by_call(node)


def _imported_by_call(call: ast.Call) -> Iterator[str]:
    """The module of ``import_module("name")`` and ``__import__("name")``; a relative one is within its package."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name not in ("import_module", "__import__"):
        return
    given = call.args[0] if call.args else next((each.value for each in call.keywords if each.arg == "name"), None)
    if isinstance(given, ast.Constant) and isinstance(given.value, str) and not given.value.startswith((".", " ")):
        yield given.value


def _path_of(name: str) -> Path | None:
    """Where the package or module of that name stands; None for a namespace, and for what is not there."""
    module = sys.modules.get(name)
    spec: ModuleSpec | None = getattr(module, "__spec__", None)
    if module is not None and spec is None:  # a script
        file = getattr(module, "__file__", None)
        return Path(file).resolve() if file else None
    if spec is None:
        with suppress(ImportError, AttributeError, ValueError):
            spec = importlib.util.find_spec(name)
    if spec is None or not spec.has_location or not spec.origin:
        return None
    path = Path(spec.origin).resolve()
    return path.parent if spec.submodule_search_locations is not None else path


def _files(unit: Unit, without: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """The files of a unit with their names within it, always in the same order."""
    path = unit.path
    while not path.exists() and path != path.parent:  # within an archive, which stands for all that is in it
        path = path.parent
    if not path.is_dir():
        yield path.name, path
        return
    for folder, folders, names in os.walk(path):
        here = Path(folder)
        inside = here.relative_to(path)
        folders[:] = sorted(each for each in folders if _lasting(here / each) and str(inside / each) not in without)
        for name in sorted(names):
            if not name.startswith(".") and not name.endswith("~"):
                yield (inside / name).as_posix(), here / name


def _lasting(folder: Path) -> bool:
    """Whether a folder within a package is part of it: not a cache, not hidden, not the folder of a run."""
    return folder.name not in _PASSING and not folder.name.startswith(".") and not (folder / "run.json").is_file()
