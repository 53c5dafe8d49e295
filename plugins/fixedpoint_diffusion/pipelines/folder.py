"""``load_pipeline``: a pipeline of diffusers from a folder; nothing is downloaded, and nothing is unpickled.

The folder is that of ``save_pretrained``: ``model_index.json`` names the class and its parts, and every part has a
folder of its own, or is in the same folder. What is missing is found out before any weights are read.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from fixedpoint.core.foreign import brief, foreign
from fixedpoint_diffusion.models.files import check_numbers, read_json, shards_of
from fixedpoint_diffusion.models.loading import load_network
from fixedpoint_diffusion.models.places import FolderError
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
    kind = pipeline_class(root, index)
    parts = _parts(root, index)
    for part, (library, name) in parts.items():
        _check_part(root, part, library, name)
    instead: dict[str, Any] = {} if scheduler is None else {_SCHEDULER: _scheduler(root, scheduler)}
    taken = torch.float32 if dtype is None else dtype
    try:
        for part, (library, name) in parts.items():
            network = _network_class(library, name)
            if network is not None:
                instead[part] = _network(network, _folder_of(root, part, name), _variant(root), taken)
        with foreign():
            pipe = kind.from_pretrained(
                root, dtype=taken, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, **instead
            )
    except FolderError as error:
        raise PipelineFolderError(str(error)) from error
    except Exception as error:  # diffusers and transformers raise errors of any type for what makes no pipeline
        raise PipelineFolderError(f"{root} cannot be loaded: {brief(error)}") from error
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
    if not _is_folder(root):
        raise PipelineFolderError(f"there is no folder {root}; a pipeline is a folder as save_pretrained writes it")
    if not (root / _INDEX).is_file():
        raise PipelineFolderError(f"{root} has no {_INDEX}, so it is no pipeline{_what_else(root)}")
    index = _read(root / _INDEX)
    if not isinstance(index.get("_class_name"), str):
        raise PipelineFolderError(f"{root / _INDEX} does not name the pipeline's class (_class_name) in diffusers")
    if not index["_class_name"].isidentifier():
        named = f"names the class {index['_class_name']!r:.80}"
        raise PipelineFolderError(f"{root / _INDEX} {named}, which is no name of a class")
    return index


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except FolderError as error:
        raise PipelineFolderError(str(error)) from None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False


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
        if part.startswith("_") or not isinstance(value, list) or not any(value):
            continue
        if not part.isidentifier():
            raise PipelineFolderError(f"{root / _INDEX} has a part {part!r:.80}, which is no name of one")
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
    _check_class(root, part, library, name)
    files = [file.name for file in folder.iterdir()]
    if not files:  # a tokenizer without words would be made of it
        raise PipelineFolderError(f"{folder} is empty")
    try:
        shards_of(folder)
        for file in ("config.json", "scheduler_config.json"):
            if (folder / file).is_file():
                check_numbers(folder / file, read_json(folder / file))
    except FolderError as error:
        raise PipelineFolderError(str(error)) from None
    if "adapter_config.json" in files:
        raise PipelineFolderError(f"{folder} has an adapter_config.json, by which other weights would be loaded")
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
        with contextlib.suppress(FolderError):
            if read_json(root / file).get("_class_name") == name:
                return root
    return folder


def _has_weights(library: str, name: str) -> bool:
    return _network_class(library, name) is not None


def _network_class(library: str, name: str) -> Any:
    """The class of a part that has weights; None for any other part, and for a class that there is not."""
    import diffusers

    found = _class(library, name)
    if not isinstance(found, type):
        return None
    if issubclass(found, diffusers.ModelMixin):
        return found
    if "transformers" not in sys.modules:
        return None
    import transformers

    return found if issubclass(found, transformers.PreTrainedModel) else None


def _class(library: str, name: str) -> Any:
    """What a library, or a module of pipelines of diffusers, has by a name; None if it has not."""
    import diffusers

    if library == "diffusers":
        return getattr(diffusers, name, None)
    if library != "transformers":
        return getattr(getattr(diffusers.pipelines, library), name, None)
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"loading this pipeline requires transformers: pip install transformers ({error})"
        ) from None
    return getattr(transformers, name, None)


def _check_class(root: Path, part: str, library: str, name: str) -> None:
    """Check that the class of a part is one that is made from a folder, and that looks for no code of its own."""
    found = _class(library, name)
    if not isinstance(found, type) or not hasattr(found, "from_pretrained"):
        raise PipelineFolderError(f"{root / _INDEX} names the class {name} for the {part}, which {library} has not")
    if library == "transformers" and name.startswith("Auto"):
        raise PipelineFolderError(
            f"{root / _INDEX} names {name} for the {part}, which looks for a class itself; name the class"
        )


def _network(kind: Any, folder: Path, variant: str | None, dtype: torch.dtype) -> torch.nn.Module:
    """A part with weights. Those of all shards are checked, and those of a precision are preferred, as by diffusers."""
    shards = [file for file in shards_of(folder) if file.suffix != ".json"]
    single = sorted(file for file in folder.glob("*.safetensors") if _WEIGHTS.match(file.name) and file.is_file())
    if not shards and not single:
        raise FolderError(f"{folder} has no weights in safetensors")
    own = variant if any(_of(file.name) == variant for file in (*shards, *single)) else None
    config = read_json(folder / "config.json")
    options = {"low_cpu_mem_usage": False} if hasattr(kind, "from_config") else {}
    return load_network(kind, folder, shards or single, config, dtype, variant=own, **options)


def _of(name: str) -> str | None:
    """The precision in the name of a file of weights."""
    match = _WEIGHTS.match(name)
    return None if match is None else match["variant"]


def _variant(root: Path) -> str | None:
    """The precision in the names of the weights, where all of them have the same one; None otherwise."""
    found = {match.groupdict()["variant"] for match in map(_WEIGHTS.match, _names(root)) if match}
    return found.pop() if len(found) == 1 else None


def _names(root: Path) -> Iterable[str]:
    return (file.name for file in root.glob("*/*.safetensors"))


def _scheduler(root: Path, wanted: SchedulerChoice | str) -> Any:
    choice = SchedulerChoice(wanted) if isinstance(wanted, str) else wanted
    name = _parts(root, read_index(root)).get(_SCHEDULER, ("", ""))[1]
    file = _folder_of(root, _SCHEDULER, name) / "scheduler_config.json"
    return choice.build(_read(file))


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
