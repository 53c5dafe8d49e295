"""Commands that plugins bring: found, listed, called; one that cannot be used is a sentence and harms nothing."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
from typer.testing import CliRunner, Result

from fixedpoint.cli.main import app
from fixedpoint.registry import KINDS, Command, Registry, RegistryError, hookimpl, registry

Program = Callable[..., Result]


@pytest.fixture
def program(toys: ModuleType) -> Program:
    def invoke(*arguments: str, status: int = 0, columns: int = 80) -> Result:
        done = CliRunner().invoke(
            app, arguments, env={"COLUMNS": str(columns)}, catch_exceptions=False, terminal_width=columns
        )
        assert done.exit_code == status, done.output
        return done

    return invoke


def test_a_command_is_called_and_what_it_returns_is_the_exit_status(program: Program) -> None:
    assert program("greet", "Ada").stdout == "hello Ada\n"
    assert program("greet", "Ada", "--quiet").output == ""
    assert program("greet", "Ada", "--status", "1", status=1).stdout == "hello Ada\n"
    assert program("greet", "Ada", "--status", "0").exit_code == 0


@pytest.mark.parametrize(
    ("name", "line", "status"),
    [
        ("nobody", "nobody is there", 2),
        ("somebody", "somebody has left", 1),
        ("Ctrl-C", "interrupted", 130),
        ("Porlock", "interrupted; 54 lines are written", 130),
    ],
)
def test_what_goes_wrong_in_a_command_is_one_line_on_stderr(
    program: Program, name: str, line: str, status: int
) -> None:
    done = program("greet", name, status=status)
    assert (done.stdout, done.stderr) == ("", f"{line}\n")


def test_a_bug_stays_a_traceback(program: Program) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        program("greet", "bug")


UNUSABLE = [
    ("far-off", "'far-off' needs surely_not_installed: pip install 'fixedpoint-solvers[far]'"),
    (
        "lost-command",
        "the command 'lost-command' of toy_plugin cannot be used: toy_commands has no nowhere",
    ),
    (
        "sad-command",
        "the command 'sad-command' of toy_plugin cannot be used: toy_sad_command:cry: RuntimeError: rained out",
    ),
]


@pytest.mark.parametrize(("name", "line"), UNUSABLE)
@pytest.mark.parametrize("arguments", [(), ("Ada",), ("--help",)])
def test_a_command_that_cannot_be_used_says_why(
    program: Program, name: str, line: str, arguments: tuple[str, ...]
) -> None:
    done = program(name, *arguments, status=2)
    assert (done.stdout, done.stderr) == ("", f"{line}\n")


def test_annotations_that_are_none_of_typers_are_a_sentence(program: Program) -> None:
    done = program("odd-command", status=2)
    assert re.fullmatch("the command 'odd-command' of toy_plugin cannot be used: AssertionError: .+\n", done.stderr)


@pytest.mark.parametrize("columns", [60, 80])
def test_help_lists_every_command_and_imports_none(program: Program, columns: int) -> None:
    sys.modules.pop("toy_commands", None)
    done = program("--help", columns=columns)
    assert "toy_commands" not in sys.modules
    assert max(map(len, done.stdout.splitlines())) <= columns
    listed = re.findall(r"^  ([a-z][a-z-]+) {2,}\S", done.stdout.split("Commands:")[1], flags=re.MULTILINE)
    own = [command.name for command in app.registered_commands]
    assert listed[: len(own)] == own
    assert listed[len(own) :] == sorted(listed[len(own) :])
    assert {"greet", *(name for name, _ in UNUSABLE)} <= set(listed)
    assert re.search(r"^  greet +Says hello, or why not\.$", done.stdout, flags=re.MULTILINE)


@pytest.mark.parametrize("columns", [60, 80])
def test_the_help_of_a_command_is_like_that_of_the_programs_own(program: Program, columns: int) -> None:
    done = program("greet", "-h", columns=columns)
    assert re.match(
        r"Usage: fixedpoint greet \[OPTIONS\] \{?NAME\}?\n\n  Say hello.\n\n  Example:\n    fixedpoint", done.stdout
    )
    assert max(map(len, done.stdout.splitlines())) <= columns
    assert "Say hello." in program("greet", status=2).output  # nothing was typed, something is wanted


def test_a_misspelt_command_or_flag_is_told_the_nearest(program: Program) -> None:
    # Versions of typer differ in whether they say "one of" before the first of several.
    assert re.search(r"Did you mean (one of: )?'greet'", program("gret", status=2).stderr)
    assert "Did you mean 'run'?" in program("rnu", status=2).stderr
    assert "--quiet" in program("greet", "Ada", "--quite", status=2).stderr


def test_the_programs_own_commands_do_not_wait_for_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    def commands() -> dict[str, Command]:
        raise AssertionError("asked")

    monkeypatch.setattr(registry, "commands", commands)
    assert CliRunner().invoke(app, ["schema", "--help"], catch_exceptions=False).exit_code == 0
    with pytest.raises(AssertionError, match="asked"):
        CliRunner().invoke(app, ["--help"], catch_exceptions=False)


def test_list_has_commands_too(program: Program) -> None:
    shown = program("list", "commands").stdout
    assert re.search("^greet +says hello, or why not +toy_plugin", shown, flags=re.MULTILINE)
    assert "needs surely_not_installed" in " ".join(shown.split())
    assert "anderson" not in shown
    listed = json.loads(program("list", "command", "--json").stdout)["components"]
    assert {row["kind"] for row in listed} == {"command"}
    (row,) = [row for row in listed if row["name"] == "far-off"]
    assert row["missing"] == ["surely_not_installed"]
    assert row["install"] == "pip install 'fixedpoint-solvers[far]'"


def test_the_registry_knows_the_programs_own_commands() -> None:
    own = {command.name: command.callback for command in app.registered_commands}
    known = Registry(discover=False).commands()
    assert {name: command.load() for name, command in known.items()} == own
    assert all(command.summary for command in known.values())


def test_summaries_are_phrases_and_no_sentences() -> None:
    listed = [*registry.commands().values(), *(each for kind in KINDS for each in registry.components(kind).values())]
    own = [entry for entry in listed if entry.source == "fixedpoint-solvers"]
    assert {"invert", "anderson", "sampling"} <= {entry.name for entry in own}
    assert [entry.name for entry in own if entry.summary.endswith(".")] == []
    commands = [command for command in registry.commands().values() if command in own]
    assert [command.name for command in commands if not command.summary[0].islower()] == []


class Thief:
    @hookimpl
    def fixedpoint_commands(self):
        return [Command("mine", "json:dumps"), Command("doctor", "json:dumps")]


class Mistaken:
    @hookimpl
    def fixedpoint_commands(self):
        return ["greet"]


def test_a_name_that_the_program_has_is_refused_naming_both() -> None:
    found = Registry(discover=False)
    with pytest.raises(RegistryError) as caught:
        found.register(Thief(), "thief")
    assert str(caught.value) == (
        "the command name 'doctor' of thief is already taken by fixedpoint-solvers "
        "(fixedpoint.cli.doctor:doctor); refused json:dumps"
    )
    assert "mine" not in found.commands()
    assert found.broken() == []
    with pytest.raises(RegistryError, match="fixedpoint_commands must return commands, got 'greet'"):
        found.register(Mistaken(), "mistaken")


def test_two_plugins_with_one_command_are_a_row_that_names_both(toys: ModuleType) -> None:
    class Late:
        @hookimpl
        def fixedpoint_commands(self):
            return [Command("greet", "json:dumps")]

    with pytest.raises(RegistryError, match=r"'greet' of late is already taken by toy_plugin \(toy_commands:greet\)"):
        registry.register(Late(), "late")
    assert registry.commands()["greet"].source == "toy_plugin"


@pytest.mark.parametrize("name", ["", "-x", "two words", "Upper", "a--b", "run/me"])
def test_a_name_that_cannot_be_typed_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a command's name must be lower-case letters, digits and single hyphens"):
        Command(name, "json:dumps")


def test_commands_leave_with_their_plugin() -> None:
    class Guest:
        @hookimpl
        def fixedpoint_commands(self):
            return [Command("visit", "json:dumps", references=("Nobody 2020",))]

    found, guest = Registry(discover=False), Guest()
    found.register(guest, "guest")
    assert (found.commands()["visit"].source, found.commands()["visit"].origin()) == ("guest", "guest")
    found.unregister(guest)
    assert "visit" not in found.commands()
