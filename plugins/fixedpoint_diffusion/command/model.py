"""The model that images are inverted with: its schedule, its classes by number or name, and its denoisers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

import fixedpoint
from fixedpoint.config.document import Document
from fixedpoint.config.errors import ConfigError
from fixedpoint.config.overrides import apply_overrides
from fixedpoint.core.options import OptionError, nearest
from fixedpoint.registry import CommandError
from fixedpoint_diffusion.denoisers.network import NetworkDenoiser
from fixedpoint_diffusion.fashion_mnist import CLASSES
from fixedpoint_diffusion.inversion.invert import Inversion, InversionProgress, invert
from fixedpoint_diffusion.inversion.invertible import check_invertible
from fixedpoint_diffusion.models.choices import DiffusersModel, FashionMNISTModel
from fixedpoint_diffusion.models.folder import FolderError
from fixedpoint_diffusion.samplers.ddim import DDIMChain
from fixedpoint_diffusion.samplers.request import RequestError, TabledSampler, requested, without_clipping
from fixedpoint_diffusion.schedules.by_name import SchedulerChoice, SchedulerError, own_scheduler
from fixedpoint_diffusion.schedules.schedulers import SUPPORTED_SCHEDULERS, DDIMSchedule, schedule_of
from fixedpoint_diffusion.schedules.training import other_than_trained

__all__ = ["BUNDLED", "ChosenModel", "Found", "choose", "typed_scheduler"]

BUNDLED = "fashion-mnist"


@dataclass(frozen=True)
class Found:
    """What was found for a batch of images.

    Attributes
    ----------
    latents
        Their latents.
    reconstruction
        The images that the model makes of these, in [-1, 1].
    inversion
        The states and the status of every image.
    """

    latents: Float[Tensor, "B *latent"]
    reconstruction: Float[Tensor, "B C H W"]
    inversion: Inversion


@dataclass(frozen=True)
class ChosenModel:
    """A model with the schedule it was trained with.

    Attributes
    ----------
    name
        The model as typed: ``fashion-mnist`` or a folder.
    model
        The options of the model.
    schedule
        The schedule of DDIM, without clipping if that is ignored; or another scheduler of diffusers.
    steps
        Number of steps of the chain.
    timesteps
        The timesteps of the chain if they were given; None for ``steps`` timesteps in the schedule's spacing.
    notes
        Sentences on what is done that was not requested explicitly.
    """

    name: str
    model: FashionMNISTModel | DiffusersModel
    schedule: DDIMSchedule | Any
    steps: int
    timesteps: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def route(self) -> dict[str, Any]:
        """The arguments of a chain that determine its timesteps."""
        if self.timesteps is None:
            return {"num_inference_steps": self.steps}
        return {"timesteps": self.timesteps}

    @property
    def told(self) -> dict[str, Any]:
        """The schedule as plain values: the fields of DDIM's, or the class and the configuration of a scheduler."""
        if isinstance(self.schedule, DDIMSchedule):
            return asdict(self.schedule)
        config = {key: value for key, value in self.schedule.config.items() if not key.startswith("_")}
        return {"name": type(self.schedule).__name__, **config}

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of its images, ``(C, H, W)``."""
        return self.model.event_shape

    @property
    def latent(self) -> str:
        """Name of the part of its pipeline that decodes samples; empty if these are images."""
        return self.model.folder.latent

    @property
    def conditioned(self) -> str:
        """What the images are conditioned on, as the table heads it; empty for a model conditioned on nothing."""
        return "" if self.classes is None else "class"

    @property
    def sha256(self) -> str | None:
        """Digest of the files of the model."""
        return self.model.sha256

    def invert(
        self,
        images: Float[Tensor, "B C H W"],
        labels: Sequence[int] | None,
        guidance: float,
        tolerance: float,
        told: Callable[[InversionProgress], None] | None,
    ) -> Found:
        """Invert a batch of images with pixels in [-1, 1]; ``labels`` are their classes."""
        denoiser = self.denoiser(labels, len(images), guidance, str(images.device))
        found = invert(denoiser, self.schedule, images, **self.route, tolerance=tolerance, on_round=told)
        return Found(found.latents, found.reconstruction, found)

    def sample(
        self, latents: Float[Tensor, "B C H W"], labels: Sequence[int] | None, guidance: float, device: str
    ) -> Float[Tensor, "B C H W"]:
        """The samples of some latents with some classes and a guidance scale, by the serial solver."""
        denoiser = self.denoiser(labels, len(latents), guidance, device)
        problem = requested(self.schedule, **self.route).problem(denoiser, latents.to(device), None, None)
        images: Tensor = fixedpoint.solve(problem, solver="serial").z[:, -1]
        return images

    @property
    def bundled(self) -> bool:
        """Whether it is the bundled model, whose classes have names and can be guessed."""
        return isinstance(self.model, FashionMNISTModel)

    @property
    def classes(self) -> int | None:
        """The number of classes; None for a model that is not conditioned on classes."""
        return self.model.folder.classes

    def label(self, text: str, flag: str) -> int:
        """The class with the number or name ``text``; ``flag`` is the option that error messages name.

        Raises
        ------
        CommandError
            If there is no such class.
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
        """The name of a class in the table: a name of the bundled model, else the number; empty for None."""
        if label is None:
            return ""
        return CLASSES[label] if self.bundled else str(label)

    def guessed(self, images: Float[Tensor, "B 1 32 32"]) -> list[int]:
        """The classes that the bundled classifier finds most likely."""
        from fixedpoint_diffusion.fashion_mnist.classifier import load_classifier

        found: list[int] = load_classifier().judge(images)[1].tolist()
        return found

    def guided(self, guidance: float, flag: str) -> None:
        """Check a guidance scale.

        Raises
        ------
        CommandError
            If it is out of range, or if the model does not support guidance.
        """
        try:
            replace(self.model, guidance_scale=guidance)
        except OptionError as error:
            raise CommandError(f"{flag}: {error.reason}") from None

    def denoiser(self, labels: Sequence[int] | None, rows: int, guidance: float, device: str) -> NetworkDenoiser:
        """The denoiser for a batch of ``rows`` images.

        Raises
        ------
        CommandError
            If the files of the model have changed, or if diffusers cannot load them.
        """
        classes = None if labels is None else tuple(labels)
        try:
            model = replace(self.model, classes=classes, guidance_scale=guidance)
            # A network knows its own noise levels, so that any schedule will do.
            schedule = self.schedule if isinstance(self.schedule, DDIMSchedule) else DDIMSchedule()
            return model.denoiser(schedule, rows, device)
        except (FolderError, OptionError, OSError, RuntimeError) as error:
            raise CommandError(f"the model {self.name} cannot be used: {' '.join(str(error).split())}") from None


def choose(
    name: str,
    no_class: int | None,
    steps: int | None,
    ignore_clipping: bool,
    timesteps: tuple[int, ...] | Literal["quadratic"] | None = None,
    scheduler: str | None = None,
) -> ChosenModel:
    """The bundled model, or the model in a folder; ``scheduler`` is one by name, or a mapping of name and settings.

    Raises
    ------
    CommandError
        If the folder holds no supported model with a schedule, if there is no such scheduler, if the timesteps are not
        valid, or if the chain has no inverse.
    """
    if name == BUNDLED and no_class is not None:
        raise CommandError(f"--no-class is for models in folders; {BUNDLED} knows its own")
    try:
        model = FashionMNISTModel() if name == BUNDLED else DiffusersModel(path=name, no_class=no_class)
    except OptionError as error:
        flag = "--no-class" if error.option == "no_class" else f"--model {name}"
        raise CommandError(f"{flag}: {error.reason}") from None
    own = model.own_scheduler
    if own is None:
        raise CommandError(f"--model {name}: has no scheduler_config.json, so its noise levels are not known")
    stepping = _stepping(own, scheduler, name)
    if stepping is not None:
        return _by_scheduler(name, model, stepping, steps, timesteps, ignore_clipping, scheduler is not None)
    if scheduler is None:
        schedule, notes = model.schedule_and_notes()
        assert schedule is not None  # there is a scheduler, of DDIM or DDPM
    else:
        schedule, notes = schedule_of(SchedulerChoice(typed_scheduler(scheduler)).build(own)), model.notes
    if ignore_clipping:
        schedule = without_clipping(schedule)
    try:
        # A chain without a network, for the checks of its timesteps; the network is loaded later.
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


def _stepping(own: Mapping[str, Any], scheduler: str | None, name: str) -> Any | None:
    """The scheduler that is inverted, one of the user's or the model's own; None where that is DDIM."""
    try:
        if scheduler is None:
            ours = own.get("_class_name") in SUPPORTED_SCHEDULERS
            return None if ours else own_scheduler(own)
        chosen = SchedulerChoice(typed_scheduler(scheduler)).build(own)
        why = other_than_trained(chosen, own_scheduler(own))
    except SchedulerError as error:
        flag = f"--model {name}: its scheduler" if scheduler is None else ".".join(("--scheduler", *error.within))
        raise CommandError(f"{flag}: {error}") from None
    if why:
        raise CommandError(f"--scheduler: {why}")
    return None if type(chosen).__name__ == "DDIMScheduler" else chosen


def _by_scheduler(
    name: str,
    model: FashionMNISTModel | DiffusersModel,
    scheduler: Any,
    steps: int | None,
    timesteps: tuple[int, ...] | Literal["quadratic"] | None,
    ignore_clipping: bool,
    named: bool,
) -> ChosenModel:
    """A model with a scheduler other than of DDIM, which must have an inverse."""
    flags = {"num_inference_steps": "--steps", "timesteps": "--timesteps"}
    whose = "--scheduler" if named else f"--model {name}: its scheduler"
    if ignore_clipping:
        scheduler = without_clipping(scheduler)
    try:
        sampler = requested(scheduler, steps, timesteps)
    except RequestError as error:
        raise CommandError(f"{flags.get(error.option, whose)}: {error}") from None
    if not isinstance(sampler, TabledSampler):
        raise CommandError(f"{whose}: clips the predicted image, which has no inverse; --clip ignore leaves it out")
    try:
        check_invertible(sampler.tables, noise=False)
    except ValueError as error:
        raise CommandError(f"{whose}: {error}") from None
    given = sampler.settings.get("timesteps")
    count = sampler.tables.evaluations
    return ChosenModel(name, model, scheduler, count, None if given is None else tuple(given), model.notes)


def typed_scheduler(text: str) -> Any:
    """A scheduler as it is typed on the command line: a name, or a YAML mapping in braces.

    Raises
    ------
    CommandError
        If it is neither.
    """
    document = Document({}, file="")
    try:
        apply_overrides(document, [f"scheduler={text}"])
    except ConfigError as error:
        raise CommandError(f"--scheduler: {error.mistakes[0].sentence}") from None
    value = document.data["scheduler"]
    if not isinstance(value, (str, dict)):
        raise CommandError(f'--scheduler: must be a name, or a mapping {{name: ..., setting: ...}}, got "{text}"')
    return value


def _nothing(x: Tensor, _: Tensor) -> Tensor:
    """A denoiser that predicts zero."""
    return torch.zeros_like(x)
