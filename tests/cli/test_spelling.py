"""Options that are none: what was meant, or how it is written without dashes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fixedpoint.cli.main import app
from fixedpoint.config.runfile import load

OVERRIDES = [
    ("--termination.rtol=1e-4", "termination.rtol=1e-4"),
    ("--termination.rtol 1e-4", "termination.rtol=1e-4"),
    ("-termination.rtol=1e-4", "termination.rtol=1e-4"),
    ("--threads=2", "threads=2"),
    ("--seeds [3,4]", "'seeds=[3,4]'"),
    ("--solvers[0].label=x --name y --quiet", "'solvers[0].label=x' name=y --quiet"),
    ("-o out --expect.relative_error=1", "-o out expect.relative_error=1"),
]


def said(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), prog_name="fixedpoint")
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(("typed", "written"), OVERRIDES)
def test_an_override_with_dashes_is_told_without(typed: str, written: str, tmp_path: Path) -> None:
    line = said("run", "study.yaml", *shlex.split(typed))
    name = re.split("[ =]", typed.removeprefix("-o out "))[0]
    told = f"there is no option {name}; what it sets is written without dashes: fixedpoint run study.yaml {written}"
    assert line == told
    (tmp_path / "study.yaml").write_text("tasks: [{name: linear-contraction}]\nsolvers: [picard]\n")
    overrides = [each for each in shlex.split(written) if "=" in each]
    assert load(tmp_path / "study.yaml", overrides)  # what is told is right


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        ("--name=x study.yaml", "study.yaml name=x"),
        ("-o out --name x study.yaml threads=1", "-o out study.yaml name=x threads=1"),
        ("--solvers[0]=x", "FILE 'solvers[0]=x'"),
    ],
)
def test_an_override_is_never_told_in_the_place_of_the_file(typed: str, written: str) -> None:
    assert said("run", *shlex.split(typed)).endswith(f"written without dashes: fixedpoint run {written}")


def test_so_it_is_for_every_command_that_takes_overrides() -> None:
    assert said("check", "--memory", "3", "anderson").endswith("without dashes: fixedpoint check anderson memory=3")
    assert said("check", "anderson", "--memory", "3").endswith("without dashes: fixedpoint check anderson memory=3")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("run study.yaml --ouput=x", 'there is no option --ouput; did you mean "--output"?'),
        ("run study.yaml --frehs", 'there is no option --frehs; did you mean "--fresh"?'),
        ("run study.yaml -output x", 'there is no option -output; did you mean "--output"?'),
        ("list --jsn", 'there is no option --jsn; did you mean "--json"?'),
        ("show anderson --kin=solver", 'there is no option --kin; did you mean "--kind"?'),
        ("init --overwrite-it", "there is no option --overwrite-it; known: --force, --help"),
        ("doctor -z", "there is no option -z; known: --help, --json"),
        ("invert x.png --stps 3", 'there is no option --stps; did you mean "--steps"?'),
    ],
)
def test_a_misspelt_option_is_told_the_nearest(arguments: str, line: str) -> None:
    assert said(*arguments.split()) == line


def test_options_and_their_values_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    for arguments in (
        ["init", str(file)],
        ["init", "--force", "--", str(file)],
        ["show", "--kind", "solver", "picard"],
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["schema", f"-o{tmp_path / 'schema.json'}"])
    assert done.exit_code == 0
    assert (tmp_path / "schema.json").is_file()
