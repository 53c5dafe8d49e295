"""The model that images are inverted with, its classes by number or name, and its denoiser for some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.options import OptionError, nearest
from fixedpoint.registry import CommandError
from fixedpoint_diffusion.denoisers.network import NetworkDenoiser
from fixedpoint_diffusion.fashion_mnist import CLASSES
from fixedpoint_diffusion.models.choices import DiffusersModel, FashionMNISTModel
from fixedpoint_diffusion.models.folder import FolderError
from fixedpoint_diffusion.samplers.ddim import DDIMChain
from fixedpoint_diffusion.samplers.schedulers import DDIMSchedule

__all__ = ["BUNDLED", "ChosenModel", "choose"]

BUNDLED = "fashion-mnist"


@dataclass(frozen=True)
class ChosenModel:
    """A model with the schedule it was trained with.

    Attributes
    ----------
    name
        As it was typed.
    schedule
        Its own; without clipping where that is to be ignored.
    timesteps
        Those of the chain as they were given; None for as many as ``steps`` in the schedule's spacing.
    steps
        How many steps the chain has.
    notes
        What is done that was not asked for in so many words: sentences.
    """

    name: str
    model: FashionMNISTModel | DiffusersModel
    schedule: DDIMSchedule
    steps: int
    timesteps: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def route(self) -> dict[str, Any]:
        """The arguments of a chain that say its timesteps."""
        if self.timesteps is None:
            return {"num_inference_steps": self.steps}
        return {"timesteps": self.timesteps}

    @property
    def bundled(self) -> bool:
        """Whether it is the model in the box, whose classes have names and can be guessed."""
        return isinstance(self.model, FashionMNISTModel)

    @property
    def classes(self) -> int | None:
        """How many; None for a model that is not conditioned on classes."""
        return self.model.folder.classes

    def label(self, text: str, flag: str) -> int:
        """The class of that number or name.

        Raises
        ------
        CommandError
            For any other.
        """
        count = self.classes
        if count is None:
            raise CommandError(f"{flag}: {self.name} is not conditioned on classes")
        named = {name.lower(): label for label, name in enumerate(CLASSES)} if self.bundled else {}
        if text.lower() in named:
            return named[text.lower()]
        if text.isdecimal() and int(text) < count:
            return int(text)
        hint = f"; {nearest(text.lower(), named)}" if named and not text.isdecimal() else ""
        raise CommandError(f'{flag}: must be from 0 to {count - 1}{" or a name" * bool(named)}, got "{text}"{hint}')

    def called(self, label: int | None) -> str:
        """A class in a table."""
        if label is None:
            return ""
        return CLASSES[label] if self.bundled else str(label)

    def guessed(self, images: Float[Tensor, "B 1 32 32"]) -> list[int]:
        """The classes that the bundled classifier sees."""
        from fixedpoint_diffusion.fashion_mnist.classifier import load_classifier

        found: list[int] = load_classifier().judge(images)[1].tolist()
        return found

    def guided(self, guidance: float, flag: str) -> None:
        """Check a guidance scale.

        Raises
        ------
        CommandError
            Where it is out of range, or the model has nothing to guide by.
        """
        try:
            replace(self.model, guidance_scale=guidance)
        except OptionError as error:
            raise CommandError(f"{flag}: {error.reason}") from None

    def denoiser(self, labels: Sequence[int] | None, rows: int, guidance: float, device: str) -> NetworkDenoiser:
        """The denoiser of a batch.

        Raises
        ------
        CommandError
            Where its files have changed, or diffusers cannot load them.
        """
        classes = None if labels is None else tuple(labels)
        try:
            model = replace(self.model, classes=classes, guidance_scale=guidance)
            return model.denoiser(self.schedule, rows, device)
        except (FolderError, OptionError, OSError, RuntimeError) as error:
            raise CommandError(f"the model {self.name} cannot be used: {' '.join(str(error).split())}") from None


def choose(
    name: str,
    no_class: int | None,
    steps: int | None,
    ignore_clipping: bool,
    timesteps: tuple[int, ...] | Literal["quadratic"] | None = None,
) -> ChosenModel:
    """The bundled model, or the one in a folder.

    Raises
    ------
    CommandError
        For a folder that holds no model of images and classes with its schedule, and for a chain of steps that there is
        not, or that has no inverse.
    """
    if name == BUNDLED and no_class is not None:
        raise CommandError(f"--no-class is for models in folders; {BUNDLED} knows its own")
    try:
        model = FashionMNISTModel() if name == BUNDLED else DiffusersModel(path=name, no_class=no_class)
    except OptionError as error:
        flag = "--no-class" if error.option == "no_class" else f"--model {name}"
        raise CommandError(f"{flag}: {error.reason}") from None
    schedule, notes = model.schedule_and_notes()
    if schedule is None:
        raise CommandError(f"--model {name}: has no scheduler_config.json, so its noise levels are not known")
    if ignore_clipping:
        schedule = replace(schedule, clip_sample=False, thresholding=False)
    try:
        chain = DDIMChain(_nothing, schedule, steps, timesteps=timesteps)
    except ValueError as error:
        given = f"--steps {steps}" if timesteps is None else "--timesteps"
        raise CommandError(f"{given}: {error}") from None
    why = chain.no_inverse()
    if why is not None:
        raise CommandError(f"--model {name}: {why.partition(';')[0]}; --clip ignore leaves it out")
    if chain.route.note:
        notes = (*notes, f"--timesteps: {chain.route.note}")
    return ChosenModel(name, model, schedule, chain.length, None if timesteps is None else chain.route.timesteps, notes)


def _nothing(x: Tensor, _: Tensor) -> Tensor:
    return torch.zeros_like(x)
