"""What a network is conditioned on, row by row: tensors, and mappings and tuples of them, however deep.

What is per row and what is the same for all is said, never guessed by size: every tensor of ``conditioning`` has one
entry per row of the batch, everything in ``shared`` is handed on whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["checked", "expanded", "merged", "named", "paired", "rows_of", "selected", "whole"]


def checked(name: str, values: Mapping[str, Any], one_for_all: bool = False) -> dict[str, Any]:
    """Values per row, checked to be such; or ``one_for_all`` where that may be.

    Raises
    ------
    TypeError
        For what is no mapping by names of arguments, or no tensor with an entry per row, at whatever depth.
    ValueError
        For tensors of different lengths.
    """
    named(name, values)
    lengths: dict[str, int] = {}
    for path, value in _leaves(values):
        if value is None:
            continue
        if not isinstance(value, Tensor) or value.ndim == 0:
            raise TypeError(
                f"{name} {path!r} must be a tensor with one entry per row of the batch, got {type(value).__name__}"
                + (" of no dimension" if isinstance(value, Tensor) else "")
                + "; what is the same for all rows goes in shared"
            )
        lengths[path] = len(value)
    if len({length for length in lengths.values() if not (one_for_all and length == 1)}) > 1:
        raise ValueError(f"{name} must have one entry per row in every argument, got lengths {lengths}")
    return dict(values)


def named(name: str, values: Any) -> None:
    """Refuse what cannot be the arguments of a call.

    Raises
    ------
    TypeError
        For anything but a mapping with strings for keys.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} must be a mapping of arguments by name, got {type(values).__name__}")
    odd = [key for key in values if not isinstance(key, str)]
    if odd:
        raise TypeError(f"{name} must have names of arguments for keys, got {odd[0]!r}")


def rows_of(values: Mapping[str, Any]) -> int | None:
    """How many rows they are for; None for any number."""
    return next((len(value) for _, value in _leaves(values) if value is not None), None)


def expanded(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Unconditional values, one for each row or one for all, as one for each.

    Raises
    ------
    ValueError
        For values of another structure or shape than the conditional ones.
    """
    ours, theirs = dict(_leaves(values)), dict(_leaves(wanted))
    if set(ours) != set(theirs):
        raise ValueError(f"requires unconditional values for {', '.join(theirs)}, got {', '.join(ours) or 'none'}")
    for path, value in ours.items():
        if (value is None) != (theirs[path] is None) or (
            value is not None and tuple(value.shape) not in (theirs[path].shape, (1, *theirs[path].shape[1:]))
        ):
            shapes = [None if each is None else tuple(each.shape) for each in (theirs[path], value)]
            raise ValueError(
                f"unconditional {path!r} must have shape {shapes[0]}, or one entry for all, to go with the "
                f"conditioning, got {shapes[1]}"
            )
    return {key: _mapped(lambda value, other: value.expand_as(other), values[key], wanted[key]) for key in wanted}


def selected(values: Mapping[str, Any], row: Tensor, device: torch.device) -> dict[str, Any]:
    """The entries of some rows."""
    return {key: _mapped(lambda each: each.to(device)[row], value) for key, value in values.items()}


def paired(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of one, then those of the other."""
    return {key: _mapped(lambda one, other: torch.cat([one, other]), first[key], second[key]) for key in second}


def whole(values: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Shared values on a device."""
    return {
        key: _mapped(lambda each: each.to(device) if isinstance(each, Tensor) else each, value)
        for key, value in values.items()
    }


def merged(rows: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Values per row and shared ones as the arguments of a call; mappings under one name are joined.

    Raises
    ------
    ValueError
        For a value that is there twice.
    """
    both = {**rows, **shared}
    for key in set(rows) & set(shared):
        if not (isinstance(rows[key], Mapping) and isinstance(shared[key], Mapping)):
            raise ValueError(f"{key!r} is both in conditioning and in shared; it is per row or the same for all rows")
        both[key] = merged(rows[key], shared[key])
    return both


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.")
        elif _is_group(value):
            yield from _leaves({str(place): each for place, each in enumerate(value)}, f"{path}.")
        else:
            yield path, value


def _mapped(change: Callable[..., Any], value: Any, *others: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {key: _mapped(change, each, *(other[key] for other in others)) for key, each in value.items()}
    if _is_group(value):
        found = [_mapped(change, *each) for each in zip(value, *others, strict=True)]
        make = getattr(type(value), "_make", type(value))  # named tuples
        return make(found)
    return change(value, *others)


def _is_group(value: Any) -> bool:
    """Whether it is a tuple or list of tensors, as the residuals of a ControlNet are; one of numbers is a value."""
    return isinstance(value, (tuple, list)) and any(isinstance(each, (Tensor, Mapping, tuple, list)) for each in value)
