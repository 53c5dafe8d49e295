"""Memory of a backward pass against the rounds of the forward solve, for implicit and unrolled gradients.

    python benchmarks/deq_memory.py

The map is the convolutional cell of the digits classifier with 64 channels, for 128 images in float32. A given number
of rounds of plain iteration is followed by an adjoint solve of ten products. Each measurement is a process of its own.
"Saved" is the memory that saved-tensor hooks see between forward and backward pass, every storage counted once;
"resident" is the largest resident size of the process over both passes. The picture is docs/assets/deq-memory.png.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import torch

ASSETS = Path(__file__).resolve().parents[1] / "docs" / "assets"
ROUNDS = (5, 10, 20, 30, 40, 50)
GRADIENTS = {
    "implicit": {"name": "implicit", "termination": {"rtol": 0.0, "max_rounds": 10}},
    "unrolled": {"name": "unrolled", "complete": False},
}


def measure(gradient: str, rounds: int) -> tuple[float, float]:
    """The saved memory and the largest resident size of this process, in MiB."""
    from fixedpoint import AdjointWarning, Termination
    from fixedpoint.layers import EquilibriumLayer
    from fixedpoint_deq.model import Cell
    from fixedpoint_deq.task import bytes_saved

    torch.manual_seed(0)
    torch.set_num_threads(1)
    layer = EquilibriumLayer(
        Cell(64),
        solver="picard",
        gradient=GRADIENTS[gradient],
        training=Termination(rtol=0.0, max_rounds=rounds, patience=1000),
        on_failure="ignore",
    )
    x = torch.randn(128, 64, 8, 8)
    kept: list[torch.Tensor] = []
    saved = bytes_saved(lambda: kept.append(layer(x)))
    assert layer.statistics["training"].rounds in (rounds, rounds + 1)
    with warnings.catch_warnings(action="ignore", category=AdjointWarning):
        kept.pop().square().mean().backward()
    return saved / 2**20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def fresh(gradient: str, rounds: int) -> tuple[float, float]:
    """The same, measured in a fresh process."""
    told = subprocess.run(
        [sys.executable, __file__, gradient, str(rounds)], capture_output=True, text=True, check=True
    ).stdout
    saved, resident = json.loads(told.splitlines()[-1])
    return saved, resident


def draw(found: dict[str, list[tuple[float, float]]]) -> None:
    """Draw the picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(8, 3.2), sharex=True)
    for place, (axes, title) in enumerate(
        zip(panels, ("saved for the backward pass", "resident, at most"), strict=True)
    ):
        for name, marker in zip(GRADIENTS, ("o", "s"), strict=True):
            axes.plot(ROUNDS, [row[place] for row in found[name]], marker=marker, label=name)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("rounds of the forward solve")
        axes.set_ylabel("MiB")
        axes.set_ylim(0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.5, alpha=0.5)
    panels[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(ASSETS / "deq-memory.png", dpi=160)


def main() -> None:
    """Print the table and draw the picture."""
    found = {name: [fresh(name, rounds) for rounds in ROUNDS] for name in GRADIENTS}
    print("| rounds | " + " | ".join(f"{name}: saved | resident" for name in GRADIENTS) + " |")
    print("|--:|" + "--:|" * 2 * len(GRADIENTS))
    for place, rounds in enumerate(ROUNDS):
        cells = [f"{number:.0f}" for name in GRADIENTS for number in found[name][place]]
        print(f"| {rounds} | " + " | ".join(cells) + " |")
    for name in GRADIENTS:
        ratios = [found[name][-1][kind] / found[name][0][kind] for kind in (0, 1)]
        print(f"{name}, {ROUNDS[-1]} rounds over {ROUNDS[0]}: saved {ratios[0]:.3f}, resident {ratios[1]:.3f}")
    draw(found)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
