"""What there is stands in the documentation: commands, hooks, statuses, keys, components, names."""

from __future__ import annotations

import html
import inspect
import itertools
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer
import typer.main
from doc_pages import ROOT, sections
from ruamel.yaml import YAML

import fixedpoint
from fixedpoint.cli.main import app
from fixedpoint.config.describe import describe
from fixedpoint.config.runfile import RunFile
from fixedpoint.core.options import option_types
from fixedpoint.core.status import Status
from fixedpoint.core.termination import Termination
from fixedpoint.registry import KINDS, hookspecs, registry

PROGRAM = typer.main.get_command(app)
COMMANDS = {
    name: PROGRAM.resolve_command(typer.Context(PROGRAM), [name])[1]
    for name, command in registry.commands().items()
    if command.source == "fixedpoint-solvers"
}
HOOKS = [name for name in vars(hookspecs) if name.startswith("fixedpoint_")]


def spelt(text: str, word: str) -> bool:
    """Whether the word stands in the text as code, alone or with what follows it."""
    return re.search(rf"`{re.escape(word)}(?![\w-])[^`]*`", text) is not None


def table_rows(text: str) -> dict[str, str]:
    """The rows of the tables of a text, by the code in their first column."""
    rows = {}
    for line in text.splitlines():
        match = re.match(r"\| `([^`]+)` \|(.*)\|$", line)
        if match:
            rows[match[1]] = match[2]
    return rows


def plain_text(page: str) -> str:
    """What is read of a page, white space made one."""
    return " ".join(html.unescape(re.sub(r"<br ?/?>", " ", re.sub(r"</?(?!br)[^>]+>", "", page))).split())


def bare(text: str) -> str:
    """Without markup: bullets, asterisks and backticks."""
    return " ".join(re.sub(r"^- |[`*]", "", text, flags=re.MULTILINE).split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_with_all_it_takes(name: str) -> None:
    section = sections("docs/reference/command-line.md").get(name)
    assert section is not None, f"no section on {name}"
    for parameter in COMMANDS[name].params:
        names = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]
        for each in names:
            assert spelt(section, each), f"{name}: {each} is not documented"


def test_no_command_or_option_that_is_none() -> None:
    known = {option for command in COMMANDS.values() for p in command.params for option in p.opts}
    known |= {option for p in PROGRAM.params for option in p.opts} | {"--help", "-h"}
    for title, text in sections("docs/reference/command-line.md").items():
        shown = set(re.findall(r"`(--?[a-z][a-z-]*)", text))
        assert shown <= known, title
        if re.search(r"^`[^`]+`( \.\.\.)?(, `[^`]+`)*\n:   ", text, re.MULTILINE):
            assert title in COMMANDS, title


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook(name: str) -> None:
    rows = table_rows(sections("docs/how-to/write-a-plugin-package.md")["Every hook"])
    assert name in rows
    for argument in inspect.signature(getattr(hookspecs, name)).parameters:
        assert spelt(rows[name], argument), f"{name}: {argument}"
    implemented = "".join(path for path in sections("docs/how-to/write-a-plugin-package.md").values())
    assert f"@hookimpl\ndef {name}(" in implemented, f"no example of {name}"


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.RUNNING])
def test_every_status_with_what_it_means(status: Status) -> None:
    rows = table_rows(sections("docs/concepts/fixed-points.md")["Statuses"])
    assert status.label in rows
    gist = re.split(r"[;:(]|, ", status.sentence)[0].strip()
    assert gist in rows[status.label].replace("`", ""), gist


def test_the_table_of_statuses_has_no_other() -> None:
    rows = table_rows(sections("docs/concepts/fixed-points.md")["Statuses"])
    assert set(rows) == {status.label for status in Status} - {"running"}


@pytest.mark.parametrize(("heading", "options"), [("Keys", RunFile), ("Termination", Termination)])
def test_every_key_of_a_run_file(heading: str, options: type) -> None:
    assert set(table_rows(sections("docs/reference/run-files.md")[heading])) == set(option_types(options))


@pytest.mark.parametrize("name", fixedpoint.__all__)
def test_every_public_name(site: Path, name: str) -> None:
    page = (site / "reference" / "api" / "fixedpoint" / "index.html").read_text()
    assert re.search(rf'href="[\w./]*#fixedpoint[\w.]*\.{name}"><code>{name}</code>', page), name


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in registry.components(kind)])
def test_every_component_has_its_page(site: Path, kind: str, name: str) -> None:
    component = registry.components(kind)[name]
    if component.source != "fixedpoint-solvers":
        pytest.skip("brought by somebody else")
    index = (site / "reference" / "components" / "index.html").read_text()
    assert f'href="{kind}s/{name}/"' in index
    assert component.summary in plain_text(index)
    page = (site / "reference" / "components" / f"{kind}s" / name / "index.html").read_text()
    text = plain_text(page)
    found = describe(kind, name)
    assert found.example in text
    assert " ".join(found.text.split()).replace("``", "") in text
    explained = inspect.getdoc(inspect.getmodule(component.load())) or ""
    assert bare(explained) in bare(text)
    for reference in component.references:
        assert reference in text
    for row in (*found.options, *(row for rows in found.choices.values() for row in rows)):
        assert f"<code>{row.name}</code>" in page, row.name
        said = f"{row.type}, {row.range}" if row.range else row.type
        assert f"{said}; {'required' if row.default is None else f'default {row.default}'}" in text, row.name
        assert row.help.replace("`", "") in text, row.name


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    cited = YAML(typ="safe").load(text)
    assert cited["version"] == fixedpoint.__version__
    assert cited["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    assert cited["references"][0]["title"] in (ROOT / "README.md").read_text()


def test_make_help_lists_every_command() -> None:
    lists = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert re.findall(r"^  make (\S+)\s+\S", lists.stdout, re.MULTILINE) == phony[1].split()


def test_every_page_has_its_place_in_the_navigation(site: Path) -> None:
    shown = (site / "index.html").read_text()
    for path in (ROOT / "docs").rglob("*.md"):
        where = path.relative_to(ROOT / "docs").with_suffix("").as_posix()
        if where != "index" and not where.startswith("assets/"):
            assert f'href="{where}/"' in shown, where


def test_words_are_explained_once() -> None:
    lines = (ROOT / "docs/concepts/glossary.md").read_text().splitlines()
    words = [word for word, after in itertools.pairwise(lines) if after.startswith(":   ")]
    assert len(words) > 60
    assert len(set(words)) == len(words)
