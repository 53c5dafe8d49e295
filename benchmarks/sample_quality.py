"""The quality of the samples of the bundled model: how many show their class, and their distance to real images.

    python benchmarks/sample_quality.py [--grid docs/assets/fashion-mnist.png]

Samples 1,000 images by DDIM, a hundred of every class, and judges them with the bundled classifier. The script prints
the share whose requested class it finds, and the Frechet distance in classifier features to 9,000 test images. The same
is printed for as many held-out real images and as much Gaussian noise. The distance is not the FID and can be compared
only with itself.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

import fixedpoint
from fixedpoint_diffusion import FashionMNISTModel, frechet_distance, held_out_images, load_classifier, reference
from fixedpoint_diffusion.fashion_mnist import CLASSES
from fixedpoint_diffusion.fashion_mnist.classifier import Gaussian
from fixedpoint_diffusion.task import Sampling


def main(
    count: Annotated[int, typer.Option(help="Samples, the classes in turn.")] = 1000,
    steps: Annotated[int, typer.Option(help="N, steps of the chain.")] = 100,
    eta: float = 0.0,
    guidance_scale: float = 1.0,
    seed: int = 0,
    solver: Annotated[str, typer.Option(help="serial, or a joint solver: the samples are the same.")] = "serial",
    grid: Annotated[Path | None, typer.Option(help="Write a picture of a hundred samples.")] = None,
) -> None:
    """Sample, judge, and print the table."""
    task = Sampling(
        model=FashionMNISTModel(guidance_scale=guidance_scale), num_inference_steps=steps, eta=eta, batch=count
    )
    began = time.perf_counter()
    with torch.no_grad():
        samples = fixedpoint.solve(task.problem(seed), solver=solver, rtol=1e-4).z[:, -1]
    seconds = time.perf_counter() - began
    asked = torch.arange(count) % len(CLASSES)
    real, real_labels = held_out_images()
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed))
    print(f"{count} samples, {solver} DDIM, N = {steps}, eta = {eta:g}, guidance {guidance_scale:g}: {seconds:.0f} s\n")
    print("| images | asked class found | Frechet distance in classifier features |\n|:--|--:|--:|")
    right, distance = judged(samples, asked)
    print(f"| samples | {share(right)} | {distance:.3g} |")
    real_right, real_distance = judged(real, real_labels)
    print(f"| held-out real images | {share(real_right)} | {real_distance:.3g} |")
    print(f"| Gaussian noise | | {judged(noise, asked)[1]:.3g} |")
    print("\n| class | samples | held-out real images |\n|:--|--:|--:|")
    for label, name in enumerate(CLASSES):
        print(f"| {name} | {share(right[asked == label])} | {share(real_right[real_labels == label])} |")
    if grid is not None:
        draw(samples[:100].reshape(10, 10, 32, 32).transpose(0, 1), grid)


def judged(images: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Whether each image shows its class, and the distance of all images to real images."""
    features, found = load_classifier().judge(images)
    return found == labels, frechet_distance(Gaussian.of(features), reference())


def share(right: Tensor) -> str:
    """A share in percent."""
    return f"{100 * right.double().mean():.1f}%"


def draw(rows: Tensor, path: Path) -> None:
    """Draw a grid of images ``(rows, columns, height, width)`` in ``[-1, 1]``, enlarged by a factor of two."""
    import matplotlib.image

    gap = torch.nn.functional.pad(rows, (1, 1, 1, 1), value=1.0)
    sheet = torch.cat([torch.cat(list(row), dim=1) for row in gap]).clamp(-1, 1)
    large = sheet.repeat_interleave(2, 0).repeat_interleave(2, 1).numpy()
    matplotlib.image.imsave(path, large, cmap="gray", vmin=-1, vmax=1)


if __name__ == "__main__":
    torch.set_num_threads(2)
    typer.run(main)
