"""Nested arguments and results of networks: tensors in mappings, lists, tuples and the output objects of diffusers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["NARROW", "Path", "first_of", "leaf_at", "leaves", "mapped", "widened"]

Path: TypeAlias = "tuple[str | int, ...]"
NARROW = (torch.float16, torch.bfloat16)


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield what is not a container, with the keys and places that lead to it, in a fixed order."""
    if isinstance(value, Tensor):  # most are; the other questions take longer
        yield path, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from leaves(each, (*path, key))
    elif isinstance(value, (list, tuple)):
        for place, each in enumerate(value):
            yield from leaves(each, (*path, place))
    else:
        yield path, value


def mapped(value: Any, change: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """Return the same containers with ``change(path, leaf)`` in place of every leaf."""
    if isinstance(value, Tensor):
        return change(path, value)
    if isinstance(value, Mapping):
        parts = {key: mapped(each, change, (*path, key)) for key, each in value.items()}
        made: Any = type(value)
        return (
            made(**parts) if hasattr(value, "__dataclass_fields__") else parts
        )  # output objects of diffusers are both
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(each, change, (*path, place)) for place, each in enumerate(value)))
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(each, change, (*path, place)) for place, each in enumerate(value))
    return change(path, value)


def first_of(value: Any) -> Tensor:
    """Return the first tensor; in the output of a network, that is its prediction."""
    return next(leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor))


def leaf_at(value: Any, path: Path) -> Any:
    """Return what keys and places lead to."""
    for key in path:
        value = value[key]
    return value


def widened(output: Any) -> Any:
    """Return an output whose numbers of low precision are in float32."""

    def change(_path: Path, leaf: Any) -> Any:
        return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in NARROW else leaf

    return mapped(output, change)
