"""Noise of a pipeline optimised for a classifier's logit: the joint solve with chain-adjoint against backpropagation.

    python benchmarks/pipeline_reward.py [--steps 20] [--updates 30] [--images 2] [--plot reward.png]

The pipeline is ``FashionMNISTPipeline`` with DDIM, eta = 1; its prompt is one class, and the reward the bundled
classifier's logit of another one, for three pairs of classes. ``x_T`` and the noise of all steps of every image are
optimised by gradient ascent (``torch.optim.SGD``, rate 0.1). The ways:

- checkpointed: backpropagation through the pipeline's own loop, with a checkpoint around every network call;
- rounded: the same, with noise that differs from it by a relative 1e-6 at the beginning: how far the curve of the
  reference itself is determined, since the classifier's rectifiers and pools make the gradient jump;
- joint: rounds over all steps, and over the adjoint chain, each to 1e-4 and from nothing;
- warm: the same, from the trajectory before the last update.

Each way is a process of its own. "sequential" are network calls that wait for others, forward and backward: three for
each step (an evaluation, the same again, and its backward pass), one for each round, two for each round of the adjoint
chain. "calls" are all calls of the network, repeated ones included. Both are for one update. "peak" is the largest
resident size beyond that before the first update, "curve" the largest difference of a reward from that of the first
way, relative to what was gained.
"""

from __future__ import annotations

import argparse
import inspect
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from pipeline_gradients import joint, status
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fixedpoint
from fixedpoint.chains import ChainAdjoint, ChainProblem
from fixedpoint_diffusion import FashionMNISTPipeline, load_classifier, parallel
from fixedpoint_diffusion.fashion_mnist import CLASSES

WAYS = ("checkpointed", "rounded", "joint", "warm")
PAIRS = (("sneaker", "ankle boot"), ("bag", "trouser"), ("shirt", "dress"))
# The rate of the ascent; and the relative change of the noise by which the reference is compared with itself.
RATE, CHANGE, CHANGE_DOUBLE = 0.1, 1e-6, 1e-12
# The tolerance of the joint solves, forward and backward.
RTOL, RTOL_DOUBLE = 1e-4, 1e-8


class Reward:
    """The reward of noise, by one of the ways, and what it costs."""

    def __init__(self, way: str, steps: int, prompt: str, wanted: str, images: int, double: bool = False) -> None:
        self.dtype, self.rtol = (torch.float64, RTOL_DOUBLE) if double else (torch.float32, RTOL)
        self.way, self.steps, self.wanted = way, steps, CLASSES.index(wanted)
        self.pipe, self.classifier = FashionMNISTPipeline.bundled(), load_classifier()
        self.pipe.to(self.dtype)
        self.classifier.to(self.dtype)
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.transformer.requires_grad_(False)
        self.call: dict[str, Any] = {
            "prompt": [prompt] * images,
            "num_inference_steps": steps,
            "eta": 1.0,
            "output_type": "latent",
        }
        by = ChainAdjoint(solver=joint("joint"), termination=fixedpoint.Termination(rtol=self.rtol))
        self.sampler, self.by = parallel(self.pipe, solver=joint("joint"), gradient=by), by
        self.sequential, self.calls = 0, 0
        self.before: Tensor | None = None
        network = self.pipe.transformer.forward

        def counted(*args: Any, **given: Any) -> Any:
            self.calls += 1
            return network(*args, **given)

        self.pipe.transformer.forward = counted

    def climbed(self, latents: Tensor, noise: Tensor) -> tuple[float, Tensor]:
        """Return the mean reward and the images; add the gradients of its negative to the noise."""
        serial = self.way in ("checkpointed", "rounded")
        images = self._serially(latents, noise) if serial else self._jointly(latents, noise)
        rewards = self.classifier(images)[:, self.wanted]
        (-rewards).sum().backward()
        if serial:
            self.sequential += 3 * self.steps
        else:
            assert self.solution is not None
            rounds, back = self.solution.counts.rounds, self.solution.extras["adjoint"].rounds
            self.sequential += int(rounds + 2 * back + 2)
        return float(rewards.detach().mean()), images.detach()

    def _serially(self, latents: Tensor, noise: Tensor) -> Tensor:
        module = sys.modules[type(self.pipe.scheduler).__module__]
        draws, own, network = iter(noise.unbind(1)), module.randn_tensor, self.pipe.transformer.forward
        module.randn_tensor = lambda *_, **__: next(draws)
        self.pipe.transformer.forward = lambda *args, **given: checkpoint(network, *args, use_reentrant=False, **given)
        try:
            images: Tensor = inspect.unwrap(type(self.pipe).__call__)(self.pipe, **self.call, latents=latents).images
        finally:
            module.randn_tensor, self.pipe.transformer.forward = own, network
        return images

    def _jointly(self, latents: Tensor, noise: Tensor) -> Tensor:
        problem = self.sampler.problem(**self.call, latents=latents, noise=noise)
        if self.way == "warm" and self.before is not None:
            problem = ChainProblem(problem.chain, problem.x0, max_batch=problem.max_batch, start=self.before)
        self.solution = fixedpoint.solve(problem, solver=joint("joint"), gradient=self.by, rtol=self.rtol)
        self.before = self.solution.z.detach()
        images: Tensor = self.sampler.finish(problem, self.solution).images
        return images


def optimised(reward: Reward, updates: int, images: int) -> dict[str, Any]:
    """Optimise the noise; return the curve, the pictures before and after, and the costs."""
    draws = torch.Generator().manual_seed(0)
    latents = torch.randn(images, 1, 32, 32, generator=draws).to(reward.dtype)
    noise = torch.randn(images, reward.steps, 1, 32, 32, generator=draws).to(reward.dtype)
    change = CHANGE_DOUBLE if reward.dtype == torch.float64 else CHANGE
    if reward.way == "rounded":
        latents, noise = (each + change * torch.randn(each.shape, generator=draws) for each in (latents, noise))
    optimiser = torch.optim.SGD([latents.requires_grad_(), noise.requires_grad_()], lr=RATE)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here
    resident, began = status("VmRSS"), time.perf_counter()
    curve, pictures = [], []
    for _ in range(updates + 1):
        value, found = reward.climbed(latents, noise)
        curve.append(value)
        pictures.append(found)
        optimiser.step()
        optimiser.zero_grad()
    return {
        "curve": curve,
        "pictures": torch.stack([pictures[0], pictures[-1]]),
        "seconds": time.perf_counter() - began,
        "peak": status("VmHWM") - resident,
        "sequential": reward.sequential / (updates + 1),
        "calls": reward.calls / (updates + 1),
    }


def fresh(asked: argparse.Namespace, way: str, into: Path) -> dict[str, Any]:
    """The same, in a fresh process."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "16384", "OMP_NUM_THREADS": "1"}
    options = ["steps", "updates", "images", "prompt", "wanted"]
    given = [part for name in options for part in (f"--{name}", str(getattr(asked, name)))]
    given += ["--double"] if asked.double else []
    subprocess.run([sys.executable, __file__, *given, "--child", way, str(into)], check=True, env=environment)
    found: dict[str, Any] = torch.load(into, weights_only=True)
    return found


def plot(found: dict[str, dict[str, Any]], to: Path, names: tuple[str, str]) -> None:
    """The curves, and the pictures of the last way before and after."""
    import matplotlib.pyplot as plt

    pictures = found[WAYS[-1]]["pictures"]
    figure, axes = plt.subplots(1, 3, figsize=(9, 3), width_ratios=[1.6, 1, 1])
    for way, style in zip(found, ("-", "-.", "--", ":"), strict=True):
        axes[0].plot(found[way]["curve"], style, label=way)
    axes[0].set(xlabel="updates", ylabel=f"logit of {names[1]}")
    axes[0].legend()
    for place, (axis, when) in enumerate(zip(axes[1:], ("before", "after"), strict=True)):
        axis.imshow(torch.cat(list(pictures[place][:, 0]), dim=0).clamp(-1, 1), cmap="gray_r", vmin=-1, vmax=1)
        axis.set(title=f"{names[0]}, {when}", xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig(to, dpi=110)


def main() -> None:
    """Print the table and save the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--prompt", choices=CLASSES, help="with --wanted: this pair of classes only")
    parser.add_argument("--wanted", choices=CLASSES)
    parser.add_argument("--double", action="store_true", help="in float64, solves to 1e-8 and a change of 1e-12")
    parser.add_argument("--plot", type=Path, help="save curves and pictures of the last pair")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if asked.child:
        way, into = asked.child
        reward = Reward(way, asked.steps, asked.prompt, asked.wanted, asked.images, asked.double)
        torch.save(optimised(reward, asked.updates, asked.images), into)
        return
    pairs = [(asked.prompt, asked.wanted)] if asked.prompt and asked.wanted else PAIRS
    for pair in pairs:
        asked.prompt, asked.wanted = pair
        found = compared(asked)
    if asked.plot:
        plot(found, asked.plot, pair)


def compared(asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Optimise the noise for one pair of classes in every way, and print its table."""
    print(f"{asked.prompt} to {asked.wanted}: {asked.images} images, {asked.steps} steps, {asked.updates} updates")
    print("way           sequential  calls  peak MB  seconds  reward before, after  curve")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            one = found[way] = fresh(asked, way, Path(folder) / f"{way}.pt")
            exact = torch.tensor(found[WAYS[0]]["curve"])
            off = float((torch.tensor(one["curve"]) - exact).abs().max() / (exact.max() - exact.min()))
            print(
                f"{way:12}  {one['sequential']:10.1f}  {one['calls']:5.0f}  {one['peak'] / 1e6:7.1f}  "
                f"{one['seconds']:7.0f}  {one['curve'][0]:13.2f}, {one['curve'][-1]:5.2f}  {off:.1e}",
                flush=True,
            )
    return found


if __name__ == "__main__":
    main()
