"""Checks the arguments of the command before anything is computed, and makes a job of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch

from fixedpoint.core.options import nearest
from fixedpoint.registry import CommandError
from fixedpoint_diffusion.command.console import complain
from fixedpoint_diffusion.command.files import find
from fixedpoint_diffusion.command.image_format import ImageFormat
from fixedpoint_diffusion.command.model import BUNDLED, ChosenModel, choose
from fixedpoint_diffusion.command.pipeline import ChosenPipeline, choose_pipeline, is_of_texts
from fixedpoint_diffusion.command.work import Job

__all__ = ["Arguments", "check_device", "job_of"]


@dataclass(frozen=True)
class Arguments:
    """The arguments and options of the command, as typed."""

    images: tuple[Path, ...]
    model: str
    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    negative_prompt: str | None
    edit_prompt: str | None
    height: int | None
    width: int | None
    no_class: int | None
    steps: int | None
    timesteps: str | None
    guidance: float
    edit_class: str | None
    edit_guidance: float | None
    interpolate: int
    resize: bool
    pad: bool
    background: str
    clip: str
    scheduler: str | None
    tolerance: float
    batch: int
    device: str


def job_of(arguments: Arguments, quiet: bool = False) -> Job:
    """The job that the arguments describe; notes go to stderr unless ``quiet``.

    Raises
    ------
    CommandError
        For the first argument that is not valid; the message names the option.
    """
    background = _one_of("--background", arguments.background, ("black", "white"))
    ignore = _one_of("--clip", arguments.clip, ("refuse", "ignore")) == "ignore"
    if not (math.isfinite(arguments.tolerance) and arguments.tolerance > 0):
        raise CommandError(f"--tolerance: must be positive, got {arguments.tolerance:g}")
    check_device(arguments.device)
    chosen = _pipeline(arguments, ignore) if _is_pipeline(arguments) else _model(arguments, ignore)
    chosen.guided(arguments.guidance, "--guidance")
    if arguments.edit_guidance is not None:
        chosen.guided(arguments.edit_guidance, "--edit-guidance")
    if isinstance(chosen, ChosenPipeline):
        edit_label = None if arguments.edit_prompt is None else len(arguments.prompts)
    else:
        edit_label = None if arguments.edit_class is None else chosen.label(arguments.edit_class, "--edit-class")
    entries, passed = find(arguments.images)
    if not quiet:
        for sentence in (*chosen.notes, *passed):
            complain(sentence)
    return Job(
        chosen=chosen,
        entries=tuple(entries),
        labels=_prompted(arguments.prompts, len(entries))
        if isinstance(chosen, ChosenPipeline)
        else _labels(chosen, arguments.classes, len(entries)),
        image_format=ImageFormat(
            chosen.event_shape,
            arguments.resize,
            arguments.pad,
            cast(Literal["black", "white"], background),
            pictures=not chosen.latent,
        ),
        guidance=arguments.guidance,
        edit_label=edit_label,
        edit_guidance=arguments.edit_guidance,
        interpolate=arguments.interpolate,
        tolerance=arguments.tolerance,
        batch=arguments.batch,
        device=arguments.device,
    )


def _is_pipeline(arguments: Arguments) -> bool:
    """Whether the model is a pipeline of texts; options of these are refused for other models."""
    if arguments.model != BUNDLED and (arguments.prompts or is_of_texts(arguments.model)):
        return True
    for flag, given in (
        ("--prompt", arguments.prompts or None),
        ("--negative-prompt", arguments.negative_prompt),
        ("--edit-prompt", arguments.edit_prompt),
        ("--height", arguments.height),
        ("--width", arguments.width),
    ):
        if given is not None:
            raise CommandError(
                f"{flag}: {arguments.model} is not conditioned on texts; this is for pipelines (--model)"
            )
    return False


def _pipeline(arguments: Arguments, ignore: bool) -> ChosenPipeline:
    for flag, given in (
        ("--class", arguments.classes or None),
        ("--edit-class", arguments.edit_class),
        ("--no-class", arguments.no_class),
        ("--timesteps", arguments.timesteps),
    ):
        if given is not None:
            raise CommandError(f"{flag}: {arguments.model} is a pipeline, which is told what to make by --prompt")
    edit = () if arguments.edit_prompt is None else (arguments.edit_prompt,)
    return choose_pipeline(
        arguments.model,
        (*arguments.prompts, *edit) if arguments.prompts else (),
        arguments.negative_prompt,
        arguments.steps,
        (arguments.height, arguments.width),
        ignore,
        arguments.scheduler,
    )


def _model(arguments: Arguments, ignore: bool) -> ChosenModel:
    timesteps = _timesteps(arguments.timesteps)
    return choose(arguments.model, arguments.no_class, arguments.steps, ignore, timesteps, arguments.scheduler)


def _prompted(prompts: tuple[str, ...], count: int) -> tuple[int, ...]:
    """The number of the prompt of each of ``count`` images."""
    if len(prompts) not in (1, count):
        images = f"{count} {'image' if count == 1 else 'images'}"
        raise CommandError(f"--prompt: {len(prompts)} prompts for {images}; one for all, or one for each")
    return tuple(range(count)) if len(prompts) == count else (0,) * count


def _labels(chosen: ChosenModel, classes: tuple[str, ...], count: int) -> tuple[int, ...] | None:
    """The class of each of ``count`` images; None if the classes are guessed or the model has none."""
    if not classes:
        if chosen.classes is not None and not chosen.bundled:
            raise CommandError(
                f"{chosen.name} is conditioned on classes: --class says which, 0 to {chosen.classes - 1}"
            )
        return None
    labels = tuple(chosen.label(text, "--class") for text in classes)
    if len(labels) not in (1, count):
        images = f"{count} {'image' if count == 1 else 'images'}"
        raise CommandError(f"--class: {len(labels)} classes for {images}; one for all, or one for each")
    return labels * (count if len(labels) == 1 else 1)


def _timesteps(text: str | None) -> tuple[int, ...] | Literal["quadratic"] | None:
    if text is None or text == "quadratic":
        return cast(Literal["quadratic"] | None, text)
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise CommandError(f'--timesteps: must be integers by commas, or quadratic, got "{text}"') from None


def _one_of(flag: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise CommandError(f'{flag}: must be {" or ".join(known)}, got "{value}"; {nearest(value, known)}')
    return value


def check_device(name: str) -> None:
    """Raise a ``CommandError`` if torch cannot compute on the device."""
    try:
        # ``item`` waits for the device, so that errors of asynchronous devices are raised here.
        torch.zeros(1, device=torch.device(name)).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CommandError(f"--device {name}: cannot be used: {str(error).splitlines()[0]}") from None
