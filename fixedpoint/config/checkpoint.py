"""Checkpoints: nested dicts and lists of tensors and numbers in a file, bit for bit, all of it or nothing.

Tensors are stored as safetensors, everything else as JSON in the file's metadata: nothing is unpickled. Every
checkpoint says what it belongs to, its setting, and is refused where that is another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fixedpoint.config.files import write_atomically

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, setting: Mapping[str, str], state: Mapping[str, Any]) -> None:
    """Write a checkpoint; what was at ``path`` stays until it is whole.

    Parameters
    ----------
    path
        The file.
    setting
        What it belongs to, by name.
    state
        Dicts, with keys of text or whole numbers, and lists, of tensors and of what JSON knows.

    Raises
    ------
    TypeError
        For keys and values that would not come back as they are; what was at ``path`` stays.
    OSError
        Naming the file, where it cannot be written.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    plan = _plan(state, tensors)
    metadata = {"setting": json.dumps(dict(setting)), "state": json.dumps(plan)}
    write_atomically(path, save(tensors, metadata))


def load_checkpoint(path: Path, setting: Mapping[str, str], of: str) -> dict[str, Any]:
    """The state in a checkpoint.

    Parameters
    ----------
    path
        The file.
    setting
        What it has to belong to.
    of
        What that is, for sentences: "training", say.

    Raises
    ------
    ValueError
        For a file that is no checkpoint, a damaged one, or that of another setting, naming the first difference.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} is no checkpoint, or a damaged one: {error}") from None
    missing = [name for name in ("setting", "state") if name not in metadata]
    if missing:
        lacks = " and no ".join(missing)
        raise ValueError(f"{path} is no checkpoint, or one of an earlier version: it has no {lacks}")
    theirs, ours = json.loads(metadata["setting"]), dict(setting)
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            raise ValueError(
                f"{path} belongs to another {of}: {name} is {theirs.get(name)} there, and {ours.get(name)} here"
            )
    state: dict[str, Any] = _made(json.loads(metadata["state"]), tensors)
    return state


def _plan(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value with tensors by their number, and dicts as pairs: JSON has keys of text alone."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"a checkpoint has keys of text or whole numbers, got {key!r}")
        return {"pairs": [[key, _plan(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_plan(item, tensors) for item in value]
    return value


def _made(plan: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(plan, list):
        return [_made(item, tensors) for item in plan]
    if not isinstance(plan, dict):
        return plan
    if "tensor" in plan:
        return tensors[plan["tensor"]]
    return {key: _made(item, tensors) for key, item in plan["pairs"]}
