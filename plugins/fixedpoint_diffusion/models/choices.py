"""Models that run files can name, as options from which a denoiser is built."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.options import OptionError, Options, option
from fixedpoint_diffusion.denoisers.denoiser import Denoiser
from fixedpoint_diffusion.denoisers.mixture import GaussianMixture
from fixedpoint_diffusion.denoisers.network import NetworkDenoiser
from fixedpoint_diffusion.denoisers.shapes import SHAPES, draw_shapes
from fixedpoint_diffusion.fashion_mnist import DENOISER
from fixedpoint_diffusion.models.folder import FolderError, ModelFolder
from fixedpoint_diffusion.schedules.schedulers import DDIMSchedule, levels_of_config

__all__ = ["DiffusersModel", "FashionMNISTModel", "MixtureModel", "Model", "ShapesModel"]

Precision = Literal["float32", "bfloat16", "float16", "float64"]
_SHA256 = "digest of configuration and weights, filled in automatically; results of other weights are not reused"


class Model(Options, ABC):
    """Options that build a denoiser."""

    @property
    @abstractmethod
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @property
    def is_image(self) -> bool:
        """Whether samples are images ``(channels, height, width)`` with one channel (grey) or three (RGB)."""
        return len(self.event_shape) == 3 and self.event_shape[0] in (1, 3)

    @property
    def own_schedule(self) -> DDIMSchedule | None:
        """The noise schedule that the model was trained with; None if it works with any schedule or has none.

        Warns
        -----
        UserWarning
            If the scheduler of the model is not a ``DDIMScheduler``. The message says how it is sampled instead.
        """
        schedule, notes = self.schedule_and_notes()
        for note in notes if schedule is not None else ():
            warnings.warn(note, stacklevel=2)
        return schedule

    def schedule_and_notes(self) -> tuple[DDIMSchedule | None, tuple[str, ...]]:
        """The same schedule, with the warnings as sentences, for callers that report them themselves."""
        return None, ()

    @property
    def own_levels(self) -> DDIMSchedule | None:
        """The noise levels of the training by timesteps; None if the model works with any, or has others than DDIM."""
        own = self.own_scheduler
        return None if own is None else levels_of_config(own)

    @property
    def has_own_levels(self) -> bool:
        """Whether the model knows its noise levels, as trained networks do; others take those of the schedule."""
        return False

    @property
    def own_scheduler(self) -> Mapping[str, Any] | None:
        """The configuration of the scheduler that the model came with, of any class; None if it came with none."""
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what is done with the model, sampled by its own scheduler, that its folder does not specify."""
        return ()

    @abstractmethod
    def denoiser(self, schedule: DDIMSchedule, rows: int = 1, device: torch.device | str = "cpu") -> Denoiser:
        """The denoiser for a noise schedule and a batch of ``rows`` rows, on a device."""


@dataclass(frozen=True)
class MixtureModel(Model):
    """A random mixture of Gaussians, with an exact score in any dimension.

    The means lie on a sphere. Its radius is ``separation`` standard deviations of the widest component.
    """

    variant = "gaussian-mixture"

    components: int = option(6, ge=1, help="number of components")
    dimension: int = option(16, ge=1, help="number of unknowns of one sample")
    variance_low: float = option(0.02, gt=0.0, help="smallest variance of a component")
    variance_high: float = option(0.1, gt=0.0, help="largest variance of a component")
    separation: float = option(6.0, ge=0.0, help="distance of the means from the origin, in standard deviations")
    seed: int = option(0, ge=0, help="seed of the mixture")

    def check(self) -> None:
        if self.variance_high < self.variance_low:
            raise OptionError(
                type(self).__name__,
                "variance_high",
                f"must be at least variance_low = {self.variance_low}, got {self.variance_high}",
            )

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dimension,)

    def denoiser(self, schedule: DDIMSchedule, rows: int = 1, device: torch.device | str = "cpu") -> Denoiser:
        # By the seed of the model, not of the run: all seeds of a run sample the same mixture.
        generator = torch.Generator().manual_seed(self.seed)
        draw = torch.rand(self.components, generator=generator, dtype=torch.float64, device="cpu")
        variances = self.variance_low + (self.variance_high - self.variance_low) * draw
        weights = 0.2 + torch.rand(self.components, generator=generator, dtype=torch.float64, device="cpu")
        directions = torch.randn(
            self.components, self.dimension, generator=generator, dtype=torch.float64, device="cpu"
        )
        radius = self.separation * variances.amax().sqrt()
        means = directions / directions.norm(dim=1, keepdim=True) * radius
        return GaussianMixture(means, variances, weights, schedule)


@dataclass(frozen=True)
class ShapesModel(Model):
    """A mixture of Gaussians around ten drawn shapes, with an exact score; the samples are small pictures."""

    variant = "shapes"

    size: int = option(16, ge=4, help="height and width of an image, in pixels")
    variance: float = option(0.02, gt=0.0, help="variance of a pixel around its shape")

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (1, self.size, self.size)

    def denoiser(self, schedule: DDIMSchedule, rows: int = 1, device: torch.device | str = "cpu") -> Denoiser:
        means: Float[Tensor, "K 1 size size"] = draw_shapes(self.size)
        ones = torch.ones(len(SHAPES), dtype=torch.float64, device="cpu")
        return GaussianMixture(means, self.variance * ones, ones, schedule)


class _NetworkModel(Model):
    """A network loaded from a model folder."""

    uses = ("diffusers", "safetensors")

    classes: tuple[int, ...] | None
    guidance_scale: float
    dtype: Precision
    sha256: str | None

    @property
    @abstractmethod
    def folder(self) -> ModelFolder:
        """The model folder."""

    @property
    def unconditional_class(self) -> int | None:
        """The label that stands for no class; None if there is none."""
        return self.folder.unconditional_class

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.folder.event_shape

    @property
    def is_image(self) -> bool:
        """Whether samples are images; they are not if the pipeline of the model decodes them."""
        return super().is_image and not self.folder.latent

    def schedule_and_notes(self) -> tuple[DDIMSchedule | None, tuple[str, ...]]:
        folder = self.folder
        return folder.schedule(), folder.notes

    @property
    def own_scheduler(self) -> Mapping[str, Any] | None:
        return self.folder.scheduler

    @property
    def has_own_levels(self) -> bool:
        return True

    @property
    def notes(self) -> tuple[str, ...]:
        folder = self.folder
        return folder.notes if folder.scheduler is None else folder.notes_on_names

    def labels(self, rows: int) -> tuple[int, ...] | None:
        """The class of every row, by repeating ``classes``; None for an unconditional model."""
        count = self.folder.classes
        if count is None:
            return None
        classes = self.classes or tuple(label for label in range(count) if label != self.unconditional_class)
        return tuple(classes[row % len(classes)] for row in range(rows))

    def denoiser(self, schedule: DDIMSchedule, rows: int = 1, device: torch.device | str = "cpu") -> NetworkDenoiser:
        folder = self.folder
        # The digest is part of the record, so the weights must be those that it was computed from.
        if folder.sha256() != self.sha256:
            raise FolderError(f"{folder.path} has changed since it was looked at: other configuration or weights")
        network = folder.load(getattr(torch, self.dtype), torch.device(device))
        labels = self.labels(rows)
        if labels is None:
            return NetworkDenoiser(network)
        none = self.unconditional_class
        return NetworkDenoiser(
            network,
            conditioning={"class_labels": torch.tensor(labels, device=device)},
            unconditional=None if none is None else {"class_labels": torch.tensor([none], device=device)},
            guidance_scale=self.guidance_scale,
        )

    def check(self) -> None:
        name = type(self).__name__
        digest = self.folder.sha256()
        if self.sha256 not in (None, digest):
            raise OptionError(name, "sha256", f"says other weights than {self.folder.path} has now ({digest})")
        object.__setattr__(self, "sha256", digest)  # a frozen dataclass; the digest becomes part of the record
        count = self.folder.classes
        if self.classes is not None:
            if count is None:
                raise OptionError(name, "classes", f"must be null: {self.folder.path} is not conditioned on classes")
            if not self.classes:
                raise OptionError(name, "classes", "must name at least one class, got an empty list")
            wrong = [label for label in self.classes if not 0 <= label < count]
            if wrong:
                raise OptionError(name, "classes", f"must be from 0 to {count - 1}, got {wrong[0]}")
        if self.guidance_scale != 1.0 and count is None:
            raise OptionError(name, "guidance_scale", f"must be 1: {self.folder.path} is not conditioned on classes")
        if self.guidance_scale != 1.0 and self.unconditional_class is None:
            raise OptionError(
                name, "guidance_scale", "other than 1 requires no_class, the label that stands for no class"
            )


@dataclass(frozen=True)
class FashionMNISTModel(_NetworkModel):
    """The bundled model, a class-conditional diffusion transformer trained on Fashion-MNIST, 32 x 32 pixels.

    The classes are 0 T-shirt/top, 1 trouser, 2 pullover, 3 dress, 4 coat, 5 sandal, 6 shirt, 7 sneaker, 8 bag,
    9 ankle boot.
    """

    variant = "fashion-mnist"

    classes: tuple[int, ...] | None = option(None, help="classes of the samples, repeated in turn; default: all")
    guidance_scale: float = option(1.0, ge=0.0, help="classifier-free guidance; 1: none")
    dtype: Precision = option("float32", help="dtype of the network; the states have a dtype of their own")
    sha256: str | None = option(None, help=_SHA256)

    @property
    def folder(self) -> ModelFolder:
        return ModelFolder.open(DENOISER)


@dataclass(frozen=True)
class DiffusersModel(_NetworkModel):
    """A model from a folder that ``save_pretrained`` of diffusers wrote, for a model or for a pipeline."""

    variant = "diffusers"

    path: str = option(
        path=True,
        help="the folder, relative to the run file or to the working directory, or owner/name of a model in the cache "
        "of Hugging Face; ~ and variables of the environment are followed; nothing is downloaded",
    )
    classes: tuple[int, ...] | None = option(None, help="classes of the samples, repeated in turn; default: all")
    guidance_scale: float = option(1.0, ge=0.0, help="classifier-free guidance; 1: none")
    no_class: int | None = option(
        None, ge=0, help="the label that stands for no class; default: that of the architecture, if it has one"
    )
    dtype: Precision = option("float32", help="dtype of the network; the states have a dtype of their own")
    sha256: str | None = option(None, help=_SHA256)

    @property
    def folder(self) -> ModelFolder:
        return ModelFolder.open(self.path)

    @property
    def unconditional_class(self) -> int | None:
        return self.no_class if self.no_class is not None else self.folder.unconditional_class

    def check(self) -> None:
        try:
            self.folder.event_shape  # noqa: B018 -- raises where the configuration does not say
            self.folder.check_scheduler()
        except (FolderError, OSError) as error:
            raise OptionError(type(self).__name__, "path", f"cannot be used: {error}") from None
        super().check()
        count, own = self.folder.classes or 0, self.folder.unconditional_class
        most = count - 1 if own is None else own  # a DiT reserves the label after its last class
        if self.no_class is not None and self.no_class > most:
            wanted = f"must be at most {most}" if count else f"must be null: {self.path} is not conditioned on classes"
            raise OptionError(type(self).__name__, "no_class", f"{wanted}, got {self.no_class}")
