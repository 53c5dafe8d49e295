"""Checks the arguments of ``fixedpoint sample`` before a pipeline is loaded, and makes a job of them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fixedpoint.config.choice import resolved_options
from fixedpoint.config.document import Document
from fixedpoint.config.errors import ConfigError
from fixedpoint.config.overrides import apply_overrides
from fixedpoint.config.resolve import Resolver
from fixedpoint.core.options import OptionError
from fixedpoint.execution.plain import digest, json_text
from fixedpoint.registry import CommandError
from fixedpoint_diffusion.command.arguments import check_device
from fixedpoint_diffusion.pipelines.model import PipelineModel
from fixedpoint_diffusion.pipelines.sampler import PipelineSampler
from fixedpoint_diffusion.samplers.request import RequestError
from fixedpoint_diffusion.schedules.by_name import SchedulerChoice, SchedulerError

__all__ = ["Arguments", "Entry", "SampleJob", "job_of"]

_FLAGS = {
    "prompt": "--prompt",
    "negative_prompt": "--negative-prompt",
    "class_labels": "--class",
    "guidance_scale": "--guidance-scale",
    "num_inference_steps": "--steps",
    "height": "--height",
    "width": "--width",
    "call": "--call",
    "dtype": "--dtype",
    "scheduler": "--scheduler",
    "eta": "--eta",
}


@dataclass(frozen=True)
class Arguments:
    """The arguments and options of the command, as typed."""

    folder: str
    prompts: tuple[str, ...]
    negative_prompt: str | None
    classes: tuple[str, ...]
    guidance_scale: float | None
    steps: int | None
    scheduler: str | None
    eta: float
    seed: int
    count: int
    height: int | None
    width: int | None
    call: tuple[str, ...]
    dtype: str
    device: str
    rtol: float
    solver: str
    beside_serial: bool
    batch: int


@dataclass(frozen=True)
class Entry:
    """An image to be sampled.

    Attributes
    ----------
    number
        Its number, from 1.
    condition
        The number of its prompt or class, from 0.
    what
        The prompt or the class; empty for an unconditional pipeline.
    seed
        The seed of the generator that draws its noise.
    key
        A digest of everything that it depends on.
    """

    number: int
    condition: int
    what: str
    seed: int
    key: str


@dataclass(frozen=True)
class SampleJob:
    """Images to be sampled.

    Attributes
    ----------
    sampler
        The pipeline with its scheduler and steps.
    entries
        The images, those of one prompt together.
    solver
        The solver, as ``fixedpoint.solve`` takes it.
    rtol
        The relative tolerance.
    beside_serial
        Whether the pipeline's own loop is run as well.
    batch
        The number of images that are sampled at once.
    settings
        Whatever the images depend on, as plain values; for the report.
    """

    sampler: PipelineSampler
    entries: tuple[Entry, ...]
    solver: str | dict[str, Any]
    rtol: float
    beside_serial: bool
    batch: int
    settings: dict[str, Any]

    @property
    def conditions(self) -> int:
        """The number of prompts or classes; 1 for an unconditional pipeline."""
        return 1 + max(entry.condition for entry in self.entries)


def job_of(arguments: Arguments) -> SampleJob:
    """The job that the arguments describe.

    Raises
    ------
    CommandError
        For the first argument that is not valid; the message names the option.
    """
    if not 0 < arguments.rtol < 1:
        raise CommandError(f"--rtol: must be between 0 and 1, got {arguments.rtol:g}")
    if not 0 <= arguments.eta <= 1:
        raise CommandError(f"--eta: must be from 0 to 1, got {arguments.eta:g}")
    if arguments.steps is not None and arguments.steps < 1:
        raise CommandError(f"--steps: must be at least 1, got {arguments.steps}")
    check_device(arguments.device)
    _silence()
    solver = _solver(arguments.solver)
    sampler = _sampler(arguments)
    settings = _settings(arguments, sampler, solver)
    whats = _whats(sampler.model)
    entries: list[Entry] = []
    for condition, what in enumerate(whats):
        for place in range(arguments.count):
            seed = arguments.seed + place
            key = digest(json_text([settings, what, seed, arguments.beside_serial]).encode())
            entries.append(Entry(len(entries) + 1, condition, what, seed, key))
    return SampleJob(
        sampler, tuple(entries), solver, arguments.rtol, arguments.beside_serial, arguments.batch, settings
    )


def _silence() -> None:
    """Turn off the progress bars of loading, and what transformers says of parts that it does without."""
    with contextlib.suppress(ImportError):
        from diffusers.utils import logging

        logging.disable_progress_bar()
    with contextlib.suppress(ImportError):
        from transformers.utils import logging as other

        other.disable_progress_bar()
        other.set_verbosity_error()


def _sampler(arguments: Arguments) -> PipelineSampler:
    labels = [text for text in arguments.classes if not text.isdecimal()]
    if labels:
        raise CommandError(f'--class: must be a number, got "{labels[0]}"; classes by name are prompts')
    options: dict[str, Any] = {
        "prompt": arguments.prompts or None,
        "negative_prompt": arguments.negative_prompt,
        "class_labels": tuple(map(int, arguments.classes)) or None,
        "guidance_scale": arguments.guidance_scale,
        "height": arguments.height,
        "width": arguments.width,
        "call": _mapping("--call", arguments.call) or None,
        "dtype": arguments.dtype,
    }
    try:
        model = PipelineModel(path=arguments.folder, **{k: v for k, v in options.items() if v is not None})
        scheduler = None if arguments.scheduler is None else SchedulerChoice(_spec("--scheduler", arguments.scheduler))
        sampler = PipelineSampler(model, scheduler, arguments.steps, eta=arguments.eta, device=arguments.device)
        sampler.check()
    except OptionError as error:
        flag = _FLAGS.get(error.option, arguments.folder)
        raise CommandError(f"{'.'.join((flag, *error.within))}: {error.reason}") from None
    except RequestError as error:
        raise CommandError(f"{_FLAGS[error.option]}: {error}") from None
    except SchedulerError as error:
        raise CommandError(f"{'.'.join(('--scheduler', *error.within))}: {error}") from None
    except ModuleNotFoundError as error:
        raise CommandError(str(error)) from None
    return sampler


def _whats(model: PipelineModel) -> tuple[str, ...]:
    """What is to be seen on the images: prompts or classes, one empty text where there are none."""
    found = model.conditions("prompt") or model.conditions("class_labels") or ("",)
    return tuple(str(each) for each in found)


def _settings(arguments: Arguments, sampler: PipelineSampler, solver: str | dict[str, Any]) -> dict[str, Any]:
    """What all images depend on, beside their prompt and seed."""
    from importlib.metadata import version

    import torch

    import fixedpoint

    model = resolved_options(sampler.model, {})
    own = sampler.model.folder.scheduler or {}
    return {
        "pipeline": sampler.model.folder.name,
        "model": {key: value for key, value in model.items() if key not in ("prompt", "class_labels")},
        "scheduler": dict(sampler.scheduler) if sampler.scheduler else own.get("_class_name"),
        "num_inference_steps": arguments.steps,
        "eta": arguments.eta,
        "solver": solver,
        "rtol": arguments.rtol,
        "device": arguments.device,
        "versions": {
            "fixedpoint": fixedpoint.__version__,
            "torch": str(torch.__version__),
            "diffusers": version("diffusers"),
        },
    }


def _solver(text: str) -> str | dict[str, Any]:
    """The solver with all its options; a mistake is a sentence."""
    spec = _spec("--solver", text)
    document = Document(spec, file="")
    resolver = Resolver(document)
    choice = resolver.component("solver", spec, ())
    if choice is None:
        mistake = resolver.mistakes[0]
        where = ".".join(part for part in ("--solver", mistake.where) if part)
        raise CommandError(f"{where}: {mistake.sentence}")
    return choice.config["name"] if len(choice.config) == 1 else choice.config


def _spec(flag: str, text: str) -> dict[str, Any]:
    """A name with settings as it is typed: ``NAME``, ``NAME,key=value,...``, or a YAML mapping in braces."""
    if text.lstrip().startswith("{"):
        found = _mapping(flag, (f"it={text}",))["it"]
        if not isinstance(found, dict):
            raise CommandError(f'{flag}: must be a name, or a mapping {{name: ..., key: value}}, got "{text}"')
        return found
    name, *settings = text.split(",")
    return {"name": name.strip(), **_mapping(flag, tuple(setting.strip() for setting in settings))}


def _mapping(flag: str, pairs: tuple[str, ...]) -> dict[str, Any]:
    """``key=value`` pairs, whose values are YAML."""
    document = Document({}, file="")
    for pair in pairs:
        if "=" not in pair:
            raise CommandError(f'{flag}: must be KEY=VALUE, got "{pair}"')
    try:
        apply_overrides(document, pairs)
    except ConfigError as error:
        raise CommandError(f"{flag}: {error.mistakes[0].sentence}") from None
    found: Mapping[str, Any] = document.data
    return dict(found)
