"""Rounds of a DDIM chain under different accelerators, on mixtures with exact scores.

    python benchmarks/chain_accelerators.py

Prints, for every setting, the mean and the largest number of rounds over 32 samples to a relative error of 1e-4, in
float32, with the identity preconditioner. Rounds are counts and hardly depend on the machine.
"""

from __future__ import annotations

import torch

import fixedpoint
from fixedpoint_diffusion import DDIMSchedule
from fixedpoint_diffusion.models.choices import MixtureModel, ShapesModel
from fixedpoint_diffusion.task import Sampling

MODELS: dict[str, MixtureModel | ShapesModel] = {
    "16 dimensions": MixtureModel(),
    "64 dimensions": MixtureModel(dimension=64),
    "shapes": ShapesModel(),
}
SOLVERS = {
    "Picard": fixedpoint.Picard(),
    **{
        f"Anderson({memory}), {mixing}": fixedpoint.Anderson(memory=memory, mixing=mixing)
        for mixing in ("joint", "triangular")
        for memory in (1, 2, 3, 5)
    },
    "Broyden(10)": fixedpoint.Broyden(memory=10),
}


def main() -> None:
    torch.set_num_threads(2)
    settings = [(name, eta) for name in MODELS for eta in (0.0, 1.0)]
    print("| accelerator | " + " | ".join(f"{name}, eta {eta:g}" for name, eta in settings) + " |")
    print("|---" * (len(settings) + 1) + "|")
    for label, solver in SOLVERS.items():
        cells = []
        for name, eta in settings:
            task = Sampling(model=MODELS[name], schedule=DDIMSchedule(clip_sample=False), eta=eta, batch=32)
            solution = fixedpoint.solve(task.problem(0), solver=solver, rtol=1e-4)
            solution.raise_for_status()
            cells.append(f"{solution.rounds.mean():.1f} / {solution.rounds.max()}")
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
