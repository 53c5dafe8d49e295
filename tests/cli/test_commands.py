"""The commands: what they print, where, and their exit status."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner, Result

import fixedpoint.testing
from fixedpoint.cli.main import app
from fixedpoint.core.solver import Solver
from fixedpoint.registry import registry
from fixedpoint.registry.faults import Broken
from fixedpoint.report.reading import read_run
from fixedpoint.report.table import sections
from fixedpoint.testing.conformance import CheckReport, CheckRow

STUDY = "tasks: [toy]\nsolvers: [picard, anderson, broyden]\ntermination: {rtol: 1e-8}\n"


class Program:
    """The program in a folder of its own, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: str, status: int = 0, columns: int = 80) -> Result:
        done = CliRunner().invoke(
            app, arguments, env={"COLUMNS": str(columns)}, catch_exceptions=False, terminal_width=columns
        )
        assert done.exit_code == status, done.output
        return done

    def study(self, text: str = STUDY) -> None:
        (self.folder / "study.yaml").write_text(text)


@pytest.fixture
def program(toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.chdir(tmp_path)
    return Program(tmp_path)


def in_subprocess(*arguments: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def assert_fits(text: str, width: int = 80) -> None:
    assert max(map(len, text.splitlines())) <= width


def test_run_prints_the_table_and_writes_the_report(program: Program) -> None:
    program.study(STUDY + "expect: {relative_error: 1e-6}\n")
    done = program("run", "study.yaml")
    assert_fits(done.stdout)
    row = re.search(r"^anderson +3 converged +(\d+) +(\d+) +[\d.e-]+ +[\d.]+e-\d\d", done.stdout, flags=re.MULTILINE)
    assert row is not None
    assert "\x1b" not in done.stdout + done.stderr
    for name in ("table.md", "table.csv", "convergence.png", "convergence.svg", "report.html"):
        assert f"wrote runs/study/{name}" in done.stdout
        assert (program.folder / "runs" / "study" / name).is_file()
    assert done.stderr.splitlines()[0].startswith("[1/3] toy / picard / seed 0: 3 converged, ")


def test_the_program_runs_as_a_module_with_a_plugin_that_is_installed(
    tmp_path: Path, toy_environment: dict[str, str]
) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    done = in_subprocess("-m", "fixedpoint", "run", "study.yaml", folder=tmp_path, environment=toy_environment)
    assert (tmp_path / "runs" / "study" / "report.html").is_file()
    assert len(done.stderr.splitlines()) == 3  # one line a cell, and no warning
    record = next((tmp_path / "runs" / "study" / "records").glob("*.json"))
    assert json.loads(record.read_text())["versions"]["toy-plugin"] == "0.1"


def test_a_second_run_reuses_and_quiet_says_nothing(program: Program) -> None:
    program.study()
    program("run", "study.yaml", "--output", "out")
    assert "3 of 3 cells had their record already" in program("run", "study.yaml", "-o", "out").stdout
    silent = program("run", "study.yaml", "-o", "out", "--quiet")
    assert silent.stdout == silent.stderr == ""
    assert "[1/3]" in program("run", "study.yaml", "-o", "out", "--fresh").stderr


def test_a_failed_cell_ends_with_status_1_and_its_message(program: Program) -> None:
    program.study()
    done = program("run", "study.yaml", "--quiet", "tasks[0].error=out of cheese", status=1)
    assert "toy / picard / seed 0: failed: RuntimeError: out of cheese" in done.stderr.splitlines()
    assert (program.folder / "runs" / "study" / "report.html").is_file()


def test_a_broken_expectation_ends_with_status_1_and_a_sentence(program: Program) -> None:
    program.study(STUDY + "expect: {relative_error: 1e-30}\n")
    done = program("run", "study.yaml", status=1)
    assert "relative_error is" in done.stderr
    assert "expected at most 1e-30" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("run", "study.yaml"), 'study.yaml:2:11: solvers[0]: unknown solver "pikard"; did you mean "picard"?'),
        (("run", "other.yaml"), "other.yaml: no such file"),
        (("run", "study.yaml", "tasks[7]=x"), "override: tasks[7]: tasks has 1 item, counted from 0"),
        (
            ("run", "study.yaml", "solver[0]=picard"),
            'override: solver[0]: there is no solver; did you mean "solvers"?',
        ),
        (("report", "nowhere"), "nowhere holds no run (it has no run.json)"),
        (("show", "andersen"), 'unknown component "andersen"; did you mean "anderson"?'),
        (("show", "far"), "'far' needs surely_not_installed: pip install 'fixedpoint-solvers[far]'"),
        (("check", "andersen"), 'name: unknown solver "andersen"; did you mean "anderson"?'),
        (("check", "anderson", "memory=0"), "override: memory: must be at least 1, got 0"),
        (("list", "solve"), 'unknown kind "solve"; did you mean "solver"?'),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_status_2(program: Program, arguments: tuple[str, ...], line: str) -> None:
    program.study("tasks: [toy]\nsolvers: [pikard]\n")
    done = program(*arguments, status=2)
    assert done.stdout == ""
    assert done.stderr == f"{line}\n"


def test_a_folder_that_cannot_be_written_is_a_sentence(program: Program) -> None:
    program.study()
    (program.folder / "out").write_text("a file")
    done = program("run", "study.yaml", "--output", "out", "--quiet", status=1)
    assert done.stderr.startswith("cannot write out: ")


def test_report_writes_everything_again(program: Program) -> None:
    program.study()
    program("run", "study.yaml", "-o", "out")
    page = program.folder / "out" / "report.html"
    page.unlink()
    done = program("report", "out")
    assert page.is_file()
    assert "anderson" in done.stdout


def test_list_shows_every_kind_and_why_something_cannot_be_used(program: Program) -> None:
    done = program("list")
    assert_fits(done.stdout)
    for name in ("anderson", "one-step", "toy", "in-process", "far"):
        assert re.search(rf"^{name}\b", done.stdout, flags=re.MULTILINE), name
    assert "pip install" in done.stdout
    only = program("list", "tasks").stdout
    assert "toy" in only
    assert "anderson" not in only


def test_list_shows_a_broken_plugin_with_its_reason(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Broken("sad", "plugin", "sad 1", "RuntimeError: rained out")
    monkeypatch.setattr(registry, "broken", lambda: [row])
    done = program("list")
    assert_fits(done.stdout)
    assert re.search("^plugin sad +RuntimeError: rained out", done.stdout, flags=re.MULTILINE)
    listed = json.loads(program("list", "--json").stdout)
    assert listed["broken"] == [
        {"name": "sad", "kind": "plugin", "source": "sad 1", "reason": "RuntimeError: rained out"}
    ]
    assert {component["name"] for component in listed["components"]} >= {"anderson", "toy", "in-process"}


def test_show_teaches(program: Program) -> None:
    done = program("show", "toy")
    assert_fits(done.stdout)
    for words in (
        "independent problems",
        "an integer, >= 1; default 3",
        "a number, > -1, < 1; default 0.5",
        "Toys 1900",
    ):
        assert words in done.stdout
    (shown,) = json.loads(program("show", "anderson", "--kind", "solver", "--json").stdout)
    assert {row["name"] for row in shown["options"]} >= {"memory", "relaxation"}
    assert shown["example"].startswith("solvers: ")


@pytest.fixture(scope="module")
def reports() -> dict[str, CheckReport]:
    return {}


@pytest.fixture
def checked_once(reports: dict[str, CheckReport], monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver that was checked is not checked again to see how its report is printed."""
    check = fixedpoint.testing.check_solver

    def checked(solver: Solver) -> CheckReport:
        if repr(solver) not in reports:
            reports[repr(solver)] = check(solver)
        return reports[repr(solver)]

    monkeypatch.setattr(fixedpoint.testing, "check_solver", checked)


def test_check_says_which_promises_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked_once: None
) -> None:
    monkeypatch.chdir(tmp_path)
    done = Program(tmp_path)("check", "picard", "relaxation=0.9")
    assert_fits(done.stdout)
    assert re.search("^relaxation +passed", done.stdout, flags=re.MULTILINE)
    assert "all checks passed" in done.stdout


def test_check_names_the_promise_that_is_broken(toys: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (CheckRow("honest", "passed", "all well"), CheckRow("counts", "failed", "3 rounds counted, 4 made"))
    monkeypatch.setattr(fixedpoint.testing, "check_solver", lambda solver: CheckReport(solver, rows))
    done = CliRunner().invoke(app, ["check", "picard"])
    assert done.exit_code == 1
    assert re.search("^counts +failed +3 rounds counted, 4 made", done.stdout, flags=re.MULTILINE)
    assert "1 of 2 checks failed" in done.stdout
    told = json.loads(CliRunner().invoke(app, ["check", "picard", "--json"]).stdout)
    assert [row["passed"] for row in told["checks"]] == [True, False]
    assert told["passed"] is False


COMMANDS = [name for name, command in registry.commands().items() if command.source == "fixedpoint-solvers"]


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_and_has_examples(program: Program, command: str | None, columns: int) -> None:
    done = program(*([command] if command else []), "--help", columns=columns)
    assert_fits(done.stdout, columns)
    assert "fixedpoint" in done.stdout.split("Options:")[0].split("\n", 1)[1]


@pytest.mark.parametrize("columns", [60, 80])
def test_what_is_printed_fits(program: Program, checked_once: None, columns: int) -> None:
    program.study()
    program("init", "mine.yaml")
    for command in (
        ("list",),
        ("show", "anderson"),
        ("show", "chain"),
        ("show", "ddim-sampling"),
        ("check", "picard", "relaxation=0.9"),
        ("doctor",),
    ):
        # The plugin of the tests brings what cannot be loaded, too.
        assert_fits(program(*command, columns=columns, status=int(command == ("doctor",))).stdout, columns)
    done = program("run", "study.yaml", "-o", "out", columns=columns)
    assert_fits(done.stdout, columns)


def test_the_version(program: Program) -> None:
    assert program("--version").stdout.startswith("fixedpoint ")


def test_a_misspelt_command_or_flag_is_told_the_nearest(program: Program) -> None:
    assert "Did you mean 'run'?" in program("rnu", status=2).stderr
    assert "--output" in program("run", "study.yaml", "--ouput", "x", status=2).stderr


def test_results_as_json(program: Program) -> None:
    program.study("tasks: [toy]\nsolvers: [picard, needy]\nexpect: {relative_error: 1e-30}\n")
    done = program("run", "study.yaml", "-o", "out", "--json", status=1)
    told = json.loads(done.stdout)
    assert (told["name"], told["folder"], told["ok"]) == ("study", "out", False)
    assert [cell["status"] for cell in told["cells"]] == ["ok", "skipped"]
    first = told["cells"][0]
    assert (first["task"], first["solver"], first["seed"], first["rows"]) == ("toy", "picard", 0, {"converged": 3})
    assert first["metrics"]["relative_error"] < 1e-3
    assert first["evaluations"] >= first["rounds"] > 1
    assert "needs telepathy" in told["cells"][1]["reason"]
    assert "expected at most 1e-30" in told["broken_expectations"][0]
    assert "out/report.html" in told["files"]
    assert json.loads(program("report", "out", "--json").stdout) == told
    (program.folder / "out" / "records" / f"{first['hash']}.json").write_text("")
    told = json.loads(program("report", "out", "--json").stdout)
    assert (told["cells"][0]["status"], told["cells"][0]["reason"]) == ("missing", "its record is damaged")
    assert "is empty" in told["notices"][0]


def on_a_terminal(*arguments: str, python: str, folder: Path, environment: dict[str, str]) -> str:
    """What a command writes when its output is a terminal of 60 columns."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 60))
    environment = {key: value for key, value in environment.items() if key != "COLUMNS"} | {"TERM": "xterm-256color"}
    command = [python, "-m", "fixedpoint", *arguments]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error to read
        while piece := os.read(ours, 4096):
            seen += piece
    assert process.wait(timeout=60) == 0
    os.close(ours)
    return seen.decode()


COLOUR = r"\x1b\[[\d;]*3\d[\d;]*m"


@pytest.mark.parametrize("colour", [True, False])
def test_a_terminal_shows_the_round_and_the_residual_of_the_cell_in_flight(
    tmp_path: Path, toy_environment: dict[str, str], python: str, colour: bool
) -> None:
    # The bar is drawn ten times a second: a cell must last longer than that for its rounds to be seen.
    (tmp_path / "study.yaml").write_text(
        "tasks: [{name: toy, slope: {value: 0.9}, seconds_a_round: 0.01}]\nsolvers: [picard]\nseeds: [0, 1]\n"
    )
    environment = toy_environment if colour else toy_environment | {"NO_COLOR": "1"}
    seen = on_a_terminal("run", "study.yaml", "-o", "out", python=python, folder=tmp_path, environment=environment)
    assert re.search(r"round \d+, residual \d\.\de-\d\d  toy", seen)
    assert "0/2" in seen
    assert bool(re.search(COLOUR, seen)) == colour
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", seen)
    assert "wrote out/report.html" in plain
    # The bar keeps to one line: what would wrap cannot be drawn over.
    assert max(len(line) for line in re.split(r"[\r\n]+", plain)) <= 60
    if colour:
        quiet = on_a_terminal(
            "run", "study.yaml", "-o", "out", "-q", python=python, folder=tmp_path, environment=environment
        )
        assert quiet == ""


def test_many_columns_move_to_a_table_below_and_no_number_is_cut(program: Program) -> None:
    program.study()
    program("run", "study.yaml", "-o", "out")
    for width in (60, 45):
        done = program("report", "out", columns=width)
        table = [line for line in done.stdout.splitlines() if not line.startswith("wrote")]
        assert_fits("\n".join(table), width)
        assert "…" not in done.stdout
        numbers = [item.text for row in sections(read_run(program.folder / "out"))[0].rows for item in row.items]
        printed = re.findall(r"(?<=\s)\S+(?=\s)", done.stdout)
        assert set(numbers) <= set(printed)


IMPORTS = "import sys; {code}; print(sorted(set({names}) & set(sys.modules)))"
HEAVY = ["torch", "pydantic", "ruamel.yaml", "matplotlib", "jinja2", "diffusers"]


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import fixedpoint", [*HEAVY, "pluggy", "numpy", "typer", "rich"]),
        ("import fixedpoint.cli.main", [*HEAVY, "pluggy", "numpy"]),
        # typer itself asks whether a parameter's type is pydantic's.
        ("from fixedpoint.cli.main import app; app(['run', '--help'], standalone_mode=False)", ["pluggy", "torch"]),
        ("from fixedpoint.cli.main import app; app(['--help'], standalone_mode=False)", [*HEAVY, "numpy"]),
        ("from fixedpoint.cli.main import app; app(['invert', '--help'], standalone_mode=False)", ["torch", "PIL"]),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_wanted(code: str, names: list[str], tmp_path: Path) -> None:
    code = IMPORTS.format(code=code, names=names)
    done = in_subprocess("-c", code, folder=tmp_path, environment=dict(os.environ))
    assert done.stdout.splitlines()[-1] == "[]"


def test_validating_a_file_does_not_import_what_draws(tmp_path: Path, toy_environment: dict[str, str]) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    code = "from fixedpoint.config.runfile import load; load('study.yaml')"
    code = IMPORTS.format(code=code, names=["matplotlib", "jinja2", "typer", "rich"])
    assert in_subprocess("-c", code, folder=tmp_path, environment=toy_environment).stdout == "[]\n"


def test_init_writes_a_run_file_that_runs(program: Program) -> None:
    done = program("init", "mine.yaml")
    assert done.stdout == "wrote mine.yaml; carry it out with: fixedpoint run mine.yaml\n"
    text = (program.folder / "mine.yaml").read_text()
    assert_fits(text)
    again = program("init", "mine.yaml", status=2)
    assert again.stderr == "mine.yaml is there already; --force replaces it\n"
    quick = ("tasks[0].num_inference_steps=5", "tasks[0].batch=1")
    assert "Anderson" not in program("run", "mine.yaml", *quick, "--output", "out").stderr
    assert not read_run(program.folder / "out").broken_expectations


def test_init_takes_any_name(program: Program) -> None:
    program("init", "2026.yaml")
    assert 'name: "2026"' in (program.folder / "2026.yaml").read_text()
    program("init", "2026.yaml", "--force")


def test_schema_goes_to_the_terminal_or_a_file(program: Program) -> None:
    printed = program("schema").stdout
    assert program("schema", "-o", "run.schema.json").stdout == "wrote run.schema.json\n"
    assert (program.folder / "run.schema.json").read_text() == printed
    assert json.loads(printed)["title"] == "fixedpoint run file"


@pytest.mark.parametrize("columns", [60, 80])
def test_doctor_says_what_there_is(program: Program, columns: int) -> None:
    found = program("doctor", columns=columns, status=1)
    assert_fits(found.stdout, columns)
    for word in ("Versions", "torch", "Machine", "threads", "Extras", "diffusers", "Plugins", "toy_plugin"):
        assert word in found.stdout
    plain = json.loads(program("doctor", "--json", status=1).stdout)
    assert plain["devices"][0] == "cpu"
    assert plain["versions"]["fixedpoint-solvers"]
    assert set(plain["extras"]) == {"report", "diffusion", "testing", "docs"}
    assert all(version for version in plain["extras"]["diffusion"].values())
    # Everything is loaded; what lacks an extra ("far") is no fault.
    reasons = {(row["kind"], row["name"]): row["reason"] for row in plain["broken"]}
    assert reasons["solver", "lost"] == "toy_plugin has no Lost"
    assert not [name for _, name in reasons if name.startswith("far")]
    assert "Cannot be used" in found.stdout


def test_show_says_in_one_line_what_cannot_be_loaded(program: Program) -> None:
    assert program("show", "lost", status=2).stderr == "lost (toy_plugin) cannot be loaded: toy_plugin has no Lost\n"
    done = program("check", "lost", status=2)
    assert "lost (toy_plugin) cannot be loaded: toy_plugin has no Lost" in done.stderr


def test_doctor_fails_where_a_plugin_cannot_be_used(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Broken("far", "plugin", "far-away 1.0", "ImportError: no module named there")
    monkeypatch.setattr(registry, "broken", lambda: [row])
    done = program("doctor", status=1)
    assert "Cannot be used" in done.stdout
    assert "no module named there" in done.stdout
