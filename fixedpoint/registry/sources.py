"""Finds the source files of a module, computes a digest of them, and lists the modules that they import.

Code is handled in units. The unit of a module is the outermost regular package that contains it, with every file in
the package, data files included; or the module itself if no package contains it. Files are read once per process,
because later edits do not change code that is already loaded. They are read again if a module of the unit is reloaded.
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

# Bytes. A larger file is probably data, and reading it would delay every run: its size and modification time are used.
_LARGEST = 16 * 2**20
# Folders that hold no code of the package and change without an edit of it.
_IGNORED_FOLDERS = {"__pycache__", "node_modules"}


@dataclass(frozen=True)
class Unit:
    """A package with all its files, or a single module.

    Attributes
    ----------
    name
        Dotted name of the package or module, e.g. ``"mine"`` for the module ``mine.solvers.fast``.
    path
        The folder of the package, or the file of the module.
    """

    name: str
    path: Path


def unit_of(module: str) -> Unit | None:
    """Return the unit of a module, or None for the standard library and for code without a file (a notebook).

    Several distributions may share a namespace package, so the unit is the outermost regular package within it. Only
    namespace packages are imported to find the unit.
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
    """Return the sha256 of the names and contents of a unit's files, in hexadecimal.

    Parameters
    ----------
    unit
        The unit.
    without
        Paths of subfolders to leave out, relative to the unit.
    """
    return _digest_of(unit, without, _Loaded(unit.name))


def imports_of(unit: Unit) -> frozenset[str]:
    """Return the modules that a unit's files import, at the top level or in functions.

    ``from a import b`` gives both ``a`` and ``a.b``, since ``b`` may be a module. Calls of ``import_module`` and
    ``__import__`` count where their argument is a string literal.
    """
    return _imports_of(unit, _Loaded(unit.name))


class _Loaded:
    """The loaded modules of a unit, as part of a cache key: a reload makes it unequal, a further import does not."""

    def __init__(self, name: str) -> None:
        modules = [(each, module) for each, module in list(sys.modules.items()) if f"{each}.".startswith(f"{name}.")]
        # A reloaded module has a new spec. The old ones are stored so that their identities cannot be reused.
        self._specs = {each: getattr(module, "__spec__", None) for each, module in modules}

    def __hash__(self) -> int:
        return 0  # equality compares common modules only, so no hash of the modules would be consistent with it

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
        with suppress(OSError):  # removed meanwhile, or unreadable: only its name is hashed
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
    """The module of ``import_module("name")`` or ``__import__("name")``; relative names stay within the same unit."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name not in ("import_module", "__import__"):
        return
    given = call.args[0] if call.args else next((each.value for each in call.keywords if each.arg == "name"), None)
    if isinstance(given, ast.Constant) and isinstance(given.value, str) and not given.value.startswith((".", " ")):
        yield given.value


def _path_of(name: str) -> Path | None:
    """The path of a package or module; None for a namespace package, and for one that does not exist."""
    module = sys.modules.get(name)
    spec: ModuleSpec | None = getattr(module, "__spec__", None)
    if module is not None and spec is None:  # a script that is run as ``__main__`` has no spec
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
    """The files of a unit with their names relative to it, in a fixed order."""
    path = unit.path
    while not path.exists() and path != path.parent:  # a path within an archive: the whole archive is hashed
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
    """Whether a folder within a package is part of it: not a cache, not hidden, and not a run folder."""
    return (
        folder.name not in _IGNORED_FOLDERS and not folder.name.startswith(".") and not (folder / "run.json").is_file()
    )
