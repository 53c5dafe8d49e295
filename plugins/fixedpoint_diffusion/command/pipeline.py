"""A pipeline in a folder that images are inverted with: its prompts, its scheduler, and the size of its images."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from fixedpoint.registry import CommandError
from fixedpoint_diffusion.command.model import Found, typed_scheduler
from fixedpoint_diffusion.denoisers.networks import check_index
from fixedpoint_diffusion.inversion.invert import InversionProgress
from fixedpoint_diffusion.models.folder import digest_of
from fixedpoint_diffusion.pipelines.folder import PipelineFolderError, load_pipeline, read_index
from fixedpoint_diffusion.pipelines.inversion import NoInverseError
from fixedpoint_diffusion.pipelines.parallel import ParallelPipeline, parallel
from fixedpoint_diffusion.schedules.by_name import SchedulerChoice, SchedulerError, own_scheduler
from fixedpoint_diffusion.schedules.training import other_than_trained

__all__ = ["ChosenPipeline", "choose_pipeline", "is_of_texts"]

# Schedulers without a memory that add no noise; others of a pipeline's own are replaced.
_INVERTIBLE = ("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")


@dataclass(frozen=True)
class ChosenPipeline:
    """A pipeline, the prompts of the images, and the options of its call.

    Attributes
    ----------
    name
        The folder as typed.
    sampler
        The pipeline, as ``parallel`` returns it.
    prompts
        All prompts, those of the images first; a label is a place among these.
    options
        Arguments of the pipeline's call that do not depend on the image: its size, the number of steps.
    event_shape
        Shape of its images, ``(C, H, W)``.
    clipping
        As for ``ParallelPipeline.invert``.
    notes
        Sentences on what is done that was not requested explicitly.
    """

    name: str
    sampler: ParallelPipeline
    prompts: tuple[str, ...]
    negative_prompt: str | None
    options: dict[str, Any]
    event_shape: tuple[int, int, int]
    clipping: Literal["refuse", "ignore"] = "refuse"
    notes: tuple[str, ...] = ()
    timesteps: tuple[int, ...] | None = None
    latent: str = ""
    bundled: bool = False
    guided_by: str = field(default="guidance_scale")

    @property
    def steps(self) -> int:
        """Number of steps of the chain."""
        return int(self.options["num_inference_steps"])

    @property
    def conditioned(self) -> str:
        """What the images are conditioned on, as the table heads it."""
        return "prompt"

    @property
    def told(self) -> dict[str, Any]:
        """The class and the configuration of the scheduler, as plain values."""
        scheduler = self.sampler.pipe.scheduler
        config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
        return {"name": type(scheduler).__name__, **config}

    @property
    def sha256(self) -> str:
        """Digest of the files of the folder: configurations, vocabularies and weights."""
        return digest_of(sorted(file for file in Path(self.name).rglob("*") if file.is_file()))

    def called(self, label: int | None) -> str:
        """The prompt of a label."""
        return "" if label is None else self.prompts[label]

    def guided(self, guidance: float, flag: str) -> None:
        """Check a guidance scale.

        Raises
        ------
        CommandError
            If it is not finite, or if the pipeline takes none.
        """
        if not math.isfinite(guidance):
            raise CommandError(f"{flag}: must be finite, got {guidance:g}")
        if guidance != 1.0 and self.guided_by not in _parameters(self.sampler.pipe):
            raise CommandError(f"{flag}: {type(self.sampler.pipe).__name__} takes no guidance_scale")

    def guessed(self, images: Tensor) -> list[int]:
        """Prompts are never guessed."""
        raise AssertionError(images.shape)

    def invert(
        self,
        images: Float[Tensor, "B C H W"],
        labels: Sequence[int] | None,
        guidance: float,
        tolerance: float,
        told: Callable[[InversionProgress], None] | None,
    ) -> Found:
        """Invert a batch of images with pixels in [-1, 1].

        Raises
        ------
        CommandError
            If the pipeline, as it is called, has no inverse.
        """
        self.sampler.pipe.to(images.device)
        try:
            found = self.sampler.invert(
                ((images + 1) / 2).clamp(0, 1),
                **self._call(labels, guidance),
                clipping=self.clipping,
                tolerance=tolerance,
                on_round=told,
            )
        except NoInverseError as error:
            said = error.reason.partition(";")[0]
            raise CommandError(f"--scheduler: {said}; {error.instead} can be inverted") from None
        except (TypeError, ValueError) as error:
            raise CommandError(f"--model {self.name}: {' '.join(str(error).split())}") from None
        return Found(found.latents.float(), _pixels(found.output), found.inversion)

    def sample(
        self, latents: Float[Tensor, "B *latent"], labels: Sequence[int] | None, guidance: float, device: str
    ) -> Float[Tensor, "B C H W"]:
        """The images of some latents, by the pipeline's own loop."""
        pipe = self.sampler.pipe.to(device)
        given = latents.to(device, pipe.dtype)
        return _pixels(self.sampler(**self._call(labels, guidance), latents=given))

    def _call(self, labels: Sequence[int] | None, guidance: float) -> dict[str, Any]:
        assert labels is not None
        call = {**self.options, "prompt": [self.prompts[label] for label in labels], "output_type": "pt"}
        if self.guided_by in _parameters(self.sampler.pipe):
            call[self.guided_by] = guidance
        if self.negative_prompt is not None:
            call["negative_prompt"] = [self.negative_prompt] * len(labels)
        return call


def is_of_texts(name: str) -> bool:
    """Whether a folder holds a pipeline whose samples depend on more than one network, such as text encoders."""
    try:
        check_index(read_index(Path(name)))
    except PipelineFolderError:
        return False
    except ValueError:
        return True
    return False


def choose_pipeline(
    name: str,
    prompts: Sequence[str],
    negative_prompt: str | None,
    steps: int | None,
    size: tuple[int | None, int | None],
    ignore_clipping: bool,
    scheduler: str | None,
) -> ChosenPipeline:
    """Load the pipeline in a folder; ``size`` is ``(height, width)``, None for the pipeline's own.

    Raises
    ------
    CommandError
        If the folder holds no pipeline, or one that takes no prompt, or if an option is not the pipeline's.
    """
    try:
        kind = read_index(Path(name))["_class_name"]
    except PipelineFolderError as error:
        raise CommandError(f"--model {name}: {error}") from None
    if not prompts:
        raise CommandError(f"--model {name}: is a {kind}, conditioned on texts; --prompt says on which")
    choice, notes = _scheduler(name, scheduler)
    try:
        with _no_bars():
            pipe = load_pipeline(name, scheduler=choice)
    except (PipelineFolderError, SchedulerError) as error:
        raise CommandError(f"--model {name}: {error}") from None
    pipe.set_progress_bar_config(disable=True)
    taken = _parameters(pipe)
    for argument, flag, given in (
        ("prompt", "--prompt", prompts),
        ("negative_prompt", "--negative-prompt", negative_prompt),
        ("height", "--height", size[0]),
        ("width", "--width", size[1]),
    ):
        if given is not None and argument not in taken:
            raise CommandError(f"{flag}: {kind} takes no {argument}")
    shape = _event_shape(name, pipe, size)
    options = {"num_inference_steps": 50 if steps is None else steps}
    if "height" in taken:
        options |= {"height": shape[1], "width": shape[2]}
    if options["num_inference_steps"] < 1:
        raise CommandError(f"--steps: must be at least 1, got {steps}")
    # Flux and its like guide by the negative prompt with a scale of another name.
    true = negative_prompt is not None and "true_cfg_scale" in taken
    return ChosenPipeline(
        name,
        parallel(pipe, solver="serial"),
        tuple(prompts),
        negative_prompt,
        options,
        shape,
        "ignore" if ignore_clipping else "refuse",
        notes,
        guided_by="true_cfg_scale" if true else "guidance_scale",
    )


def _parameters(pipe: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(type(pipe).__call__).parameters)


def _event_shape(name: str, pipe: Any, size: tuple[int | None, int | None]) -> tuple[int, int, int]:
    """The shape of the pipeline's images, of the size given or that of its training."""
    network: Any = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if network is None:
        raise CommandError(f"--model {name}: has neither a unet nor a transformer")
    autoencoder = getattr(pipe, "vae", None) or getattr(pipe, "vqvae", None)
    channels = (autoencoder or network).config.get("in_channels")
    trained = getattr(pipe, "default_sample_size", None) or network.config.get("sample_size")
    scale = getattr(pipe, "vae_scale_factor", 1) if autoencoder is not None else 1
    sides = [trained, trained] if isinstance(trained, int) else list(trained or [])
    height, width = (given or side * scale for given, side in zip(size, sides or [0, 0], strict=True))
    if not (height and width and isinstance(channels, int)):
        raise CommandError(f"--model {name}: does not say the size of its images; --height and --width do")
    return channels, height, width


def _scheduler(name: str, wanted: str | None) -> tuple[SchedulerChoice | None, tuple[str, ...]]:
    """The scheduler that is inverted in place of the pipeline's own, if any, and a note on it."""
    file = Path(name) / "scheduler" / "scheduler_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        own = own_scheduler(config)
    except (OSError, ValueError) as error:
        raise CommandError(f"--model {name}: the scheduler {error}") from None
    kind = type(own).__name__
    if wanted is None:
        if kind in _INVERTIBLE:
            return None, ()
        instead = "FlowMatchEulerDiscreteScheduler" if "Flow" in kind else "DDIMScheduler"
        note = f"{name}: its {kind} has no inverse; the {instead} with its noise levels is inverted (--scheduler)"
        return SchedulerChoice(instead), (note,)
    try:
        choice = SchedulerChoice(typed_scheduler(wanted))
        why = other_than_trained(choice.build(config), own)
    except SchedulerError as error:
        raise CommandError(f"{'.'.join(('--scheduler', *error.within))}: {error}") from None
    if why:
        raise CommandError(f"--scheduler: {why}")
    return choice, ()


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Without what diffusers and transformers print while they load, which has no place in the command's output."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    shown = [each for each in (ours, theirs) if each.is_progress_bar_enabled()]
    levels = [(each, each.get_verbosity()) for each in (ours, theirs)]
    for each in shown:
        each.disable_progress_bar()
    for each, _ in levels:
        each.set_verbosity_error()
    try:
        yield
    finally:
        for each in shown:
            each.enable_progress_bar()
        for each, level in levels:
            each.set_verbosity(level)


def _pixels(output: Any) -> Float[Tensor, "B C H W"]:
    """The images that a pipeline returned as tensors in [0, 1], in [-1, 1]."""
    images: Tensor = output[0]
    return 2 * images.float() - 1
