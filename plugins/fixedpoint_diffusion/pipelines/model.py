"""Pipelines that run files and the command line can name, as options: a folder, and the arguments of the call."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fixedpoint.core.options import OptionError, Options, nearest, option
from fixedpoint_diffusion.fashion_mnist import CLASSES, DENOISER
from fixedpoint_diffusion.models.choices import Precision
from fixedpoint_diffusion.models.files import read_json
from fixedpoint_diffusion.models.folder import FolderError
from fixedpoint_diffusion.models.places import located
from fixedpoint_diffusion.pipelines.chains import Form
from fixedpoint_diffusion.pipelines.folder import PipelineFolderError, load_pipeline, pipeline_class, read_index
from fixedpoint_diffusion.schedules.by_name import SchedulerChoice

__all__ = ["BUNDLED", "PipelineFolder", "PipelineModel"]

BUNDLED = "fashion-mnist"
"""The name of the bundled pipeline, in place of a folder."""

# What a pipeline is told otherwise: by the task, or by options of their own.
_OWN = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "class_labels": "class_labels",
    "guidance_scale": "guidance_scale",
    "height": "height",
    "width": "width",
}
_TOLD = ("num_inference_steps", "timesteps", "sigmas", "eta", "generator", "latents", "output_type", "return_dict")
_COUNTS = ("batch_size", "num_images_per_prompt")
# The files of a pipeline's parts that determine what it computes.
_FILES = (".json", ".txt", ".model", ".safetensors", ".jinja")


class _Arguments(Mapping[str, Any]):
    """Arguments of a call that can be hashed."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = dict(given)
        self._text = json.dumps(self._given, sort_keys=True, default=repr)

    def __getitem__(self, key: str) -> Any:
        return self._given[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def __hash__(self) -> int:
        return hash(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self) == dict(other)

    def __repr__(self) -> str:
        return repr(self._given)


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline on disk, described without loading it.

    Attributes
    ----------
    path
        The folder; that of the denoiser for the bundled pipeline.
    kind
        The class of the pipeline.
    bundled
        Whether it is the bundled pipeline.
    files
        All files that determine what it computes.
    """

    path: Path
    kind: Any
    bundled: bool
    files: tuple[Path, ...]

    @classmethod
    def open(cls, text: str) -> PipelineFolder:
        """Read the index of a folder; ``fashion-mnist`` is the bundled pipeline.

        Raises
        ------
        FolderError
            If there is no pipeline, or if its class is not one of diffusers.
        """
        if text == BUNDLED:
            from fixedpoint_diffusion.fashion_mnist.pipeline import FashionMNISTPipeline

            return cls(DENOISER, FashionMNISTPipeline, True, _of_folder(DENOISER))
        root = located(text)
        try:
            index = read_index(root)
            kind = pipeline_class(root, index)
        except PipelineFolderError as error:
            raise FolderError(str(error)) from None
        named = [name for name, value in index.items() if isinstance(value, list) and any(value)]
        parts = [root / name for name in named if name.isidentifier()]
        files = [file for part in parts if part.is_dir() for file in _of_folder(part)]
        beside = [file for file in sorted(root.iterdir()) if file.suffix in _FILES and file.is_file()]
        return cls(root, kind, False, (*beside, *files))

    @property
    def name(self) -> str:
        """The name of the pipeline's class."""
        return str(self.kind.__name__)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of the pipeline's ``__call__`` by name."""
        found = dict(inspect.signature(inspect.unwrap(self.kind.__call__)).parameters)
        found.pop("self", None)
        return found

    @property
    def scheduler(self) -> Mapping[str, Any] | None:
        """The configuration of its scheduler; None if it has none."""
        places = (self.path / "scheduler" / "scheduler_config.json", self.path / "scheduler_config.json")
        found = next((place for place in places if place.is_file()), None)
        return None if found is None else read_json(found)

    def sha256(self) -> str:
        """The hexadecimal SHA-256 digest of the names and contents of all its files."""
        stats = ((file, file.stat()) for file in self.files)
        return _digest(self.path, tuple((file, stat.st_mtime_ns, stat.st_size) for file, stat in stats))

    def load(self, dtype: str, scheduler: SchedulerChoice | None) -> Any:
        """Load the pipeline, in evaluation mode, on the CPU.

        Raises
        ------
        FolderError
            If diffusers cannot make a pipeline of it.
        """
        if self.bundled:
            own = self.kind.bundled()
            if scheduler is not None:
                own.register_modules(scheduler=scheduler.build(self.scheduler))
            return own if dtype == "float32" else own.to(getattr(torch, dtype))
        try:
            return load_pipeline(self.path, getattr(torch, dtype), scheduler)
        except PipelineFolderError as error:
            raise FolderError(str(error)) from None


@dataclass(frozen=True)
class PipelineModel(Options):
    """A pipeline of ``diffusers``, called with its own arguments; its own decoder makes the pictures.

    The pipeline may be of any class that ``fixedpoint_diffusion.parallel`` takes and that is called without images.
    ``prompt``, ``negative_prompt`` and ``class_labels`` are repeated in turn over the samples.
    """

    variant = "pipeline"
    uses = ("diffusers", "safetensors", "transformers")

    path: str = option(
        BUNDLED,
        path=True,
        help="the folder that save_pretrained wrote, relative to the run file or to the working directory, or "
        "owner/name of a model in the cache of Hugging Face; nothing is downloaded; fashion-mnist: the bundled one",
    )
    prompt: str | tuple[str, ...] | None = option(None, help="what is to be seen, in words; of fashion-mnist: classes")
    negative_prompt: str | tuple[str, ...] | None = option(None, help="what is not to be seen, in words")
    class_labels: tuple[int, ...] | None = option(None, help="classes, for pipelines that are conditioned on them")
    guidance_scale: float | None = option(None, ge=0.0, help="classifier-free guidance; default: the pipeline's own")
    height: int | None = option(None, ge=1, help="height of the pictures in pixels; default: the pipeline's own")
    width: int | None = option(None, ge=1, help="width of the pictures in pixels; default: the pipeline's own")
    call: Mapping[str, Any] | None = option(None, help="further arguments of the pipeline's call, by name")
    dtype: Precision = option("float32", help="dtype of the networks")
    form: Form | None = option(
        None, help="what is taken for known of the pipeline's loop, as for parallel; default: as much as holds"
    )
    sha256: str | None = option(None, help="digest of the folder's files, filled in automatically")

    @property
    def folder(self) -> PipelineFolder:
        """The folder."""
        return PipelineFolder.open(self.path)

    def load(self, scheduler: SchedulerChoice | None, device: str) -> Any:
        """The pipeline on a device, without a progress bar of its own; another one at every call.

        Raises
        ------
        FolderError
            If the folder has changed since the options were checked, or if it cannot be loaded.
        """
        folder = self.folder
        if folder.sha256() != self.sha256:
            raise FolderError(f"{self.path} has changed since it was looked at: other configuration or weights")
        pipe = folder.load(self.dtype, scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(device)

    def arguments(self, rows: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
        """The arguments of the call that samples some rows.

        Parameters
        ----------
        rows
            The numbers of the rows, which select prompts and classes in turn.
        seeds
            For each row, the seed of the CPU generator that draws its noise.
        """
        taken = self.folder.parameters
        given: dict[str, Any] = {}
        for name in ("prompt", "negative_prompt", "class_labels"):
            values = self.conditions(name)
            if values is not None:
                given[name] = [values[row % len(values)] for row in rows]
        given |= {name: value for name in ("guidance_scale", "height", "width") if (value := getattr(self, name))}
        if self.guidance_scale is not None:
            given["guidance_scale"] = self.guidance_scale
        if "batch_size" in taken:
            given["batch_size"] = len(rows)
        given["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        return {**given, **(self.call or {})}

    def conditions(self, name: str) -> tuple[Any, ...] | None:
        """The values of ``prompt``, ``negative_prompt`` or ``class_labels`` that are taken in turn; None for none."""
        value = getattr(self, name)
        several = (value,) if isinstance(value, str) else value
        if name == "prompt" and self.folder.bundled:
            return tuple(int(each) if each.isdecimal() else each for each in several or CLASSES)
        return several

    def check(self) -> None:
        name = type(self).__name__
        try:
            folder = self.folder
            digest = folder.sha256()
        except (FolderError, OSError) as error:
            raise OptionError(name, "path", f"cannot be used: {error}") from None
        if self.sha256 not in (None, digest):
            raise OptionError(name, "sha256", f"says other files than {self.path} has now ({digest})")
        # The dataclass is frozen; the digest becomes part of the record, and as arguments a mapping can be hashed.
        object.__setattr__(self, "sha256", digest)
        if self.call is not None:
            object.__setattr__(self, "call", _Arguments(self.call))
        self._check_arguments(folder.parameters)

    def _check_arguments(self, taken: Mapping[str, inspect.Parameter]) -> None:
        """Refuse arguments that the pipeline does not take, and the lack of one that it requires."""
        name, pipeline = type(self).__name__, self.folder.name
        for key in _OWN:
            if getattr(self, key) is not None and key not in taken:
                raise OptionError(name, key, f"must be null: {pipeline} takes no {key}")
        for key in ("prompt", "negative_prompt", "class_labels"):
            if getattr(self, key) == ():
                raise OptionError(name, key, "must have at least one entry, got an empty list")
            if key in taken and taken[key].default is inspect.Parameter.empty and self.conditions(key) is None:
                raise OptionError(name, key, f"is required: {pipeline} is conditioned on it")
        if "prompt" in taken and self.conditions("prompt") is None:
            raise OptionError(name, "prompt", f"is required: {pipeline} is conditioned on text")
        if "image" in taken:  # its default is None, which img2img pipelines refuse only when they run
            raise OptionError(name, "path", f"cannot be used: {pipeline} starts from images; call it from Python")
        if not {"prompt", "class_labels", "batch_size"} & taken.keys():
            raise OptionError(name, "path", f"cannot be used: {pipeline} takes no prompt, class_labels or batch_size")
        if self.folder.bundled:
            for each in self.conditions("prompt") or ():
                if each not in (*CLASSES, *range(len(CLASSES))):
                    reason = f"must be a class of {BUNDLED}, got {each!r}; {nearest(str(each), CLASSES)}"
                    raise OptionError(name, "prompt", reason)
        self._check_call(taken)

    def _check_call(self, taken: Mapping[str, inspect.Parameter]) -> None:
        name, pipeline = type(self).__name__, self.folder.name
        for key in self.call or ():
            if key in _OWN:
                raise OptionError(name, "call", "is an option of the model itself", (key,))
            if key in (*_TOLD, *_COUNTS):
                raise OptionError(name, "call", "is set by the options of the task", (key,))
            if key not in taken:
                raise OptionError(name, "call", f"is no argument of {pipeline}; {nearest(key, taken)}", (key,))
        given = {*(self.call or ()), *_OWN, *_TOLD, *_COUNTS}
        for key, parameter in taken.items():
            variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if parameter.default is parameter.empty and key not in given and not variadic:
                raise OptionError(name, "path", f"cannot be used: {pipeline} also requires {key}; call it from Python")


def _of_folder(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(file for file in folder.rglob("*") if file.suffix in _FILES and file.is_file()))


@functools.lru_cache(maxsize=8)
def _digest(root: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    """The digest of files; times of modification and sizes are part of the cache key only."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        digest.update(str(path.relative_to(root)).encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
