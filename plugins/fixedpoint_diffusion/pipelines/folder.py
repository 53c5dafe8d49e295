"""``load_pipeline``: a pipeline of diffusers from a folder; nothing is downloaded, and nothing is unpickled.

The folder is that of ``save_pretrained``: ``model_index.json`` names the class and its parts, and every part has a
folder of its own, or is in the same folder. What is missing is found out before any weights are read.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from fixedpoint_diffusion.schedules.by_name import SchedulerChoice

__all__ = ["PipelineFolderError", "load_pipeline", "pipeline_class", "read_index"]

_INDEX = "model_index.json"
# Files that torch unpickles.
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
# Files of weights, with a precision or without: model.safetensors, model.fp16-00001-of-00002.safetensors.
_WEIGHTS = re.compile(r"^(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors$")
_SCHEDULER = "scheduler"


class PipelineFolderError(ValueError):
    """Raised for a folder that holds no pipeline; the message says what was found and what is required."""


def load_pipeline(
    path: str | Path, dtype: torch.dtype | None = None, scheduler: SchedulerChoice | str | None = None
) -> Any:
    """Load a pipeline in evaluation mode, on the CPU, from a folder that diffusers' ``save_pretrained`` has written.

    Parameters
    ----------
    path
        The folder, with ``model_index.json``.
    dtype
        To which the weights are converted; default: float32.
    scheduler
        A scheduler in place of the folder's own: a name or a :class:`SchedulerChoice`. Settings that it does not give
        follow the folder's own scheduler, as with ``from_config``.

    Raises
    ------
    PipelineFolderError
        If the folder does not exist, if it holds no pipeline or lacks a part of it, if weights are there only in files
        that would be unpickled, or if diffusers cannot make a pipeline of it.
    SchedulerError
        If the scheduler cannot be had.
    ModuleNotFoundError
        If diffusers is not installed.
    """
    root = Path(path)
    index = read_index(root)
    for part, (library, name) in _parts(root, index).items():
        _check_part(root, part, library, name)
    instead = None if scheduler is None else _scheduler(root, scheduler)
    try:
        # The low-memory mode requires accelerate, and warns without it.
        pipe = pipeline_class(root, index).from_pretrained(
            root,
            dtype=torch.float32 if dtype is None else dtype,
            variant=_variant(root),
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            **({} if instead is None else {_SCHEDULER: instead}),
        )
    except Exception as error:  # diffusers and transformers raise errors of any type for what makes no pipeline
        said = " ".join(str(error).split())
        raise PipelineFolderError(f"{root} cannot be loaded: {type(error).__name__}: {said}") from error
    for part in vars(pipe).values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe


def read_index(root: Path) -> dict[str, Any]:
    """Read ``model_index.json`` of a pipeline's folder.

    Raises
    ------
    PipelineFolderError
        If there is no such folder or file, or if it does not name the pipeline's class.
    """
    if not root.is_dir():
        raise PipelineFolderError(f"there is no folder {root}; a pipeline is a folder as save_pretrained writes it")
    if not (root / _INDEX).is_file():
        raise PipelineFolderError(f"{root} has no {_INDEX}, so it is no pipeline{_what_else(root)}")
    try:
        index = json.loads((root / _INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineFolderError(f"{root / _INDEX} cannot be read: {error}") from None
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise PipelineFolderError(f"{root / _INDEX} does not name the pipeline's class (_class_name) in diffusers")
    return index


def _what_else(root: Path) -> str:
    if (root / "config.json").is_file():
        return "; it has a config.json, as the folder of a single network has"
    if (root.parent / _INDEX).is_file():
        return f"; {root.parent} is one"
    single = sorted(file.name for file in root.glob("*.safetensors"))
    return f"; {single[0]} alone is a checkpoint, whose parts diffusers does not read from a folder" if single else ""


def _parts(root: Path, index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The parts of a pipeline that it has: library and class by name."""
    found: dict[str, tuple[str, str]] = {}
    for part, value in index.items():
        if not isinstance(value, list) or not any(value):
            continue
        if len(value) != 2 or not all(isinstance(each, str) for each in value):
            raise PipelineFolderError(f"{root / _INDEX}: {part} must be a library and a class, got {value!r}")
        found[part] = (value[0], value[1])
    return found


def _check_part(root: Path, part: str, library: str, name: str) -> None:
    """Check that a part is there, and that nothing in it has to be run or unpickled."""
    import diffusers

    if library not in ("diffusers", "transformers") and not hasattr(diffusers.pipelines, library):
        raise PipelineFolderError(
            f"{root} has a {part} of the class {name} in {library}; parts are read that are of diffusers or of "
            "transformers, and no other code is run"
        )
    folder = _folder_of(root, part, name)
    if not folder.is_dir():
        raise PipelineFolderError(f"{root} names a {part} ({name}), and has no folder {part}")
    files = [file.name for file in folder.iterdir()]
    pickled = sorted(file for file in files if file.endswith(_PICKLED) and not file.startswith("training_args"))
    if any(file.endswith(".safetensors") for file in files):
        return
    if pickled:
        raise PipelineFolderError(
            f"{folder} has its weights in {pickled[0]} only, which would be unpickled and could run any code; save "
            "them again as safetensors (save_pretrained does)"
        )
    if _has_weights(library, name):
        raise PipelineFolderError(f"{folder} has no weights in safetensors")


def _folder_of(root: Path, part: str, name: str) -> Path:
    """The folder of a part: the first models on the hub have network and scheduler in the pipeline's own folder."""
    folder = root / part
    for file in ("config.json", "scheduler_config.json"):
        if folder.is_dir() or not (root / file).is_file():
            continue
        with contextlib.suppress(OSError, ValueError):
            if json.loads((root / file).read_text(encoding="utf-8")).get("_class_name") == name:
                return root
    return folder


def _has_weights(library: str, name: str) -> bool:
    import diffusers

    if library != "diffusers":
        return library == "transformers" and name.endswith(("Model", "ModelWithProjection", "ForConditionalGeneration"))
    found = getattr(diffusers, name, None)
    return isinstance(found, type) and issubclass(found, diffusers.ModelMixin)


def _variant(root: Path) -> str | None:
    """The precision in the names of the weights, where all of them have the same one; None otherwise."""
    found = {match.groupdict()["variant"] for match in map(_WEIGHTS.match, _names(root)) if match}
    return found.pop() if len(found) == 1 else None


def _names(root: Path) -> Iterable[str]:
    return (file.name for file in root.glob("*/*.safetensors"))


def _scheduler(root: Path, wanted: SchedulerChoice | str) -> Any:
    choice = SchedulerChoice(wanted) if isinstance(wanted, str) else wanted
    name = read_index(root).get(_SCHEDULER, [None, None])[-1]
    file = _folder_of(root, _SCHEDULER, str(name)) / "scheduler_config.json"
    try:
        own = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineFolderError(f"{file} cannot be read: {error}") from None
    return choice.build(own)


def pipeline_class(root: Path, index: Mapping[str, Any]) -> Any:
    """The class of a pipeline: one of diffusers, or the bundled model's."""
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"loading a pipeline requires diffusers: pip install 'fixedpoint-solvers[diffusion]' ({error})"
        ) from None
    name = index["_class_name"]
    if name == "FashionMNISTPipeline":
        from fixedpoint_diffusion.fashion_mnist.pipeline import FashionMNISTPipeline

        return FashionMNISTPipeline
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise PipelineFolderError(f"{root / _INDEX} names the class {name}, which is no pipeline of diffusers")
    return found
