"""A page for every public module, made with the site from its names.

A name that several modules export is documented by one of them; the others link to it.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from wording import markdown, option_list

from fixedpoint.config.describe import option_rows
from fixedpoint.core.options import Options
from fixedpoint.registry import KINDS, registry

# In the order of the navigation.
MODULES = (
    "fixedpoint",
    "fixedpoint.chains",
    "fixedpoint.layers",
    "fixedpoint.plugin",
    "fixedpoint.testing",
    "fixedpoint_diffusion",
    "fixedpoint_diffusion.modular",
    "fixedpoint_sequences",
    "fixedpoint_torchdeq",
)
# Who documents a name that several export: the most special of them.
_HOMES = (
    "fixedpoint.chains",
    "fixedpoint.layers",
    "fixedpoint.plugin",
    "fixedpoint.testing",
    *MODULES,
)
FOLDER = "reference/api"
INDEX = f"{FOLDER}/index.md"

# Headings, by the package that a name is defined in: the longest that fits.
_HEADINGS = {
    "fixedpoint": "Solving",
    "fixedpoint.core.evaluator": "Evaluation",
    "fixedpoint.core.fault": "Conformance",
    "fixedpoint.core.history": "Evaluation",
    "fixedpoint.core.inverse_jacobian": "Gradient estimators",
    "fixedpoint.core.layout": "Problems",
    "fixedpoint.core.loop": "Solvers",
    "fixedpoint.core.options": "Options",
    "fixedpoint.core.outcome": "Solvers",
    "fixedpoint.core.point": "Evaluation",
    "fixedpoint.core.problem": "Problems",
    "fixedpoint.core.progress": "Evaluation",
    "fixedpoint.core.reduce": "Row-wise arithmetic",
    "fixedpoint.core.solver": "Solvers",
    "fixedpoint.execution": "Executors",
    "fixedpoint.gradients": "Gradient estimators",
    "fixedpoint.registry": "Registry",
    "fixedpoint.solvers": "Solvers",
    "fixedpoint.tasks": "Tasks",
    "fixedpoint.layers": "Layers",
    "fixedpoint.testing": "Conformance",
    "fixedpoint.chains": "Chains",
    "fixedpoint.chains.adjoint": "Gradients",
    "fixedpoint.chains.capabilities": "Abilities of chains",
    "fixedpoint.chains.coarse": "Abilities of chains",
    "fixedpoint.chains.inversion": "Inversion",
    "fixedpoint.chains.joint": "Joint solvers",
    "fixedpoint.chains.methods": "Other methods",
    "fixedpoint.chains.planning": "Planning",
    "fixedpoint.chains.slope": "Slopes of the steps",
    "fixedpoint_diffusion": "Diffusion",
    "fixedpoint_diffusion.samplers": "Sampling",
    "fixedpoint_diffusion.denoisers": "Denoisers",
    "fixedpoint_diffusion.models": "Models",
    "fixedpoint_diffusion.inversion": "Inversion",
    "fixedpoint_diffusion.fashion_mnist": "Fashion-MNIST",
    "fixedpoint_diffusion.modular": "Modular Diffusers",
    "fixedpoint_sequences": "Sequences",
    "fixedpoint_torchdeq": "torchdeq",
}
_HOOKS = """## Hooks

What a plugin implements, each marked with `fixedpoint.plugin.hookimpl`.

::: fixedpoint.registry.hookspecs
    options:
      show_root_heading: false
      show_root_toc_entry: false
      members_order: source
      filters: ["^fixedpoint_"]
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The pages take their place in the navigation."""
    config.nav = _expanded(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for address, content in pages().items():
        files.append(File.generated(config, address, content=content))
    return files


def pages() -> dict[str, str]:
    """Address and content of every page."""
    found = {INDEX: "\n".join(_index())}
    for module in MODULES:
        found[f"{FOLDER}/{module}.md"] = "\n".join(_page(importlib.import_module(module)))
    return found


def _expanded(nav: Any) -> Any:
    if isinstance(nav, list):
        return [_expanded(item) for item in nav]
    if isinstance(nav, dict):
        return {title: _section() if item == INDEX else _expanded(item) for title, item in nav.items()}
    return nav


def _section() -> list[Any]:
    return [INDEX, *({module: f"{FOLDER}/{module}.md"} for module in MODULES)]


def _index() -> Iterator[str]:
    yield "# API\n"
    yield "The public modules. Each is flat, and imports a name when it is first used. Modules below them are private"
    yield "and may move. Importing `fixedpoint` alone loads neither torch nor anything else that is heavy.\n"
    for name in MODULES:
        module = importlib.import_module(name)
        yield f"[`{name}`]({name}.md)"
        yield f":   {markdown(_first(inspect.getdoc(module)))}\n"
    yield "`fixedpoint.testing.strategies` has the hypothesis strategies of the library's own tests (it requires"
    yield "hypothesis), `fixedpoint.cli.main.main` is the [program](../command-line.md)."


def _page(module: ModuleType) -> Iterator[str]:
    yield f"# {module.__name__}\n"
    yield f"{markdown(inspect.getdoc(module) or '')}\n"
    groups: dict[str, list[str]] = {}
    for name in module.__all__:
        groups.setdefault(_heading(module, name), []).append(name)
    order = list(dict.fromkeys(_HEADINGS.values()))
    headings = sorted(groups, key=order.index)
    for heading in headings:
        if len(headings) > 1:
            yield f"## {heading}\n"
        yield "| Name | What it is |\n|---|---|"
        for name in groups[heading]:
            yield f"| [`{name}`][{_home(module, name)}] | {_cell(module, name)} |"
        yield ""
        for name in groups[heading]:
            if _home(module, name) == f"{module.__name__}.{name}":
                yield from _entry(module, name)
    if module.__name__ == "fixedpoint.plugin":
        yield _HOOKS


def _entry(module: ModuleType, name: str) -> Iterator[str]:
    value = getattr(module, name)
    yield f"::: {module.__name__}.{name}"
    known = _component_page(value)
    concrete = isinstance(value, type) and issubclass(value, Options) and dataclasses.is_dataclass(value)
    if known or (concrete and not _has_methods(value)):
        yield "    options:\n      members: []\n"
    elif name == "Evaluator":
        yield "    options:\n      inherited_members: true\n"
    else:
        yield ""
    if known:
        yield f"Options and run files: [{known[0]}]({known[1]}).\n"
    elif concrete and (rows := option_rows(value)):
        yield "**Options**\n"
        yield from option_list(rows)


def _has_methods(cls: type) -> bool:
    return any(inspect.isfunction(value) and not key.startswith("_") for key, value in vars(cls).items())


def _component_page(value: object) -> tuple[str, str] | None:
    """Title and address of the page of a component."""
    for kind in KINDS:
        for component in registry.components(kind).values():
            if not component.missing() and isinstance(value, type) and component.load() is value:
                return (
                    f"{kind} {component.name}",
                    f"../components/{kind}s/{component.name}.md",
                )
    return None


def _heading(module: ModuleType, name: str) -> str:
    place = _defined_in(module, name)
    parts = place.split(".")
    return next(_HEADINGS[known] for n in range(len(parts), 0, -1) if (known := ".".join(parts[:n])) in _HEADINGS)


def _home(module: ModuleType, name: str) -> str:
    """The path under which it is documented."""
    place = _defined_in(module, name)
    for other in _HOMES:
        candidate = importlib.import_module(other)
        if name in candidate.__all__ and _defined_in(candidate, name) == place:
            return f"{other}.{name}"
    raise KeyError(f"{module.__name__}.{name}")


def _defined_in(module: ModuleType, name: str) -> str:
    """The private module that a name comes from; the public one for what it has itself."""
    return _imported_from(module, name) or module.__name__


def _imported_from(module: ModuleType, name: str) -> str | None:
    for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
        if isinstance(node, ast.ImportFrom) and any((each.asname or each.name) == name for each in node.names):
            return node.module
    return None


def _cell(module: ModuleType, name: str) -> str:
    value = getattr(module, name)
    text = inspect.getdoc(value) if callable(value) else _documented(_defined_in(module, name), name)
    return markdown(_first(text)).replace("|", "\\|")


def _documented(module: str, name: str) -> str:
    """The string below an assignment, in the module where it is made."""
    further = _imported_from(sys.modules[module], name)
    if further is not None:
        return _documented(further, name)
    body = ast.parse(inspect.getsource(sys.modules[module])).body
    for node, following in itertools.pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(each, ast.Name) and each.id == name for each in targets)
        if named and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            return str(following.value.value)
    raise KeyError(f"{module}.{name} has no docstring")


def _first(text: str | None) -> str:
    """The first sentence of a docstring."""
    paragraph = " ".join((text or "").split("\n\n")[0].split())
    head, dot, _ = paragraph.partition(". ")
    return head + "." if dot else paragraph
