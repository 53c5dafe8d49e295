"""Files of model folders, which may come from anywhere: JSON of a sensible size, and weights in safetensors alone.

An index of shards names the files that are loaded. Libraries load whatever it names, so it is checked here: its shards
are safetensors, lie in the folder beside it, and are there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fixedpoint.core.foreign import brief
from fixedpoint_diffusion.models.places import FolderError

__all__ = ["Stored", "check_numbers", "check_shards", "read_json", "shards_of", "stored_in"]

# Bytes. Vocabularies are the largest of these files.
_LARGEST_JSON = 256 * 2**20
_INDEX = ".safetensors.index"
# No dimension and no count of layers is larger; some settings are no such numbers.
_LARGEST = 2**24
_NO_SIZES = ("theta", "seed", "_id", "max_length", "max_position")
# Pixels or patches of a side: positions are made for each, in the memory of the machine.
_SIDES = ("sample_size", "image_size", "pos_embed_max_size", "input_size")
_LARGEST_SIDE = 8192
_LARGEST_POSITIONS = 16 * 2**30
# Settings by which a configuration could name code, or other files than those that are checked.
_FOREIGN = ("auto_map", "transformers_weights", "custom_pipelines")


@dataclass(frozen=True)
class Stored:
    """What the files of a network's weights hold: the names of the tensors, and how many numbers are in them."""

    names: frozenset[str]
    numbers: int

    @property
    def tensors(self) -> int:
        """The number of tensors."""
        return len(self.names)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    FolderError
        If it is no such file, if it is larger than any configuration, or if it does not hold an object.
    """
    try:
        if not path.is_file():
            raise FolderError(f"{path} is no file" if path.exists() else f"there is no file {path}")
        size = path.stat().st_size
        if size > _LARGEST_JSON:
            raise FolderError(f"{path} has {size / 2**20:.0f} MiB, which no configuration has")
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise FolderError(f"{path} cannot be read: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise error if isinstance(error, FolderError) else FolderError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise FolderError(f"{path} must be a JSON object, got {type(content).__name__}")
    return content


# Bounds of schedulers, infinite where there is none.
_WITHOUT_BOUND = frozenset({"lambda_min_clipped", "sigma_max"})


def check_numbers(path: Path, config: Mapping[str, Any]) -> None:
    """Check that a configuration asks for no sizes beyond those of any network, and names no code.

    Raises
    ------
    FolderError
        If it does; the message names the setting.
    """
    kind = config.get("_class_name")
    if isinstance(kind, str) and not kind.isidentifier():
        raise FolderError(f"{path} names the class {kind!r:.80}, which is no name of a class")
    for name in _FOREIGN:
        if config.get(name):
            raise FolderError(f"{path} has the setting {name}, by which other code or files would be loaded")
    for name, value in _settings(config):
        if name.endswith("attn_implementation") and isinstance(value, str) and ("/" in value or ":" in value):
            raise FolderError(f"{path} has the setting {name}={value!r:.80}, by which other code would be loaded")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        largest = _LARGEST_SIDE if name in _SIDES else _LARGEST
        plain = isinstance(value, int) and not any(part in name for part in _NO_SIZES)
        finite = _is_finite(value) or (name in _WITHOUT_BOUND and not math.isnan(value))
        if (plain and abs(value) > largest) or not finite:
            raise FolderError(f"{path} has {name}={value!s:.30}, which is no size of a network")
    side, heads, width = (config.get(key) for key in ("sample_size", "num_attention_heads", "attention_head_dim"))
    if all(isinstance(each, int) for each in (side, heads, width)) and isinstance(config.get("patch_size"), int):
        positions = (side // max(config["patch_size"], 1)) ** 2 * heads * width * 8
        if positions > _LARGEST_POSITIONS:
            raise FolderError(f"{path} asks for {positions / 2**30:.0f} GiB of positions (sample_size={side})")


def _settings(config: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """All values of a configuration, with the names they stand under."""
    waiting = [(name, config)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(str(key), each) for key, each in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [(name, each) for each in value]
        else:
            yield name, value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def shards_of(folder: Path) -> list[Path]:
    """Return the indexes of shards in a folder, each followed by the shards that it names.

    Raises
    ------
    FolderError
        If an index names anything but safetensors in the same folder.
    """
    found: list[Path] = []
    for index in sorted(file for file in folder.iterdir() if _INDEX in file.name and file.suffix == ".json"):
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named or not all(isinstance(each, str) for each in named.values()):
            raise FolderError(f"{index} must have a weight_map, from the names of tensors to files")
        found += [index, *(_shard(folder, index, name) for name in sorted(set(named.values())))]
    return found


def check_shards(folder: Path, stored: Stored) -> None:
    """Check that shards hold the tensors that their index names, and no others; a library takes the index's word.

    Raises
    ------
    FolderError
        If they do not.
    """
    for index in (file for file in shards_of(folder) if file.suffix == ".json"):
        named = read_json(index)["weight_map"].keys()
        lacking, further = sorted(named - stored.names), sorted(stored.names - named)
        if lacking or further:
            said = (
                f"lack {lacking[0]!r:.200}, which it names"
                if lacking
                else f"have {further[0]!r:.200}, which it does not"
            )
            raise FolderError(f"the shards of {index} {said}")


def _shard(folder: Path, index: Path, name: str) -> Path:
    if not name.endswith(".safetensors"):
        raise FolderError(f"{index} names {name!r:.200}, which is no safetensors file; other files are not read")
    if not name.isprintable() or name != Path(name).name or "\\" in name or name.startswith("."):
        raise FolderError(f"{index} names {name!r:.200}, which is no file in its own folder")
    try:
        shard = folder / name
        if not shard.is_file():
            raise FolderError(f"{index} names {name!r:.200}, which is not there")
        inside = shard.resolve().is_relative_to(folder.resolve()) or shard.resolve().parent == _blobs(folder)
    except OSError as error:
        raise FolderError(f"{index} names {name!r:.200}, which cannot be read: {error.strerror}") from None
    if not inside:
        raise FolderError(f"{index} names {name!r:.200}, which is a link out of its folder")
    return shard


def _blobs(folder: Path) -> Path | None:
    """Where the cache of Hugging Face has the files of a model, to which its folders hold links."""
    snapshots = next((parent for parent in folder.resolve().parents if parent.name == "snapshots"), None)
    return None if snapshots is None else snapshots.parent / "blobs"


def stored_in(files: Iterable[Path]) -> Stored:
    """Read the headers of files in safetensors.

    Raises
    ------
    FolderError
        If one of them is damaged.
    """
    from safetensors import safe_open

    names: set[str] = set()
    numbers = 0
    for path in files:
        try:
            opened: Any = safe_open(path, "pt")
            with opened as file:
                own = list(file.keys())
                shapes = [file.get_slice(name).get_shape() for name in own]
        except Exception as error:  # the reader raises errors of several types of its own
            raise FolderError(f"{path} cannot be read as safetensors: {brief(error)}") from None
        names.update(own)
        numbers += sum(math.prod(shape) for shape in shapes)
    return Stored(frozenset(names), numbers)
