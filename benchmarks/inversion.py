"""Inversion of real images, jointly and step by step.

    python benchmarks/inversion.py [--images 64] [--steps 50] [--only joint ...]
    python benchmarks/inversion.py --picture docs/assets/inversion.png

Test images of Fashion-MNIST are inverted with the bundled model and the class of each, in float32, by DDIM with eta 0.
"Round trip" is the rms, over the pixels in [-1, 1], of the difference between an image and the serial chain's sample of
its latent, computed again for every method. The squared error is summed over the 1024 pixels of one image. Sequential
evaluations have to wait for one another; for the joint inversion they include its own round trip, for the others they
are those of the inversion alone. With ``--picture`` the script draws images, the samples of their latents and the
differences, edits, and interpolations.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fixedpoint
from fixedpoint.chains import Chain, Identity, Inverter, JointInversion, StepwiseInversion, Workbench, invert_chain
from fixedpoint_diffusion import DDIMChain, FashionMNISTModel, ddim_problem, held_out_images, slerp
from fixedpoint_diffusion.fashion_mnist import CLASSES

BATCH = 16
ITERATIONS = (1, 2, 3, 5, 10)


@dataclass(frozen=True)
class Measured:
    """The results of one method."""

    sequential: int
    evaluations: float
    seconds: float
    off: NDArray[np.float64]
    said: NDArray[np.bool_] | None

    def row(self, name: str, pixels: int) -> str:
        """The results as a line of the table."""
        median, most, worst = np.median(self.off), np.quantile(self.off, 0.95), self.off.max()
        cells = [f"{self.sequential}", f"{self.evaluations:,.0f}", f"{self.seconds:.0f}"]
        cells += [f"{value:.1e}" for value in (median, most, worst, median**2 * pixels)]
        return f"| {name} | " + " | ".join(cells) + " |"


def methods() -> dict[str, Inverter]:
    """All methods by name, the joint inversion first."""
    found: dict[str, Inverter] = {
        "joint": JointInversion(),
        "naive (DDIM inversion)": StepwiseInversion(),
    }
    for k in ITERATIONS[1:]:
        found[f"per step, k = {k}"] = StepwiseInversion(iterations=k)
    for k in ITERATIONS:
        found[f"per step, slope 1, k = {k}"] = StepwiseInversion(iterations=k, preconditioner=Identity())
    for k in ITERATIONS[1:]:
        found[f"per step, Anderson, k = {k}"] = StepwiseInversion(iterations=k, solver=fixedpoint.Anderson(memory=3))
    return found


def chosen(names: list[str] | None) -> dict[str, Inverter]:
    """The methods of these names; all methods if none is named."""
    known = methods()
    for name in names or ():
        if name not in known:
            raise SystemExit(f"no method {name!r}; known: {', '.join(known)}")
    return {name: known[name] for name in names or known}


def measured(chain: DDIMChain, images: Tensor, method: Inverter) -> Measured:
    """Invert, and run the serial chain from the latents."""
    began = time.perf_counter()
    said = None
    if isinstance(method, JointInversion):
        found = invert_chain(chain, images, method=method, max_batch=BATCH)
        latents, sequential, evaluations, said = found.latents, found.rounds, found.evaluations, found.succeeded
    else:
        work = Workbench(chain, images, BATCH, None, 0)
        with torch.no_grad():
            method.fill(work)
        latents = work.states[:, 0]
        sequential = work.stages["step by step"]
        evaluations = work.counts.evaluations - chain.length * work.stages["residuals"]
    seconds = time.perf_counter() - began
    off = rms(serially(chain, latents) - images)
    return Measured(sequential, float(evaluations.mean()), seconds, off, said)


@torch.no_grad()
def serially(chain: Chain, x: Tensor) -> Tensor:
    """The samples of latents, computed step by step."""
    rows = torch.arange(len(x))
    for i in range(chain.length):
        parts = zip(x.split(BATCH), rows.split(BATCH), strict=True)
        x = torch.cat([chain.step(part, torch.full_like(row, i), row) for part, row in parts])
    return x


def rms(difference: Tensor) -> NDArray[np.float64]:
    """The rms of every image."""
    found: NDArray[np.float64] = difference.flatten(1).double().square().mean(dim=1).sqrt().numpy()
    return found


def verdict(found: dict[str, Measured]) -> None:
    """What is required of the joint inversion, and what was measured."""
    ours = found["joint"]
    assert ours.said is not None
    median, within = np.median(ours.off), float((ours.off <= 2e-3).mean())
    print(
        f"\njoint: {ours.sequential} sequential evaluations all told; round trip {median:.1e} in the median, at most "
        f"2e-3 on {within:.0%} of the images; {int((~ours.said).sum())} say they missed, "
        f"{int((ours.off > 2e-3).sum())} did, {int(((ours.off > 2e-3) & ours.said).sum())} of them unsaid"
    )
    for limit in (250, 500):
        others = {name: np.median(m.off) for name, m in found.items() if name != "joint" and m.sequential <= limit}
        best = min(others, key=lambda name: others[name])
        print(
            f"of the others with at most {limit}: {best} comes nearest, "
            f"{others[best]:.1e}, {others[best] / median:.1f} times ours"
        )


def picture(steps: int, out: Path) -> None:
    """Draw ten images, one of every class, with their reconstructions, edits, and interpolations."""
    images, labels = held_out_images()
    images, labels = images[:10], labels[:10]
    chain = chain_of(steps, 10)
    rows = [("image", images)]
    found = invert_chain(chain, images, method=JointInversion(), max_batch=BATCH)
    rows.append(("joint", serially(chain, found.latents)))
    rows.append(("1000 x error", 1000 * (rows[-1][1] - images)))
    work = Workbench(chain, images, BATCH, None, 0)
    with torch.no_grad():
        StepwiseInversion().fill(work)
    rows.append(("naive", serially(chain, work.states[:, 0])))
    rows.append(("10 x error", 10 * (rows[-1][1] - images)))
    for shift in (2, 6):
        classes = tuple(((labels + shift) % 10).tolist())
        edited = chain_of(steps, 10, classes)
        rows.append((f"class + {shift}", serially(edited, found.latents)))
    shirts = images[[0]], found.latents[[0]], found.latents[[6]]
    between = torch.cat([slerp(shirts[1], shirts[2], k / 9) for k in range(10)])
    classes = (0,) * 5 + (6,) * 5
    rows.append((f"{CLASSES[0]} to {CLASSES[6]}", serially(chain_of(steps, 10, classes), between)))
    draw(rows, out)


def chain_of(steps: int, count: int, classes: tuple[int, ...] | None = None) -> DDIMChain:
    """The chain of the bundled model for images of these classes; default: the classes of the test images."""
    model = FashionMNISTModel(classes=classes)
    schedule = model.own_schedule
    assert schedule is not None
    problem = ddim_problem(
        model.denoiser(schedule, count), schedule, torch.zeros(count, *model.event_shape), num_inference_steps=steps
    )
    assert isinstance(problem.chain, DDIMChain)
    return problem.chain


def draw(rows: list[tuple[str, Tensor]], out: Path) -> None:
    """Draw rows of pictures with headings."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(len(rows), len(rows[0][1]), figsize=(8.2, 0.74 * len(rows)))
    for line, (name, images) in zip(panels, rows, strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image[0].clamp(-1, 1), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
            axes.set_axis_off()
        line[0].text(-0.12, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    figure.subplots_adjust(left=0.16, right=0.995, top=0.995, bottom=0.005, wspace=0.04, hspace=0.04)
    figure.savefig(out, dpi=130)


def main() -> None:
    """Print the table, and draw the picture if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="only these methods, by their names in the table")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.picture:
        picture(asked.steps, asked.picture)
        return
    images, _ = held_out_images()
    images = images[: asked.images]
    chain = chain_of(asked.steps, asked.images)
    print(f"{asked.images} images, N = {asked.steps}, {asked.threads} threads\n")
    print("| inversion | sequential | evaluations an image | seconds | median | 95% | worst | squared error |")
    print("|:--|" + "--:|" * 7)
    found = {}
    for name, method in chosen(asked.only).items():
        found[name] = measured(chain, images, method)
        print(found[name].row(name, images[0].numel()), flush=True)
    if "joint" in found and len(found) > 1:
        verdict(found)


if __name__ == "__main__":
    main()
