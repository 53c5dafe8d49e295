"""A page for every component, made with the site, as ``fixedpoint show`` has it."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from wording import markdown, option_list

from fixedpoint.config.describe import describe
from fixedpoint.registry import KINDS, Component, Kind, registry

TITLES: dict[Kind, str] = {
    "solver": "Solvers",
    "gradient": "Gradient estimators",
    "task": "Tasks",
    "executor": "Executors",
}
FOLDER = "reference"
INDEX = f"{FOLDER}/components.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The pages take their place in the navigation, under the one that lists them."""
    config.nav = _expanded(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, INDEX, content="\n".join(_index())))
    for kind in KINDS:
        for component in registry.components(kind).values():
            files.append(
                File.generated(
                    config,
                    _address(kind, component),
                    content="\n".join(_page(kind, component)),
                )
            )
    return files


def _expanded(nav: Any) -> Any:
    if isinstance(nav, list):
        return [_expanded(item) for item in nav]
    if isinstance(nav, dict):
        return {title: _section() if item == INDEX else _expanded(item) for title, item in nav.items()}
    return nav


def _section() -> list[Any]:
    return [
        INDEX,
        *({TITLES[kind]: [{c.name: _address(kind, c)} for c in _components(kind)]} for kind in KINDS),
    ]


def _components(kind: Kind) -> Iterable[Component]:
    return registry.components(kind).values()


def _address(kind: Kind, component: Component) -> str:
    return f"{FOLDER}/components/{kind}s/{component.name}.md"


def _index() -> Iterator[str]:
    yield "# Components\n"
    yield "All that has a name in run files, on the command line and in Python."
    yield "`fixedpoint list` shows those of your own environment, plugins included.\n"
    for kind in KINDS:
        yield f"## {TITLES[kind]}\n"
        for component in _components(kind):
            address = _address(kind, component).removeprefix(f"{FOLDER}/")
            yield f"[`{component.name}`]({address})"
            yield f":   {markdown(component.summary)}\n"


def _page(kind: Kind, component: Component) -> Iterator[str]:
    yield f"---\ndescription: {json.dumps(component.summary)}\n---\n"
    yield f"# {component.name}\n"
    also = f", also called {', '.join(component.aliases)}" if component.aliases else ""
    yield f"*A {kind} of {component.source} {component.version}{also}.*\n"
    if component.missing():
        yield f"It needs {', '.join(component.missing())}:\n"
        yield f"```\n{component.install_command()}\n```"
        return
    found = describe(kind, component.name)
    yield f"{markdown(found.text)}\n"
    yield "## In a run file\n"
    yield f"```yaml\n{found.example}\n```\n"
    for title, rows in (("Options", found.options), *found.choices.items()):
        if rows:
            yield f"## {title}\n"
            yield from option_list(rows)
    factory: Any = component.load()
    text = inspect.getdoc(sys.modules[factory.__module__])
    if text:
        yield "## How it works\n"
        yield f"{markdown(text)}\n"
    if component.references:
        yield "## References\n"
        yield from (f"- {markdown(reference)}" for reference in component.references)
