"""Cells keep their hashes: records that were made before a name or an option was added are found again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fixedpoint.config.runfile import load, to_yaml
from fixedpoint.runs.plan import plan

CONFIGS = Path(__file__).parents[2] / "configs"
# Digests of the hashes of all cells of a file, as they were before ``sampling`` had a scheduler, and its present name.
KNOWN = {
    "classic": "79bd5311d3cf91e1d3de020a9fe37d7341c92da17fdd81873c6f7c3f11170444",
    "demo": "c95f08cdea145b22e435c26a13186f7cbb212bd3b5ac29740dfabfa549ade43d",
    "deq_digits": "552f5978ab7b8747f5d94e26c64a87cb9e71945cb2ad54b08264df5915fc276c",
    "fashion-mnist": "0e630b4136abf6a19ce504a7da54ffb4f38354b0cf4f431382aed90dc095740e",
    "fashion-mnist-25": "379ad27da2a3f3d40a6d9c0331a6cb09803907376d005dda7f1e124043920fea",
    "fashion-mnist-50": "0a44e4650115730f0ee63ec2a36074ffe3bec4a0815ac9507fe479ea47696889",
    "fashion-mnist-100": "61589baea0fb12255466071878efe29ac0895f470af7f7ca5ec03cc25daecad0",
    "fashion-mnist-1000": "d55e955e2b70d53b73a9524191a62f47b51d497fe240c1a69a61d9db3a4f2516",
    "sequences": "1e26672742f4202f68e1c7a181c6fa7411bc9b22aaaaaa2154d3d4162699abc2",
    "shapes": "e60d2585075527cd5e6d0b55c284c4220c4e69c241cbc8c6a678093f290a7e40",
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
