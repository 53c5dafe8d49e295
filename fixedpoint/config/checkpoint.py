"""Saves nested dicts and lists of tensors and plain values in a file, and loads them bit for bit.

Tensors are stored as safetensors, everything else as JSON in the metadata of the file, so loading unpickles nothing.
Files are written atomically. Every checkpoint also stores its setting, the values that describe what it belongs to, and
loading it with another setting raises an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fixedpoint.config.writing import write_atomically

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, setting: Mapping[str, str], state: Mapping[str, Any]) -> None:
    """Write a checkpoint. A file that is already at ``path`` is replaced only when the new one is complete.

    Parameters
    ----------
    path
        The file.
    setting
        Names and values that describe what the checkpoint belongs to.
    state
        Nested dicts and lists of tensors and of values that JSON can represent. Keys are strings or integers.

    Raises
    ------
    TypeError
        For a key or a value that could not be restored.
    OSError
        If the file cannot be written.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    plan = _plan(state, tensors)
    metadata = {"setting": json.dumps(dict(setting)), "state": json.dumps(plan)}
    write_atomically(path, save(tensors, metadata))


def load_checkpoint(path: Path, setting: Mapping[str, str], of: str) -> dict[str, Any]:
    """Return the state stored in a checkpoint. Its tensors are on the CPU, and its tuples have become lists.

    Parameters
    ----------
    path
        The file.
    setting
        The setting that the checkpoint must have.
    of
        What the setting describes, for messages, e.g. ``"training"``.

    Raises
    ------
    ValueError
        If the file is no checkpoint, is damaged, or has another setting. The message names the first difference.
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
    """A value as JSON: tensors are collected and replaced by their number, dicts become lists of pairs.

    Pairs keep integer keys, which JSON objects would turn into strings.
    """
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # safetensors refuses tensors that share memory, so each one is copied.
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
    """The value that :func:`_plan` wrote."""
    if isinstance(plan, list):
        return [_made(item, tensors) for item in plan]
    if not isinstance(plan, dict):
        return plan
    if "tensor" in plan:
        return tensors[plan["tensor"]]
    return {key: _made(item, tensors) for key, item in plan["pairs"]}
