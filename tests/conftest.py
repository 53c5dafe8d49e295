"""Shape annotations are checked while the tests run, random tests repeat themselves, and torch keeps to one thread."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import filelock
import jaxtyping

sys.path.insert(0, str(Path(__file__).parent / "support"))  # the hook finds the checker by its import name
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # for the tiny pipelines, which benchmarks use, too

import draws
import typechecker
import warm

# Before anything imports fixedpoint: the hook rewrites modules as they are loaded.
jaxtyping.jaxtyped = typechecker.once_for_each_kind
_HOOK = jaxtyping.install_import_hook(
    ["fixedpoint.core", "fixedpoint.solvers", "fixedpoint.gradients", "fixedpoint.chains", "fixedpoint.layers"],
    "typechecker.checked",
)

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

hypothesis.settings.register_profile("fixedpoint", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("fixedpoint")
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    draws.Length.short = "not slow" in config.option.markexpr


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The plugin of ``tests/toys``, registered in this process."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "toys")
    import toy_plugin

    from fixedpoint.registry import registry

    registry.register(toy_plugin)
    yield toy_plugin
    registry.unregister(toy_plugin)


@pytest.fixture
def toy_environment() -> dict[str, str]:
    """The environment of a subprocess in which the plugin of ``tests/toys`` is installed."""
    toys = Path(__file__).parent / "toys"
    paths = os.pathsep.join([str(toys), str(toys / "installed"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep), "COLUMNS": "80", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    """A folder with ``python`` and ``fixedpoint`` that begin with torch imported: see ``tests/support/warm.py``."""
    with warm.executables() as folder:
        yield folder


@pytest.fixture(scope="session")
def python(programs: Path) -> str:
    """For a subprocess of which nothing is asked that a Python with torch imported already would answer otherwise."""
    return str(programs / "python")


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Makes what a folder of that name holds, once for all workers: the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder = base / name
        with filelock.FileLock(f"{folder}.lock"):
            if not folder.exists():
                unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def site(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The documentation, built strictly, once."""

    def build(target: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "NO_COLOR": "1", "NO_MKDOCS_2_WARNING": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return once("site", build)
