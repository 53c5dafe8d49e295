"""Trains the bundled classifier of Fashion-MNIST, by which samples are judged.

    python recipes/fashion_mnist/train_classifier.py DATA OUT [--epochs 8] [--device cuda]

DATA is the folder of the four IDX files; OUT is the safetensors file to write. The file also contains the mean and the
covariance of the features of the 9,000 test images that are not bundled. Training takes a few minutes on two processor
cores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from bundle_images import bundled
from data import load, scaled
from rich.progress import track
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from fixedpoint_diffusion import Classifier
from fixedpoint_diffusion.fashion_mnist.classifier import Gaussian


def main(
    data: Annotated[Path, typer.Argument(help="Folder of the four IDX files.")],
    out: Annotated[Path, typer.Argument(help="File to write.")],
    epochs: int = 8,
    batch: int = 128,
    learning_rate: float = 3e-3,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Train with Adam and a one-cycle learning rate; images are shifted by up to two pixels."""
    torch.manual_seed(seed)
    images, labels = (part.to(device) for part in load(data, "train"))
    test_images, test_labels = load(data, "t10k")
    classifier = Classifier().to(device)
    steps = epochs * (len(images) // batch)
    optimiser = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    shifts = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed * 7919 + epoch)).to(device)
        pieces = order[: len(images) // batch * batch].split(batch)
        for chosen in track(pieces, description=f"epoch {epoch + 1} of {epochs}"):
            by = [int(shift) for shift in torch.randint(-2, 3, (2,), generator=shifts)]
            # The border is black and two pixels wide, so the pixels that roll over the edge are black.
            batch_of = scaled(images[chosen]).roll(by, dims=(2, 3))
            loss = cross_entropy(classifier(batch_of), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
    classifier.eval().cpu()
    features, found = classifier.judge(scaled(test_images))
    correct = found == test_labels
    print(f"test accuracy {correct.double().mean():.4f}")
    for label in range(10):
        print(f"  class {label}: {correct[test_labels == label].double().mean():.3f}")
    rest = torch.ones(len(test_labels), dtype=torch.bool)
    rest[bundled(test_labels)] = False
    gaussian = Gaussian.of(features[rest])
    tensors = {**classifier.state_dict(), "reference.mean": gaussian.mean, "reference.covariance": gaussian.covariance}
    about = {"epochs": epochs, "batch": batch, "learning_rate": learning_rate, "seed": seed}
    about["test_accuracy"] = round(float(correct.double().mean()), 4)
    save_file({k: v.contiguous() for k, v in tensors.items()}, out, {k: str(v) for k, v in about.items()})


if __name__ == "__main__":
    typer.run(main)
