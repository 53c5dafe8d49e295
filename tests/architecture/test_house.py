"""The house as design.md draws it: arrows, types, style, documentation, packaging."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
HEAVY = ("torch", "pydantic", "pluggy", "ruamel", "matplotlib", "diffusers", "torchdeq", "numpy", "jaxtyping")


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "NO_COLOR": "1", **environment}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=500, check=False)


def assert_clean(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stdout + result.stderr


def test_arrows_point_one_way() -> None:
    assert_clean(run(str(BIN / "lint-imports"), "--no-cache"))


def test_types() -> None:
    assert_clean(run(sys.executable, "-m", "mypy"))


def test_style() -> None:
    assert_clean(run(sys.executable, "-m", "ruff", "check", "."))
    assert_clean(run(sys.executable, "-m", "ruff", "format", "--check", "."))


def test_documentation_builds(site: Path) -> None:
    assert "ddim_problem" in (site / "reference" / "api" / "fixedpoint_diffusion" / "index.html").read_text()


@pytest.mark.parametrize("statement", ["import fixedpoint", "import fixedpoint.cli.main"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    program = f"{statement}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    result = run(sys.executable, "-c", program)
    assert_clean(result)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "statement", ["import fixedpoint_torchdeq.plugin", "fixedpoint.registry.registry.components('solver')"]
)
def test_torchdeq_is_imported_when_it_is_used(statement: str) -> None:
    result = run(
        sys.executable, "-c", f"import fixedpoint.registry, sys\n{statement}\nprint('torchdeq' in sys.modules)"
    )
    assert_clean(result)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize(
    "name", ["pydantic", "ruamel", "pluggy", "matplotlib", "jinja2", "pandas", "diffusers", "torchdeq"]
)
def test_each_library_is_known_in_one_room(name: str) -> None:
    rooms = {
        "pydantic": "fixedpoint/config",
        "ruamel": "fixedpoint/config",
        "pluggy": "fixedpoint/registry",
        "matplotlib": "fixedpoint/report",
        "jinja2": "fixedpoint/report",
        "pandas": "fixedpoint/report",
        "diffusers": "plugins/fixedpoint_diffusion",
        "torchdeq": "plugins/fixedpoint_torchdeq",
    }
    pattern = re.compile(rf"^\s*(from|import) {name}\b", re.MULTILINE)
    files = [*ROOT.glob("fixedpoint/**/*.py"), *ROOT.glob("plugins/**/*.py")]
    elsewhere = [
        str(path.relative_to(ROOT))
        for path in files
        if pattern.search(path.read_text()) and not path.is_relative_to(ROOT / rooms[name])
    ]
    assert elsewhere == []


def test_core_does_not_speak_of_chains() -> None:
    """Not in a name, a docstring or a comment: what only chains require belongs into ``fixedpoint/chains``."""
    files = sorted((ROOT / "fixedpoint" / "core").glob("*.py"))
    assert len(files) > 20
    said = [
        f"{path.name}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search("chain|trajector", line, re.IGNORECASE)
    ]
    assert said == []


@pytest.fixture(scope="session")
def wheel(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    def build(folder: Path) -> None:
        assert_clean(run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)))

    (built,) = once("wheel", build).glob("*.whl")
    return built


def test_the_wheel_holds_library_and_plugins(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    plugins = ("classic", "deq", "diffusion", "sequences", "torchdeq")
    assert tops == {"fixedpoint", *(f"fixedpoint_{name}" for name in plugins)}
    for path in [*ROOT.glob("fixedpoint/**/*"), *ROOT.glob("plugins/**/*")]:
        if path.is_file() and "__pycache__" not in path.parts:
            expected = path.relative_to(ROOT / "plugins" if path.is_relative_to(ROOT / "plugins") else ROOT)
            assert expected.as_posix() in names


def test_every_package_says_that_it_is_typed(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert [
        top for top in {name.split("/")[0] for name in names if name.endswith(".py")} if f"{top}/py.typed" not in names
    ] == []


def test_the_wheel_installed_elsewhere_runs_the_demo(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    assert_clean(
        run(
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            str(target),
            str(wheel),
        )
    )
    # The target comes first on the path, so that nothing of this checkout's installation is imported.
    located = run(
        sys.executable,
        "-c",
        "import fixedpoint, fixedpoint_diffusion as d, fixedpoint_torchdeq as t; "
        "print(fixedpoint.__file__, d.__file__, t.__file__)",
        cwd=tmp_path,
        PYTHONPATH=str(target),
    )
    assert all(path.startswith(str(target)) for path in located.stdout.split())
    result = run(
        sys.executable,
        "-m",
        "fixedpoint",
        "run",
        str(ROOT / "configs/demo.yaml"),
        "tasks[0].num_inference_steps=5",
        "tasks[0].batch=2",
        "--output",
        "out",
        cwd=tmp_path,
        PYTHONPATH=str(target),
    )
    assert_clean(result)
    assert "serial DDIM" in result.stdout
    assert (tmp_path / "out" / "report.html").exists()
