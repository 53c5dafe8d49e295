"""Reports of large runs: seconds of the processor for each part, and the size of the page.

The runs are made up: every cell has a record with a trace, and every hundredth has failed. They have the same number of
cells in three shapes: many solvers, many seeds, many tasks.

    python benchmarks/report_size.py
    python benchmarks/report_size.py --cells 500 5000
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fixedpoint.config.files import SCHEMA
from fixedpoint.config.folder import CellRow, Folder, RunInfo
from fixedpoint.config.record import Failure, Record, arrays_bytes, write_record
from fixedpoint.execution.plain import digest
from fixedpoint.report.build import build
from fixedpoint.report.reading import read_run
from fixedpoint.report.table import sections

SHAPES: dict[str, Callable[[int], tuple[int, int, int]]] = {
    "solvers": lambda cells: (1, cells, 1),
    "seeds": lambda cells: (1, 10, cells // 10),
    "tasks": lambda cells: (cells // 10, 10, 1),
}
"""Numbers of tasks, solvers and seeds, by the number of cells."""


def made(path: Path, tasks: int, solvers: int, seeds: int) -> Path:
    """Return the folder of a run with that many tasks, solvers and seeds."""
    chance = np.random.default_rng(0)
    folder = Folder(path)
    cells = [
        CellRow(
            hash=hashlib.sha256(f"{task} {solver} {seed}".encode()).hexdigest(),
            task=f"task {task}",
            solver=f"solver {solver}",
            gradient=None,
            seed=seed,
        )
        for task in range(tasks)
        for seed in range(seeds)
        for solver in range(solvers)
    ]
    info = RunInfo(
        schema_version=SCHEMA,
        name="large",
        cells=cells,
        expect={"relative_error": 1e-3},
        threads=1,
        versions={"fixedpoint": "0"},
        machine={"cpus": 1},
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:00:00+00:00",
    )
    folder.write_info(info)
    folder.config.write_text("name: large\n")
    (path / "records").mkdir()
    (path / "arrays").mkdir()
    for number, cell in enumerate(cells):
        errors = np.cumprod(chance.uniform(0.3, 0.9, (20, 4)), axis=0)
        content = arrays_bytes({"trace.relative_error": errors, "trace.relative_error.rounds": np.arange(1, 21)})
        folder.arrays(cell.hash).write_bytes(content)
        write_record(folder, _record(cell, digest(content), failed=number % 100 == 99))
    return path


def _record(cell: CellRow, arrays: str, failed: bool) -> Record:
    error = Failure(type="RuntimeError", message=f"of {cell.label}", traceback="  File\n" * 200)
    result: dict[str, Any] = {
        "metrics": {"relative_error": 1e-5, "distance": 2.0},
        "rows": {"converged": 3, "stalled": 1},
        "rounds": 20,
        "evaluations": 80,
        "seconds": 0.5,
        "message": "1 of 4 rows stalled: its error no longer falls\na note of the task",
        "arrays": arrays,
    }
    return Record(
        schema_version=SCHEMA,
        hash=cell.hash,
        labels={"task": cell.task, "solver": cell.solver},
        config={"termination": {"rtol": 1e-4}},
        seed=cell.seed,
        status="failed" if failed else "ok",
        threads=1,
        versions={"fixedpoint": "0"},
        machine={"cpus": 1},
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:00:00+00:00",
        **({"error": error} if failed else result),
    )


def measured(folder: Path) -> dict[str, float]:
    """Return the seconds of the processor for reading, for the sections and for all files, and the page in MB."""
    times = [time.process_time()]
    run = read_run(folder)
    times.append(time.process_time())
    sections(run)
    times.append(time.process_time())
    build(run)
    times.append(time.process_time())
    read, table, files = np.diff(times).tolist()
    page = (folder / "report.html").stat().st_size / 2**20
    return {"read": read, "sections": table, "files": files, "page": page}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[500, 5000])
    arguments = parser.parse_args()
    print(f"{'many':8} {'cells':>6} {'read':>7} {'sections':>9} {'files':>7} {'page':>9}")
    for name, shape in SHAPES.items():
        for cells in arguments.cells:
            with tempfile.TemporaryDirectory() as place:
                found = measured(made(Path(place) / "run", *shape(cells)))
            times = f"{found['read']:6.1f}s {found['sections']:8.2f}s {found['files']:6.1f}s"
            print(f"{name:8} {cells:6} {times} {found['page']:6.2f} MB")


if __name__ == "__main__":
    main()
