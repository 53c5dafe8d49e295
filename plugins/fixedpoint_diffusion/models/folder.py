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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fixedpoint_diffusion.denoisers.networks import LATENT_PARTS, check_config, check_index, is_dit
from fixedpoint_diffusion.models.files import check_numbers, read_json, shards_of
from fixedpoint_diffusion.models.loading import load_network
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
        All files that determine what it computes: configurations and weights, with the shards that an index names.
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
        if not _is_folder(root):
            raise FolderError(f"there is no folder {root}; a model is a folder as diffusers' save_pretrained writes it")
        # The folder of a part is read as its pipeline, which has the scheduler and names the other parts.
        if root.resolve().name in _PARTS and (root.resolve().parent / _INDEX).is_file():
            root = root.parent if root.name in _PARTS else root.resolve().parent
        index = read_json(root / _INDEX) if (root / _INDEX).is_file() else {}
        _ask(root, check_index, index)
        network = next((root / part for part in _PARTS if (root / part / "config.json").is_file()), root)
        if not (network / "config.json").is_file():
            raise FolderError(f"{root} has neither a config.json nor a folder unet or transformer with one")
        config = read_json(network / "config.json")
        if not isinstance(config.get("_class_name"), str):
            raise FolderError(f"{network / 'config.json'} does not name the model's class (_class_name)")
        check_numbers(network / "config.json", config)
        _ask(network, check_config, config)
        sharded = shards_of(network)
        # A pipe would wait for ever, and a device has no end.
        weights = sorted({*(file for file in network.glob(f"{_WEIGHTS}*.safetensors") if file.is_file()), *sharded})
        if not weights:
            pickled = " (pickled weights are not read; save them again as safetensors)" * any(network.glob("*.bin"))
            raise FolderError(f"{network} has no {_WEIGHTS}.safetensors{pickled}")
        places = (root / "scheduler" / "scheduler_config.json", root / "scheduler_config.json")
        found = [place for place in places if place.is_file()][:1]
        scheduler = read_json(found[0]) if found else None
        if found:
            check_numbers(found[0], scheduler or {})
        named = _class_of(index.get("scheduler"))
        if scheduler is None and named not in (None, *SUPPORTED_SCHEDULERS):
            raise FolderError(f"{root} is sampled with a {named}, and has no scheduler_config.json of it")
        latent = next((part for part in LATENT_PARTS if _class_of(index.get(part))), "")
        return cls(network, config, scheduler, (network / "config.json", *weights, *found), latent, named or "")

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
        sizes = size if isinstance(size, (tuple, list)) and len(size) == 2 else (None, None)
        if not all(isinstance(each, int) and not isinstance(each, bool) and each > 0 for each in (channels, *sizes)):
            raise FolderError(
                f"{self.path / 'config.json'} must say in_channels and sample_size (one number or two), "
                f"got {channels!r} and {size!r}"
            )
        height, width = sizes
        return int(channels or 0), int(height or 0), int(width or 0)

    @property
    def classes(self) -> int | None:
        """The number of classes that it is conditioned on; None for an unconditional model.

        Raises
        ------
        FolderError
            If the configuration has another value than a number.
        """
        key = "num_embeds_ada_norm" if is_dit(self.config) else "num_class_embeds"
        count = self.config.get(key, 1000 if is_dit(self.config) else None)  # diffusers' default
        if count is None:
            return None
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise FolderError(f"{self.path / 'config.json'} must have a number of classes as {key}, got {count!r:.80}")
        return count

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
            _loaded[key] = self._load(dtype, device)
        return _loaded[key]

    def _load(self, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        try:
            import diffusers
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"loading a model requires diffusers: pip install 'fixedpoint-solvers[diffusion]' ({error})"
            ) from None
        name = str(self.config["_class_name"])
        kind = getattr(diffusers, name, None)
        if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
            raise FolderError(f"{self.path / 'config.json'} names the class {name}, which diffusers has not")
        shards = [file for file in shards_of(self.path) if file.suffix != ".json"]
        files = shards or [self.path / f"{_WEIGHTS}.safetensors"]
        if not files[0].is_file():
            there = next(file.name for file in self.files if file.suffix == ".safetensors")
            raise FolderError(f"{self.path} has {there} and no {_WEIGHTS}.safetensors, which is what is loaded")
        # The low-memory mode requires accelerate, and warns without it.
        network = load_network(kind, self.path, files, self.config, dtype, low_cpu_mem_usage=False)
        return network.to(device).eval().requires_grad_(False)


# Networks in memory, by folder, digest, dtype and device; the one loaded first is dropped first.
_loaded: dict[tuple[Path, str, torch.dtype, torch.device], torch.nn.Module] = {}
_KEPT = 2


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


def _class_of(part: Any) -> str | None:
    """The class of a pipeline's part, of which ``model_index.json`` gives library and class; None without one."""
    named = part[-1] if isinstance(part, (list, tuple)) and part else None
    return named if isinstance(named, str) else None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False
