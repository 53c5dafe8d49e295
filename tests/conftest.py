"""Shape annotations are checked while the tests run, random tests repeat themselves, and torch keeps to one thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jaxtyping

sys.path.insert(0, str(Path(__file__).parent / "support"))  # the hook finds the checker by its import name

# Before anything imports fixedpoint: the hook rewrites modules as they are loaded.
_HOOK = jaxtyping.install_import_hook(
    ["fixedpoint.core", "fixedpoint.solvers", "fixedpoint.gradients", "fixedpoint.chains"], "typechecker.checked"
)

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

hypothesis.settings.register_profile("fixedpoint", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("fixedpoint")
torch.set_num_threads(1)


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
