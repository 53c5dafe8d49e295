"""Cells keep their hashes: records that were made before a name or an option was added are found again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fixedpoint.config.runfile import load, to_yaml
from fixedpoint.runs.plan import plan

CONFIGS = Path(__file__).parents[2] / "configs"
# Digests of the hashes of all cells of a file, since defaults of ``anderson``, ``squarem`` and of the adjoint solve
# (``krylov``) changed: with another default a cell is another computation.
KNOWN = {
    "classic": "52a2d81c9f5994a95d32d0f6f71d7494e8f1d7c7b3e821e56cbe53ca9bb6ac5a",
    "demo": "88c918f318771f73728b9aae2fb4ee17a0fb37a523a80b1ea30f7e799ef9618e",
    "deq_digits": "e9c0c28928eaa7b1ff49a8b0d0871ed20805b5d5b0fca2dd377adbe5529c5f31",
    "fashion-mnist": "94466b8912b49571b56e928042fab2e4d83d81cc039bab6eaea8bb8aab46f91f",
    "fashion-mnist-25": "d33ad1b55e6f3816c9e0b6806e2c0328c1777eb5f58ed074413c7a73dc2b9dd5",
    "fashion-mnist-50": "e41cddf57d4b62764d22442942cdfa3b038ba46b499f6a689374330d4fb0c237",
    "fashion-mnist-100": "435a16eccdf065d7a3385635f28ff566bee083dd2b65085a19a3ce984813abf5",
    "fashion-mnist-1000": "346cb5d0816109320e1fa7d5c138c4c87d2f5a9a33df1cc93b782bb7e79e97bf",
    "sequences": "1e26672742f4202f68e1c7a181c6fa7411bc9b22aaaaaa2154d3d4162699abc2",
    "shapes": "612bec8a0941983cccb5d80ae826b48d9a63ddcbdc069bf63c3a74e68e4ddb43",
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_cells_of_the_shipped_files_are_what_they_were(name: str) -> None:
    hashes = [cell.hash for cell in plan(load(CONFIGS / f"{name}.yaml"))]
    assert hashlib.sha256("\n".join(hashes).encode()).hexdigest() == KNOWN[name]


def test_an_alias_stays_as_it_was_typed(tmp_path: Path) -> None:
    """In the cell, its label and the file that is written; its problem is that of the other name."""
    for name in ("sampling", "ddim-sampling"):
        (tmp_path / f"{name}.yaml").write_text(f"tasks: [{{name: {name}, batch: 2}}]\nsolvers: [serial]\n")
    one, other = (load(tmp_path / f"{name}.yaml") for name in ("sampling", "ddim-sampling"))
    (cell,), (former,) = plan(one), plan(other)
    assert (cell.labels["task"], former.labels["task"]) == ("sampling", "ddim-sampling")
    assert {**cell.task, "name": ""} == {**former.task, "name": ""}
    (tmp_path / "again.yaml").write_text(to_yaml(other.plain()))
    assert [cell.hash for cell in plan(load(tmp_path / "again.yaml"))] == [former.hash]


def test_an_option_that_was_added_is_left_out_at_its_default(tmp_path: Path) -> None:
    text = "tasks: [{{name: sampling, batch: 2{}}}]\nsolvers: [serial]\n"
    cells = []
    for given in ("", ", scheduler: null, sigmas: null", ", scheduler: DDIMScheduler"):
        (tmp_path / "run.yaml").write_text(text.format(given))
        cells += plan(load(tmp_path / "run.yaml"))
    plain, null, named = cells
    assert plain.hash == null.hash != named.hash
    assert "scheduler" not in plain.task
    assert named.task["scheduler"] == {"name": "DDIMScheduler"}
