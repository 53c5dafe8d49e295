"""Model folders as ``diffusers`` saves them: the configuration, the weights in safetensors, and the scheduler.

Two layouts are supported. The folder of a model has ``config.json``, ``diffusion_pytorch_model.safetensors`` and
optionally ``scheduler_config.json``. The folder of a pipeline has ``model_index.json`` and subfolders for its parts
(``unet`` or ``transformer``, ``scheduler``); given the subfolder of a network, the pipeline is read. Nothing is
downloaded and nothing is unpickled. ``fixedpoint_diffusion.denoisers.networks`` and
``fixedpoint_diffusion.schedules.schedulers`` decide which models are supported, before the weights are read.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fixedpoint_diffusion.denoisers.networks import LATENT_PARTS, check_config, check_index, is_dit
from fixedpoint_diffusion.models.places import FolderError, located
from fixedpoint_diffusion.schedules.by_name import SchedulerError, own_scheduler
from fixedpoint_diffusion.schedules.schedulers import SUPPORTED_SCHEDULERS, DDIMSchedule, schedule_of_config

__all__ = ["FolderError", "ModelFolder", "digest_of"]

_PARTS = ("unet", "transformer")
_INDEX = "model_index.json"
_WEIGHTS = "diffusion_pytorch_model"


@dataclass(frozen=True)
class ModelFolder:
    """A denoising network on disk, described without loading it.

    Attributes
    ----------
    path
        The folder of the network itself.
    config
        Its configuration, the content of ``config.json``.
    scheduler
        The configuration of the scheduler it was trained with; None if the folder has none.
    files
        All files that determine what it computes: configurations and weights.
    latent
        Name of the part of its pipeline that decodes samples, such as ``"vae"``; the samples themselves are then not
        images. Empty without such a part.
    pipeline_scheduler
        Class name of the scheduler in ``model_index.json``; empty if it names none.
    """

    path: Path
    config: Mapping[str, Any]
    scheduler: Mapping[str, Any] | None
    files: tuple[Path, ...]
    latent: str = ""
    pipeline_scheduler: str = ""

    @classmethod
    def open(cls, path: str | Path) -> ModelFolder:
        """Read the configurations in a folder, or in that of a model in the cache of Hugging Face.

        Raises
        ------
        FolderError
            If the folder does not exist, if it holds no model of ``diffusers`` with weights in safetensors, or if the
            model is conditioned on anything other than classes.
        """
        root = located(path)
        if not root.is_dir():
            raise FolderError(f"there is no folder {root}; a model is a folder as diffusers' save_pretrained writes it")
        # The folder of a part is read as its pipeline, which has the scheduler and names the other parts.
        if root.resolve().name in _PARTS and (root.resolve().parent / _INDEX).is_file():
            root = root.parent if root.name in _PARTS else root.resolve().parent
        index = _read_json(root / _INDEX) if (root / _INDEX).is_file() else {}
        _ask(root, check_index, index)
        network = next((root / part for part in _PARTS if (root / part / "config.json").is_file()), root)
        if not (network / "config.json").is_file():
            raise FolderError(f"{root} has neither a config.json nor a folder unet or transformer with one")
        config = _read_json(network / "config.json")
        if not isinstance(config.get("_class_name"), str):
            raise FolderError(f"{network / 'config.json'} does not name the model's class (_class_name)")
        _ask(network, check_config, config)
        weights = sorted(network.glob(f"{_WEIGHTS}*.safetensors"))
        if not weights:
            pickled = " (pickled weights are not read; save them again as safetensors)" * any(network.glob("*.bin"))
            raise FolderError(f"{network} has no {_WEIGHTS}.safetensors{pickled}")
        places = (root / "scheduler" / "scheduler_config.json", root / "scheduler_config.json")
        found = [place for place in places if place.is_file()][:1]
        scheduler = _read_json(found[0]) if found else None
        named = (index.get("scheduler") or [None, None])[-1]
        if scheduler is None and named not in (None, *SUPPORTED_SCHEDULERS):
            raise FolderError(f"{root} is sampled with a {named}, and has no scheduler_config.json of it")
        latent = next((part for part in LATENT_PARTS if any(index.get(part) or ())), "")
        return cls(network, config, scheduler, (network / "config.json", *weights, *found), latent, str(named or ""))

    @property
    def event_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)`` of one image.

        Raises
        ------
        FolderError
            If the configuration does not contain it.
        """
        channels, size = self.config.get("in_channels"), self.config.get("sample_size")
        if isinstance(size, int):
            size = (size, size)
        if not isinstance(channels, int) or not isinstance(size, (tuple, list)) or len(size) != 2:
            raise FolderError(
                f"{self.path / 'config.json'} must say in_channels and sample_size (one number or two), "
                f"got {channels!r} and {size!r}"
            )
        return channels, int(size[0]), int(size[1])

    @property
    def classes(self) -> int | None:
        """The number of classes that it is conditioned on; None for an unconditional model."""
        if is_dit(self.config):
            return int(self.config.get("num_embeds_ada_norm", 1000))  # diffusers' default
        count = self.config.get("num_class_embeds")
        return int(count) if isinstance(count, int) else None

    @property
    def unconditional_class(self) -> int | None:
        """The label that stands for no class; None if the architecture has none."""
        return self.classes if is_dit(self.config) else None

    def schedule(self) -> DDIMSchedule | None:
        """The noise schedule that it was trained with, for DDIM steps; None if the folder has no scheduler.

        Missing values take the default of diffusers, as in ``DDIMScheduler.from_config``.

        Raises
        ------
        FolderError
            For any scheduler other than those of DDIM and DDPM. The message says what to do.
        """
        return None if self.scheduler is None else self._taken(self.scheduler)[0]

    def check_scheduler(self) -> None:
        """Refuse a scheduler that cannot be made; diffusers is imported only for those other than of DDIM and DDPM.

        Raises
        ------
        FolderError
            If the scheduler's file does not describe one that diffusers has.
        """
        if self.scheduler is None:
            return
        if self.scheduler.get("_class_name") in (None, *SUPPORTED_SCHEDULERS):
            self._taken(self.scheduler)
            return
        try:
            own_scheduler(self.scheduler)
        except (SchedulerError, ModuleNotFoundError) as error:
            raise FolderError(f"the scheduler of {self.path} {error}") from None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what is done with the model, sampled by DDIM, that its folder does not specify.

        Raises
        ------
        FolderError
            As for :meth:`schedule`.
        """
        if self.scheduler is None:
            note = "there is no scheduler; its noise levels are taken for diffusers' default (linear, clip_sample=True)"
        else:
            note = self._taken(self.scheduler)[1]
        return (*((f"{self.path}: {note}",) if note else ()), *self.notes_on_names)

    @property
    def notes_on_names(self) -> tuple[str, ...]:
        """A note if pipeline and scheduler name different schedulers, in which case the scheduler's file is used."""
        own = (self.scheduler or {}).get("_class_name")
        if not self.pipeline_scheduler or own in (None, self.pipeline_scheduler):
            return ()
        followed = f"its scheduler_config.json a {own}, which is what is followed"
        return (f"{self.path}: {_INDEX} names a {self.pipeline_scheduler}, {followed}",)

    def _taken(self, config: Mapping[str, Any]) -> tuple[DDIMSchedule, str]:
        """The schedule and its note; errors get the folder as their subject."""
        try:
            return schedule_of_config(config)
        except ValueError as error:
            said = str(error)
            verb = "" if said.startswith(("(", "is ", "does ")) else "cannot be used: "
            raise FolderError(f"the scheduler of {self.path} {verb}{said}") from None

    def sha256(self) -> str:
        """The hexadecimal SHA-256 digest of all its files."""
        return digest_of(self.files)

    def load(self, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        """The network, in evaluation mode, without gradients of its parameters.

        A process keeps the two networks loaded last; a network is loaded again if its files have changed.

        Raises
        ------
        FolderError
            If diffusers has no class of the name in ``config.json``, or cannot load the network.
        ModuleNotFoundError
            If diffusers is not installed.
        """
        key = (self.path.resolve(), self.sha256(), dtype, device)
        if key not in _loaded:
            # Dropped before loading, so that at most _KEPT networks are in memory.
            while len(_loaded) >= _KEPT:
                _loaded.pop(next(iter(_loaded)))
            _loaded[key] = _load(self.path, str(self.config["_class_name"]), dtype, device)
        return _loaded[key]


# Networks in memory, by folder, digest, dtype and device; the one loaded first is dropped first.
_loaded: dict[tuple[Path, str, torch.dtype, torch.device], torch.nn.Module] = {}
_KEPT = 2


def _load(path: Path, class_name: str, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"loading a model requires diffusers: pip install 'fixedpoint-solvers[diffusion]' ({error})"
        ) from None
    found = getattr(diffusers, class_name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.ModelMixin)):
        raise FolderError(f"{path / 'config.json'} names the class {class_name}, which diffusers has not")
    kind: Any = found  # a type checker knows it as a type only
    try:
        # Nothing is unpickled or downloaded. The low-memory mode requires accelerate, and warns without it.
        network: torch.nn.Module = kind.from_pretrained(
            path, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, torch_dtype=dtype
        )
    except Exception as error:  # diffusers raises errors of any type for a configuration that makes no network
        raise FolderError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    return network.to(device).eval().requires_grad_(False)


def digest_of(files: Iterable[Path]) -> str:
    """The hexadecimal SHA-256 digest of some files, in their order; computed again only if one has changed."""
    return _digest(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@functools.lru_cache(maxsize=8)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """The digest of files; times of modification and sizes are part of the cache key only."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _ask(path: Path, check: Callable[[Mapping[str, Any]], None], config: Mapping[str, Any]) -> None:
    """Run a check of a configuration; an error gets the folder as its subject."""
    try:
        check(config)
    except ValueError as error:
        raise FolderError(f"{path} {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FolderError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise FolderError(f"{path} must be a JSON object")
    return content
