"""Strangers' packages, installed as strangers would install them, in the list, in a run and in the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from fixedpoint.config.document import parse

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "fixedpoint_example"
PACKAGES = Path(__file__).parent / "packages"


@pytest.fixture(scope="module")
def packages(once) -> Path:
    """A folder with the example and two packages that are no good."""
    return once("packages", install)


def install(target: Path) -> None:
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    sources = [str(EXAMPLE), str(PACKAGES / "broken"), str(PACKAGES / "thief")]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), *sources]
    subprocess.run(command, check=True, timeout=300)


@pytest.fixture
def run(packages, python, tmp_path):
    """Run a command with those packages installed, away from the repository."""

    def command(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PYTHONPATH": str(packages),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "NO_COLOR": "1",
        }
        done = subprocess.run(
            [python, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return command


def test_the_examples_own_tests_pass(run):
    # all but the conformance suite, which is run below by the command
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not promise", str(EXAMPLE / "tests"))


def test_the_list_has_the_good_and_says_what_is_wrong_with_the_rest(run):
    listed = json.loads(run("-m", "fixedpoint", "list", "--json").stdout)
    components = {(row["kind"], row["name"]): row for row in listed["components"]}
    for kind, name in (("solver", "irons-tuck"), ("gradient", "lyusternik"), ("task", "random-mdp")):
        row = components[kind, name]
        assert (row["source"], row["version"]) == ("fixedpoint-example", "0.1.0")
        assert row["summary"]
    assert components["solver", "anderson"]["source"] == "fixedpoint-solvers"
    assert components["solver", "honest"]["source"] == "fixedpoint-thief"

    broken = {row["name"]: row for row in listed["broken"]}
    assert broken["broken"]["reason"] == "ModuleNotFoundError: No module named 'a_module_nobody_has'"
    assert broken["broken"]["source"] == "fixedpoint-broken 0.3"
    refused = broken["anderson"]["reason"]
    assert "'anderson' of fixedpoint-thief is already taken by fixedpoint-solvers" in refused
    assert "name_thief:Stolen" in refused
    assert "fixedpoint.solvers.anderson:Anderson" in refused


def test_people_read_the_same_in_the_table(run):
    text = run("-m", "fixedpoint", "list").stdout
    for word in ("irons-tuck", "lyusternik", "random-mdp", "fixedpoint-example", "a_module_nobody_has", "name_thief"):
        assert word in text


def test_show_explains_a_strangers_options(run):
    text = run("-m", "fixedpoint", "show", "irons-tuck").stdout
    assert "shortest" in text
    assert "smallest length of a step, in residuals" in text


def test_the_run_file_fits_the_schema_that_knows_the_package(run):
    schema = json.loads(run("-m", "fixedpoint", "schema").stdout)
    text = (EXAMPLE / "compare.yaml").read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=run.schema.json\n")
    validator = Draft202012Validator(schema)
    assert [error.message for error in validator.iter_errors(parse(text, "compare.yaml").data)] == []
    misspelt = parse(text.replace("discount", "discuont"), "compare.yaml").data
    assert list(validator.iter_errors(misspelt))


def test_check_passes_the_strangers_solver(run):
    report = json.loads(run("-m", "fixedpoint", "check", "irons-tuck", "--json").stdout)
    assert report["passed"]
    assert {row["name"] for row in report["checks"]} >= {"row-alone", "counts", "scale"}


def test_all_three_are_in_a_run_and_in_its_report(run, tmp_path):
    folder = tmp_path / "run"
    done = run("-m", "fixedpoint", "run", str(EXAMPLE / "compare.yaml"), "--output", str(folder))
    assert "irons-tuck" in done.stdout
    run("-m", "fixedpoint", "report", str(folder))
    page = (folder / "report.html").read_text(encoding="utf-8")
    for word in ("irons-tuck", "lyusternik", "random-mdp", "gradient error", "fixedpoint-example"):
        assert word in page, word

    records = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / "records").iterdir()]
    assert len(records) == 9
    for record in records:
        assert record["rows"] == {"converged": 6}
        terms = record["config"]["gradient"].get("terms", 1)
        # rewards are positive, so the terms left out are a share of gamma^k, but for the rounding of the solve
        assert record["metrics"]["gradient_error"] <= 0.9**terms * 1.2
