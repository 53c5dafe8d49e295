"""Trains the bundled denoiser, a class-conditional diffusion transformer, on the training set of Fashion-MNIST.

    python recipes/fashion_mnist/train_denoiser.py DATA OUT [--epochs 30] [--device cuda]

DATA is the folder of the four IDX files. In the folder OUT the script writes ``checkpoint.safetensors`` after every
epoch, ``log.jsonl``, and at the end ``model/``, a diffusers folder with the averaged weights and the configuration of
the scheduler. If a checkpoint is there, the same command continues from it, bit for bit on the same machine: random
numbers are a function of the seed and the step, so the checkpoint need not contain the state of a generator.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from data import load, scaled
from diffusers import DDIMScheduler, DiTTransformer2DModel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from fixedpoint.config.checkpoint import load_checkpoint, save_checkpoint

CLASSES = 10
TIMESTEPS = 1000


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters; apart from the machine, the result depends on nothing else."""

    epochs: int = 30
    batch: int = 128
    learning_rate: float = 1e-3
    warmup: int = 500
    weight_decay: float = 0.01
    ema: float = 0.9995
    label_dropout: float = 0.1
    hidden: int = 128
    heads: int = 4
    layers: int = 4
    precision: str = "bfloat16"
    seed: int = 0


def build(recipe: Recipe) -> DiTTransformer2DModel:
    """The network, with the last layer and all modulations at zero (adaLN-Zero, Peebles and Xie 2023, section 3.2)."""
    torch.manual_seed(recipe.seed)
    model = DiTTransformer2DModel(
        num_attention_heads=recipe.heads,
        attention_head_dim=recipe.hidden // recipe.heads,
        in_channels=1,
        out_channels=1,
        num_layers=recipe.layers,
        sample_size=32,
        patch_size=4,
        num_embeds_ada_norm=CLASSES,
        activation_fn="gelu",
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
    for last in (*(block.norm1.linear for block in model.transformer_blocks), model.proj_out_1, model.proj_out_2):
        torch.nn.init.zeros_(last.weight)
    # Evaluation mode also during training: it only disables the label dropout of diffusers, which would draw again in
    # every block. ``Training.advance`` drops labels instead, once for the whole network.
    return model.eval()


def scheduler() -> DDIMScheduler:
    """The noise schedule: 1000 steps, linear variances, v-prediction, no clipping."""
    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS, beta_schedule="linear", prediction_type="v_prediction", clip_sample=False
    )


ALPHAS_BAR: Tensor = scheduler().alphas_cumprod


def loss_of(
    model: DiTTransformer2DModel, images: Tensor, labels: Tensor, timesteps: Tensor, noise: Tensor, precision: str
) -> Tensor:
    """Mean squared error of the velocity ``v = alpha noise - sigma image`` (Salimans and Ho 2022, appendix D)."""
    alpha_bar = ALPHAS_BAR[timesteps].reshape(-1, 1, 1, 1).to(images.device)
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        predicted = model(alpha * images + sigma * noise, timesteps.to(images.device), labels).sample
    return (predicted.float() - (alpha * noise - sigma * images)).square().mean()


def draw(count: int, seed: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Timesteps, stratified over 0 to 999, noise, and uniform numbers for the label dropout, for one step."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    noise = torch.randn(count, 1, 32, 32, generator=generator)
    return (places * TIMESTEPS).long(), noise, torch.rand(count, generator=generator)


class Training:
    """A training: the network, the averaged network, the optimiser and the number of steps so far."""

    def __init__(self, recipe: Recipe, steps: int, device: torch.device) -> None:
        self.recipe = recipe
        self.setting = {name: str(value) for name, value in dataclasses.asdict(recipe).items()}
        self.steps = steps
        self.step = 0
        self.seconds = 0.0
        self.model = build(recipe).to(device)
        self.averaged = build(recipe).to(device).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.99)
        )

    def learning_rate(self) -> float:
        """The learning rate of the next step: linear warm-up, then a cosine to zero."""
        warm = min(1.0, (self.step + 1) / self.recipe.warmup)
        return self.recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))

    def advance(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take one step of the optimiser, and return the loss."""
        timesteps, noise, drop = draw(len(images), self.recipe.seed, self.step)
        labels = torch.where(drop.to(labels.device) < self.recipe.label_dropout, CLASSES, labels)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        device = images.device
        loss = loss_of(self.model, images, labels, timesteps, noise.to(device), self.recipe.precision)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        # The decay rises at first, so that the average forgets the initial weights.
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)
        return loss.detach()

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict()["state"],
        }
        save_checkpoint(path, self.setting, state)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint; raises a ValueError if it is one of another recipe."""
        state = load_checkpoint(path, self.setting, of="recipe")
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        whole = self.optimiser.state_dict()
        self.optimiser.load_state_dict({"state": state["optimiser"], "param_groups": whole["param_groups"]})

    @torch.no_grad()
    def held_out_loss(self, images: Tensor, labels: Tensor) -> float:
        """The loss of the averaged network on held-out images, always with the same timesteps and noise."""
        timesteps, noise, _ = draw(len(images), 2**20, 0)
        device = images.device
        return float(loss_of(self.averaged, images, labels, timesteps, noise.to(device), "float32"))


def main(
    data: Annotated[Path, typer.Argument(help="Folder of the four IDX files.")],
    out: Annotated[Path, typer.Argument(help="Folder for checkpoint, log and model.")],
    epochs: int = Recipe.epochs,
    batch: int = Recipe.batch,
    layers: int = Recipe.layers,
    seed: int = Recipe.seed,
    device: str = "cpu",
    limit_seconds: Annotated[float, typer.Option(help="Stop with a checkpoint after this long.")] = math.inf,
) -> None:
    """Train, continuing from OUT/checkpoint.safetensors if it exists."""
    recipe = Recipe(epochs=epochs, batch=batch, layers=layers, seed=seed)
    place = torch.device(device)
    images, labels = (part.to(place) for part in load(data, "train"))
    held_images, held_labels = (part[:1024].to(place) for part in load(data, "t10k"))
    per_epoch = len(images) // recipe.batch
    training = Training(recipe, per_epoch * recipe.epochs, place)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        try:
            training.restore(checkpoint)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        print(f"going on from epoch {training.step // per_epoch}")
    begun = time.monotonic()
    columns = (TextColumn("epoch {task.fields[epoch]} loss {task.fields[loss]}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=training.steps, completed=training.step, epoch=0, loss="")
        for epoch in range(training.step // per_epoch, recipe.epochs):
            since = time.monotonic()
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed * 7919 + epoch))
            losses = []
            for chosen in order[: per_epoch * recipe.batch].to(place).split(recipe.batch):
                losses.append(training.advance(scaled(images[chosen]), labels[chosen]))
                progress.advance(bar)
            training.seconds += time.monotonic() - since
            entry: dict[str, Any] = {
                "epoch": epoch + 1,
                "loss": round(float(torch.stack(losses).mean()), 5),
                "held_out_loss": round(training.held_out_loss(scaled(held_images), held_labels), 5),
                "seconds": round(training.seconds, 1),
            }
            progress.update(bar, epoch=epoch + 1, loss=entry["held_out_loss"])
            training.save(checkpoint)
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
            if time.monotonic() - begun > limit_seconds:
                print(f"stopped after epoch {epoch + 1} of {recipe.epochs}; the same command goes on")
                return
    training.averaged.save_pretrained(out / "model")
    scheduler().save_pretrained(out / "model")
    (out / "model" / "training.json").write_text(
        json.dumps(dataclasses.asdict(recipe) | {"seconds": training.seconds, "device": device}, indent=2) + "\n"
    )


if __name__ == "__main__":
    typer.run(main)
