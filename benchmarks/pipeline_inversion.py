"""Inversion through a pipeline, beside the DDIM inversion of diffusers.

    python benchmarks/pipeline_inversion.py [--images 8] [--steps 50] [--guidance 1 3 7.5] [--vectors 288]
    python benchmarks/pipeline_inversion.py --picture docs/assets/pipeline-inversion.png

The pipeline is that of the bundled model, in float32, with DDIM. Inverted are test images of Fashion-MNIST with their
classes as prompts, and samples of the pipeline itself. "Round trip" is the rms, over the pixels in [-1, 1], between an
image and what the pipeline's own call makes of its latents. DDIM inversion is the same pipeline with
``DDIMInverseScheduler``, called with the image as ``latents``. Sequential calls have to wait for one another; those of
``sampler.invert`` include its own round trip. ``--vectors`` bounds the least squares for images that are missed; 0
leaves them out. With ``--picture`` the script draws images, what the pipeline makes of
their latents, and edits by other prompts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from PIL import Image
from torch import Tensor

from fixedpoint.chains import JointInversion
from fixedpoint_diffusion import FashionMNISTPipeline, held_out_images, parallel
from fixedpoint_diffusion.fashion_mnist import CLASSES


def pipeline(scheduler: Any) -> Any:
    """The bundled pipeline, without clipping, which has no inverse."""
    pipe = FashionMNISTPipeline.bundled(scheduler, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rms(difference: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return difference.flatten(1).double().square().mean(dim=1).sqrt().numpy()


def line(name: str, what: str, guidance: float, calls: int, seconds: float, off: Any, said: str) -> str:
    numbers = [f"{value:.1e}" for value in (np.median(off), off.max())]
    return " | ".join([f"| {name}", what, f"{guidance:g}", f"{calls}", f"{seconds:.0f}", *numbers, f"{said} |"])


def table(count: int, steps: int, scales: list[float], vectors: int) -> None:
    """Print the table."""
    pipe, backwards = pipeline(DDIMScheduler), pipeline(DDIMInverseScheduler)
    method = JointInversion(clean_rounds=60, rescue=True, vectors=vectors)
    images, labels = held_out_images()
    prompts = [CLASSES[label] for label in labels[:count].tolist()]
    print("| inversion | images | guidance | sequential calls | seconds | round trip: median | worst | says inverted |")
    print("|:--|:--|--:|--:|--:|--:|--:|--:|")
    for scale in scales:
        call: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": scale, "output_type": "latent"}
        own = pipe(prompts, **call, generator=torch.Generator().manual_seed(1)).images
        for what, targets in (("test images", images[:count]), ("its own samples", own)):
            began = time.perf_counter()
            inversion = parallel(pipe).invert(targets, prompts, input_type="latent", method=method, **call)
            took = time.perf_counter() - began
            off = rms(pipe(prompts, latents=inversion.latents, **call).images - targets)
            said = f"{int(inversion.succeeded.sum())} of {count}"
            print(line("`sampler.invert`", what, scale, inversion.rounds, took, off, said), flush=True)
            began = time.perf_counter()
            theirs = backwards(prompts, latents=targets, **call).images
            took = time.perf_counter() - began
            off = rms(pipe(prompts, latents=theirs, **call).images - targets)
            print(line("`DDIMInverseScheduler`", what, scale, steps, took, off, ""), flush=True)


def draw(file: Path, steps: int) -> None:
    """Draw images, what their latents give, and edits; one column for each image."""
    pipe = pipeline(DDIMScheduler)
    sampler = parallel(pipe)
    images, labels = held_out_images()
    count = 8
    prompts = [CLASSES[label] for label in labels[:count].tolist()]
    call: dict[str, Any] = {"num_inference_steps": steps, "output_type": "latent"}
    inversion = sampler.invert(images[:count], prompts, input_type="latent", **call)
    edits = [
        sampler([other] * count, latents=inversion.latents, guidance_scale=2.0, **call).images
        for other in ("dress", "bag")
    ]
    rows = [images[:count], inversion.output.images, *edits]
    drawn = [((row.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()[:, 0] for row in rows]
    tiles = np.concatenate([np.concatenate([np.pad(each, 1, constant_values=255) for each in row], 1) for row in drawn])
    Image.fromarray(tiles.repeat(2, 0).repeat(2, 1)).save(file, optimize=True)
    print(f"{file}: {count} images, their reconstructions, as a dress, as a bag\n{inversion.message}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0, 7.5])
    parser.add_argument("--vectors", type=int, default=288)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    if given.picture is None:
        table(given.images, given.steps, given.guidance, given.vectors)
    else:
        draw(given.picture, given.steps)


if __name__ == "__main__":
    main()
