"""Conditioning of a network: tensors with one entry per row, in mappings and tuples of any depth.

The caller states which values are per row and which are shared; this is never inferred from sizes. Every tensor in
``conditioning`` has one entry per row of the batch, and everything in ``shared`` is passed on whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["checked", "expanded", "merged", "named", "paired", "rows_of", "selected", "whole"]


def checked(name: str, values: Mapping[str, Any], one_for_all: bool = False) -> dict[str, Any]:
    """The values as a dictionary, after checking that every tensor has one entry per row.

    Parameters
    ----------
    name
        What error messages call the values.
    values
        Tensors by name of the argument; also mappings, tuples and lists of tensors, and None.
    one_for_all
        Whether a tensor may have a single entry for all rows instead.

    Raises
    ------
    TypeError
        If ``values`` is not a mapping with strings as keys, or contains anything but tensors with a first dimension.
    ValueError
        If the tensors have different lengths.
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
    """Check that values can be the keyword arguments of a call.

    Raises
    ------
    TypeError
        If they are not a mapping with strings as keys.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} must be a mapping of arguments by name, got {type(values).__name__}")
    odd = [key for key in values if not isinstance(key, str)]
    if odd:
        raise TypeError(f"{name} must have names of arguments for keys, got {odd[0]!r}")


def rows_of(values: Mapping[str, Any]) -> int | None:
    """The number of rows that the values are for; None if they contain no tensor and fit any number."""
    return next((len(value) for _, value in _leaves(values) if value is not None), None)


def expanded(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Unconditional values expanded to one entry per row.

    Parameters
    ----------
    values
        The unconditional values, with one entry per row or one for all.
    wanted
        The conditional values, which determine structure and shapes.

    Raises
    ------
    ValueError
        If the structure or a shape differs from that of the conditional values.
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
    """The entries of the rows ``row``, on a device."""
    return {key: _mapped(lambda each: each.to(device)[row], value) for key, value in values.items()}


def paired(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``first`` and, after them, those of ``second``, concatenated along the rows."""
    return {key: _mapped(lambda one, other: torch.cat([one, other]), first[key], second[key]) for key in second}


def whole(values: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Shared values with their tensors on a device."""
    return {
        key: _mapped(lambda each: each.to(device) if isinstance(each, Tensor) else each, value)
        for key, value in values.items()
    }


def merged(rows: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, from the values per row and the shared values; mappings of the same name are merged.

    Raises
    ------
    ValueError
        If both contain a value of the same name.
    """
    both = {**rows, **shared}
    for key in set(rows) & set(shared):
        if not (isinstance(rows[key], Mapping) and isinstance(shared[key], Mapping)):
            raise ValueError(f"{key!r} is both in conditioning and in shared; it is per row or the same for all rows")
        both[key] = merged(rows[key], shared[key])
    return both


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values that are not groups, each with its path, such as ``added_cond_kwargs.time_ids``."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.")
        elif _is_group(value):
            yield from _leaves({str(place): each for place, each in enumerate(value)}, f"{path}.")
        else:
            yield path, value


def _mapped(change: Callable[..., Any], value: Any, *others: Any) -> Any:
    """``change`` applied to every tensor of ``value``, with its counterparts in ``others``; None stays None."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {key: _mapped(change, each, *(other[key] for other in others)) for key, each in value.items()}
    if _is_group(value):
        found = [_mapped(change, *each) for each in zip(value, *others, strict=True)]
        make = getattr(type(value), "_make", type(value))  # the constructor of a named tuple takes no list
        return make(found)
    return change(value, *others)


def _is_group(value: Any) -> bool:
    """Whether a value is a tuple or list of tensors, as the residuals of a ControlNet are, and not one of numbers."""
    return isinstance(value, (tuple, list)) and any(isinstance(each, (Tensor, Mapping, tuple, list)) for each in value)
