"""How far a chain's own error may be trusted: rows that a tolerance would have let go too early.

    python benchmarks/chain_error_measure.py

For every tolerance, the rows of 192 whose error measure first fell below it while the true error of the sample was
still above three times the tolerance, and the worst true error of any row at that moment: with the change the defects
imply at the last state (the measure in use), and with the largest they imply at any state. Shapes model, 50 steps, eta
0, plain rounds with the identity preconditioner, float32.
"""

from __future__ import annotations

import torch

import fixedpoint
from fixedpoint.core.evaluator import Evaluator
from fixedpoint_diffusion.schedule import DDIMSchedule
from fixedpoint_diffusion.task import DDIMSampling

STEPS, BATCH = 50, 16
TOLERANCES = (1e-1, 1e-2, 1e-3)
MEASURES = ("last state", "any state")


def main() -> None:
    torch.set_num_threads(2)
    task = DDIMSampling(schedule=DDIMSchedule(clip_sample=False), num_inference_steps=STEPS, batch=BATCH)
    early = {(tol, name): 0 for tol in TOLERANCES for name in MEASURES}
    worst = dict.fromkeys(early, 0.0)
    for seed in range(10, 22):
        problem = task.problem(seed)
        exact = fixedpoint.solve(problem, solver="serial").z[:, -1].flatten(1).double()
        gone = {key: torch.zeros(BATCH, dtype=torch.bool) for key in early}
        solver, f = fixedpoint.ChainSolver(), Evaluator(problem)
        with torch.no_grad():
            at = solver.begin(f, problem.initial())
            state = solver.init(f, at)
            for _ in range(STEPS):
                states = at.z.unflatten(1, (STEPS, -1)).double()
                implied = at.residual.unflatten(1, (STEPS, -1)).double().cumsum(1).norm(dim=2) / states.norm(dim=2)
                true = (states[:, -1] - exact).norm(dim=1) / exact.norm(dim=1)
                for name, measure in zip(MEASURES, (implied[:, -1], implied.amax(1)), strict=True):
                    for tol in TOLERANCES:
                        new = (measure <= tol) & ~gone[tol, name]
                        gone[tol, name] |= new
                        early[tol, name] += int((new & (true > 3 * tol)).sum())
                        worst[tol, name] = max(worst[tol, name], float(torch.where(new, true, 0.0).amax()))
                at, state = solver.step(f, at, state)
    print("| tolerance | " + " | ".join(f"{name}: too early | worst true error" for name in MEASURES) + " |")
    print("|---" * 5 + "|")
    for tol in TOLERANCES:
        cells = [f"{early[tol, name]} | {worst[tol, name]:.2g}" for name in MEASURES]
        print(f"| {tol:g} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
