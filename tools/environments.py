"""Makes environments with the lowest and the highest versions of the dependencies and runs tests in each.

    python tools/environments.py                              every Python found, lowest and highest versions
    python tools/environments.py --python 3.11 --versions lowest
    python tools/environments.py --torch 2.4.1                this torch in each, instead of what the versions say

``lowest`` pins every dependency of pyproject.toml at its lower bound; ``highest`` takes what pip takes. The tests are
those of the core, the solvers, compiled functions, the API, the registry, the run files and bad input. They run on the
committed tree. A table says what passed; the exit status is 1 if anything failed. Each environment takes some
gigabytes, and is removed after its tests unless ``--keep`` is given; then the next run with ``--keep`` takes it again.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
VERSIONS = ("lowest", "highest")
TESTS = (
    "tests/core",
    "tests/solvers",
    "tests/layers/test_compiled.py",
    "tests/registry",
    "tests/config",
    "tests/cli/test_plugin_commands.py",
    "tests/cli/test_spelling.py",
    "tests/test_api.py",
    "tests/test_bad_input.py",
)
# These are about run files, commands and components that require the extra ``diffusion``.
LEFT_OUT = (
    "tests/config/test_runfile.py::test_labels_show_in_what_nested_settings_differ",
    "tests/config/test_schema.py::test_every_shipped_run_file_fits_as_written_and_as_resolved",
    "tests/config/test_schema.py::test_the_shipped_schema_is_that_of_the_components",
    "tests/cli/test_spelling.py::test_a_misspelt_option_is_told_the_nearest[invert",
)
# What these tests import besides the library and its extra ``testing``.
REQUIRED = ("beartype", "filelock", "jsonschema", "pytest-timeout", "safetensors", "scipy")
_SHOWN = ("torch", "numpy", "pydantic", "typer", "jaxtyping")


@dataclass(frozen=True)
class Row:
    """What came of one environment: a Python, its versions, and the closing line of its tests."""

    python: str
    versions: str
    installed: str
    passed: bool
    result: str


def requirements(python: str) -> tuple[list[str], list[str]]:
    """The requirements of the base installation, and those of the tests, that apply to a version of Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = [*project["dependencies"], *project["optional-dependencies"]["testing"]]
    dev = [
        line
        for line in (*project["optional-dependencies"]["dev"], *project["optional-dependencies"]["diffusion"])
        if re.split(r"[^\w.-]", line)[0] in REQUIRED
    ]
    own, extra = ([_without_marker(line) for line in lines if _applies(line, python)] for lines in (base, dev))
    return own, extra


def _applies(line: str, python: str) -> bool:
    """Whether the marker of a requirement, a comparison of ``python_version``, holds."""
    found = re.search(r"python_version\s*(>=|<)\s*['\"]([\d.]+)['\"]", line)
    if found is None:
        return True
    own, bound = (tuple(map(int, text.split("."))) for text in (python, found[2]))
    return own >= bound if found[1] == ">=" else own < bound


def _without_marker(line: str) -> str:
    return line.split(";")[0].strip()


def pins(lines: Sequence[str]) -> list[str]:
    """The requirements with their lower bounds as their versions."""
    return [re.sub(r">=\s*([\w.]+).*", r"==\1", line) for line in lines]


def interpreter(version: str) -> str | None:
    """An interpreter of a version: on the path, or of pyenv."""
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if version == own:
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [*sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True), shutil.which(f"python{version}")]
    for candidate in filter(None, candidates):
        asked = [str(candidate), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False)
        if said.stdout.strip() == version:
            return str(candidate)
    return None


def examined(
    python: str, versions: str, torch: str | None, folder: Path, tests: Sequence[str], keep: bool = False
) -> Row:
    """Make one environment, or take the one that was kept, run the tests in it, and remove it unless it is kept."""
    command = interpreter(python)
    if command is None:
        return Row(python, versions, "", True, "no such interpreter here")
    place = folder / f"{python}-{versions}"
    log = folder / f"{python}-{versions}.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PYTHONPATH", None)

    def run(*words: str | Path, cwd: Path = place) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(map(str, words))}\n{done.stdout}{done.stderr}\n")
        return done

    base, extra = requirements(python)
    lines = pins([*base, *extra]) if versions == "lowest" else [*base, *extra]
    if torch:
        lines = [f"torch=={torch}", *(line for line in lines if not re.match(r"torch\W", line))]
    wanted = "\n".join(lines) + "\n"
    own, tree, listed, made = (place / name for name in ("venv/bin/python", "tree", "requirements.txt", "made.txt"))
    log.unlink(missing_ok=True)
    try:
        if not (keep and made.is_file() and made.read_text(encoding="utf-8") == wanted):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            listed.write_text(wanted, encoding="utf-8")
            run(command, "-m", "venv", place / "venv")
            run(own, "-m", "pip", "install", "--quiet", "--upgrade", "pip")
            done = run(own, "-m", "pip", "install", "--quiet", "--requirement", listed)
            if done.returncode:
                return Row(python, versions, "", False, f"cannot be installed: {_last(done.stderr)}")
            listed.rename(made)
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD"], capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
        # The lines above stand for the dependencies, so that none of them is replaced here.
        done = run(own, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", tree)
        if done.returncode:
            return Row(python, versions, "", False, f"cannot be installed: {_last(done.stderr)}")
        left_out = [f"--deselect={each}" for each in LEFT_OUT]
        done = run(own, "-m", "pytest", "-q", "-m", "not slow and not gpu", *left_out, *tests, cwd=tree)
        return Row(python, versions, _installed(own), done.returncode == 0, _last(done.stdout) or _last(done.stderr))
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)


def _last(text: str) -> str:
    lines = [line.strip(" =") for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _installed(python: Path) -> str:
    code = f"from importlib.metadata import version\nprint(*(f'{{n}} {{version(n)}}' for n in {_SHOWN}), sep=', ')"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False).stdout.strip()


def main() -> int:
    """Make the environments that the command line names, one after another, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", choices=PYTHONS, default=PYTHONS, help="versions of Python")
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=VERSIONS, help="versions of dependencies")
    parser.add_argument("--torch", help="a version of torch, instead of what the versions of dependencies say")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "fixedpoint-environments")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files and folders of tests")
    parser.add_argument("--keep", action="store_true", help="leave the environments in the folder for another time")
    given = parser.parse_args()
    folder = given.folder.resolve()  # commands run in other folders
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for python in given.python:
        for versions in given.versions:
            row = examined(python, versions, given.torch, folder, given.tests, given.keep)
            print(f"{row.python} {row.versions}: {row.result}", file=sys.stderr, flush=True)
            rows.append(row)
    print("| Python | versions | installed | tests |\n| --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row.python} | {row.versions} | {row.installed} | {row.result} |")
    print(f"\nlogs: {folder}")
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
