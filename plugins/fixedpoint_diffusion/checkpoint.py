"""State of an optimisation in a file: nested dicts and lists of tensors and numbers, bit for bit, all of it or nothing.

Tensors are stored as safetensors, everything else as JSON in the file's metadata: nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["load_state", "save_state"]


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state; what was at ``path`` stays until it is whole."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    plan = json.dumps(_plan(state, tensors))
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, {"state": plan})
    os.replace(partial, path)


def load_state(path: Path) -> dict[str, Any]:
    """Read a state.

    Raises
    ------
    ValueError
        For a file that holds none.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} is no checkpoint, or a damaged one: {error}") from None
    if "state" not in metadata:
        raise ValueError(f"{path} is no checkpoint of an inversion")
    state: dict[str, Any] = _made(json.loads(metadata["state"]), tensors)
    return state


def _plan(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value with tensors by their number, and dicts as pairs: JSON has keys of text alone."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
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
