"""Prints a table of a run of configs/deq_digits.yaml: means over the seeds, one line per gradient and solver.

fixedpoint run configs/deq_digits.yaml
python benchmarks/deq_table.py [runs/deq-digits]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fixedpoint.config.record import read_record

COLUMNS = {
    "accuracy": lambda metrics: f"{metrics['accuracy']:.2%}",
    "rounds a step": lambda metrics: f"{metrics['rounds_a_step']:.1f}",
    "products a row": lambda metrics: f"{metrics['products_a_step']:.1f}",
    "milliseconds a step": lambda metrics: f"{1000 * metrics['seconds_a_step']:.0f}",
    "MiB saved": lambda metrics: f"{metrics['saved_mb']:.1f}",
    "spectral radius": lambda metrics: f"{metrics['spectral_radius']:.2f}",
}


def main() -> None:
    """Print the table."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/deq-digits")
    records = [read_record(path, path.stem) for path in sorted((folder / "records").glob("*.json"))]
    if not records:
        raise SystemExit(f"{folder} holds no records; first: fixedpoint run configs/deq_digits.yaml")
    gradients = ("implicit", "one step", "phantom, 5 of 0.5", "unrolled")
    print("| gradient | solver | " + " | ".join(COLUMNS) + " |")
    print("|:--|:--|" + "--:|" * len(COLUMNS))
    for gradient in gradients:
        for solver in ("Picard", "Anderson", "Broyden"):
            found = [r.metrics for r in records if (r.labels["gradient"], r.labels["solver"]) == (gradient, solver)]
            mean = {name: float(np.mean([metrics[name] for metrics in found])) for name in found[0]}
            print(f"| {gradient} | {solver} | " + " | ".join(show(mean) for show in COLUMNS.values()) + " |")


if __name__ == "__main__":
    main()
