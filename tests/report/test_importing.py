"""Reports are drawn whatever the environment says of windows; what cannot be imported is a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ASKED = (
    "from fixedpoint.report.importing import lacking\nsaid = lacking()\n"
    "if not said:\n    import os, matplotlib\n"
    "    from fixedpoint.report import plot, gallery, forming, steps, learning\n"
    "    said = f\"{os.environ.get('MPLBACKEND')}, {dict.__getitem__(matplotlib.rcParams, 'backend')}\"\nprint(said)\n"
)


def said(folder: Path, **variables: str) -> str:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", ASKED],
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("backend", "used"), [("nonsense", "<object object"), ("svg", "svg")])
def test_a_backend_that_there_is_not_is_passed_over_and_another_is_kept(
    tmp_path: Path, backend: str, used: str
) -> None:
    assert said(tmp_path, MPLBACKEND=backend).startswith(f"{backend}, {used}")


def test_a_package_that_cannot_be_imported_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise RuntimeError('broken\\nfor a test')\n")
    assert said(tmp_path, MPLBACKEND="svg") == (
        "no plots and no page: matplotlib cannot be imported: RuntimeError: broken\\nfor a test"
    )
