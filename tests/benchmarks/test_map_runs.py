"""The harness of ``benchmarks/maps.py``: it counts every call, judges by itself, and holds ``auto`` to its limits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import maps
import typer
from map_runs import kinsol
from map_runs.counting import MOST, Cell, SpentError, of_ours, of_peer
from map_runs.peers import missing, peers
from map_runs.report import failures, limits, ratios, table
from map_suite import Map
from map_suite.suite import newton, relative_residual

HALF = Map(
    name="half",
    source="",
    f=lambda z: 0.5 * z + 1,
    starts=(np.zeros(2), np.full(2, 100.0), np.ones(2)),
)


def test_plain_iteration_takes_the_counts_of_its_rate() -> None:
    """From zero the relative residual after n steps is 2^-n / (1 - 2^-n), and point n + 1 is judged by call n + 1."""
    for index, tolerance in enumerate((1e-6, 1e-10)):
        steps = next(n for n in range(1, 60) if 0.5**n / (2 * (1 - 0.5**n)) <= 1.001 * tolerance)
        assert of_ours("picard", HALF, "reference", tolerance) == Cell(steps + 1)
        assert of_peer(_plain, HALF, "reference")[index] == Cell(steps + 1)


def _plain(f: Any, z: Any) -> None:
    for _ in range(10**6):
        z = f(z)


def test_calls_for_differences_count() -> None:
    calls = of_ours({"name": "newton-krylov", "jacobian": "difference"}, HALF, "reference", 1e-6).evaluations
    assert calls is not None
    assert calls >= 3  # the start, a product, the new point


def test_a_claim_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the map that judges is another one than the map that was solved, the claim is called false."""
    monkeypatch.setattr(Map, "vector", lambda _, z: 0.5 * z + 1.1)
    cell = of_ours("picard", HALF, "reference", 1e-6)
    assert cell.evaluations is None
    assert cell.outcome.startswith("false claim")


def test_the_budget_ends_a_solve_and_no_solver_catches_that() -> None:
    turning = Map("turning", "", lambda z: z + 1.0, (np.zeros(1),) * 3)
    assert of_peer(_plain, turning, "reference") == (Cell(None, "spent"),) * 2
    assert not issubclass(SpentError, Exception)
    calls = []
    endless = Map("endless", "", lambda z: (calls.append(1), np.cos(40 * z))[1], (np.ones(1),) * 3)
    of_ours({"name": "newton-krylov"}, endless, "reference", 1e-10)
    assert len(calls) <= MOST


def test_a_map_that_raises_is_a_failure_with_its_name() -> None:
    def broken(z: Any) -> Any:
        raise ValueError("math domain error")

    raising = Map("raising", "", broken, (np.zeros(1),) * 3)
    assert of_ours("picard", raising, "far", 1e-6) == Cell(None, "raised ValueError at 1")
    assert of_peer(_plain, raising, "far")[0] == Cell(None, "raised ValueError at 1")


@pytest.mark.parametrize("name", list(peers()))
def test_every_peer_solves_a_contraction(name: str) -> None:
    assert of_peer(peers()[name], HALF, "reference")[0].evaluations is not None


def test_kinsol_is_the_published_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the libraries it says so; with them, m = 0 is plain iteration."""
    if "SUNDIALS (KINSOL)" in missing():
        with pytest.raises(RuntimeError, match="not installed"):
            kinsol.solve(5, HALF.vector, np.zeros(2))
    else:
        assert of_peer(peers()["kinsol m=0"], HALF, "reference") == of_peer(_plain, HALF, "reference")


def rows(**counts: int | None) -> dict[tuple[str, str], dict[str, list[Cell]]]:
    cells = {name: [Cell(count, "solved" if count else "stalled at 9")] * 2 for name, count in counts.items()}
    return {("map", "far"): cells}


@pytest.mark.parametrize(
    ("auto", "picard", "peer", "held"),
    [
        (10, 10, 10, [True, True, True, True, True]),
        (15, 10, 20, [True, False, True, True, True]),
        (21, 10, 30, [True, False, False, True, True]),
        (10, 10, 9, [True, True, True, False, False]),
    ],
)
def test_the_limits(auto: int, picard: int, peer: int, held: list[bool]) -> None:
    assert [limit.holds for limit in limits(rows(auto=auto, picard=picard, peer=peer), ["peer"])] == held * 2


def test_every_peer_is_held_against_auto_alone_and_all_of_them_at_once() -> None:
    two = {("map", "far"): rows(auto=10, picard=10, a=5, b=20)["map", "far"]}
    two["map", "random"] = rows(auto=10, picard=10, a=40, b=8)["map", "far"]
    found = list(limits(two, ["a", "b"]))
    assert found[3].figure == "0.791 (b)"
    assert found[3].holds
    assert found[4].figure == "1.581"
    assert not found[4].holds


def test_a_failure_counts_only_where_another_solves() -> None:
    assert [entry[2:] for entry in failures(rows(auto=None, picard=None, peer=7), 0)] == [("peer", 7)]
    assert not list(failures(rows(auto=None, picard=None), 0))
    assert not ratios(rows(auto=None, picard=3), ["picard"], 0)
    assert not next(iter(limits(rows(auto=None, peer=7), ["peer"]))).holds


def test_a_table_tells_failures_by_letters() -> None:
    assert list(table(rows(auto=None, picard=3), ["auto", "picard", "x"], 0))[-1] == "| map | s | 3 | ? |"


def test_the_command_saves_goes_on_and_checks(tmp_path: Path) -> None:
    app, file = typer.Typer(), tmp_path / "counts.json"
    app.command()(maps.main)
    done = CliRunner().invoke(app, ["--only", "kepler", "--solver", "auto,picard,scipy hybr", "--json", str(file)])
    assert done.exit_code == 0, done.output
    saved = json.loads(file.read_text())
    assert [entry["start"] for entry in saved] == ["reference", "far", "random"]
    saved[0]["cells"]["auto"] = [[None, "stalled at 77"], [None, "stalled at 78"]]
    file.write_text(json.dumps(saved))
    again = CliRunner().invoke(app, ["--load", str(file), "--check"])
    assert again.exit_code == 1
    assert "kepler, reference: stalled at 77" in again.output
    assert "FAILS: 1e-06: auto fails on none that another solves: 1 of 3" in again.output
    assert CliRunner().invoke(app, ["--only", "nonsense"]).exit_code == 2


def test_newton_and_the_residual_of_the_suite() -> None:
    z = newton(lambda z: np.cos(z), np.array([1.0, 0.5]))
    np.testing.assert_allclose(z, 0.7390851332151607, rtol=1e-12)
    assert relative_residual(lambda z: z / 0.0 * z, np.zeros(1)) == np.inf
    assert relative_residual(lambda z: 1.5 * z, np.ones(3)) == pytest.approx(0.5)
