"""Checks the traces and pictures of a cell: as a task returns them, and as they are read from a run folder.

What passes can be drawn. Anything else is left out, with a sentence; the numbers of the cell are not touched by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fixedpoint.config.bounded import MOST_ARRAYS
from fixedpoint.execution.plain import one_line

__all__ = ["numbers_of", "usable"]

Arrays = Mapping[str, NDArray[Any]]

_PICTURES = ("images", "reference", "forming")
_ERRORS, _STEPS, _EPOCHS = "trace.relative_error", "trace.step_errors", "epochs."
# Values of a trace that is spread over the rounds it tells of, of which a record may name any number.
_MOST_VALUES = 2**26
_WANTED = "(count, height, width), or with 1 or 3 colours last"


def numbers_of(given: Any) -> NDArray[Any]:
    """Return what a task gave as an array of real numbers.

    Raises
    ------
    ValueError
        If it is none: ragged lists, objects, complex numbers, texts.
    """
    try:
        array = np.asarray(given)
    except Exception as error:  # a tensor of another device, lists of unequal length, objects of any kind
        raise ValueError(f"is no array of numbers ({one_line(str(error), 200)})") from None
    if array.dtype.kind not in "fiub":
        raise ValueError(f"has the dtype {array.dtype}, wanted real numbers")
    return array


def usable(arrays: Arrays) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Return the arrays that can be stored and drawn, and for every other one the reason, by name.

    Arrays that belong to one another, such as pixels and their range, are left out together.
    """
    wrong: dict[str, str] = {}
    for names, check in _checks(arrays):
        try:
            for name in names:
                numbers_of(arrays[name])
            check()
        except (ValueError, KeyError) as error:
            said = f"there is no {error.args[0]} with it" if isinstance(error, KeyError) else str(error)
            wrong[names[0].removesuffix(".pixels")] = said
            arrays = {name: array for name, array in arrays.items() if name not in names}
    total = sum(array.nbytes for array in arrays.values())
    if total > MOST_ARRAYS:
        largest = max(arrays, key=lambda name: arrays[name].nbytes)
        kept, more = usable({name: array for name, array in arrays.items() if name != largest})
        return kept, {**wrong, largest: f"with it the arrays have more than {MOST_ARRAYS // 2**20} MB", **more}
    return dict(arrays), wrong


def _checks(arrays: Arrays) -> Iterator[tuple[list[str], Callable[[], None]]]:
    """The names that belong to one another, the one that is told first, and their check."""
    known: set[str] = set()
    for first, check in (
        (_ERRORS, _check_errors),
        (_STEPS, _check_steps),
        *((f"{kind}.pixels", _check_pictures) for kind in _PICTURES),
    ):
        stem = first.removesuffix(".pixels")
        names = sorted((n for n in arrays if n == stem or n.startswith(f"{stem}.")), key=lambda name: name != first)
        known |= set(names)
        if names:
            yield names, partial(check, arrays, stem)
    for name in sorted(arrays.keys() - known):
        yield [name], partial(_check_epochs, arrays, name)


def _check_errors(arrays: Arrays, name: str) -> None:
    trace = arrays[name]
    rounds = arrays.get(f"{name}.rounds")
    if rounds is not None:
        last = _check_rounds(rounds, trace.shape[:1])
        if last * max(1, math.prod(trace.shape[1:])) > _MOST_VALUES:
            raise ValueError(f"tells of {last} rounds, which are too many to draw")


def _check_steps(arrays: Arrays, name: str) -> None:
    errors, steps = arrays[name], arrays[f"{name}.steps"]
    if errors.ndim != 3 or errors.shape[2:] != steps.shape or 0 in errors.shape:
        raise ValueError(f"has the shape {errors.shape} with {steps.shape} steps, wanted (rows, rounds, steps)")
    _check_rounds(arrays[f"{name}.rounds"], errors.shape[1:2])
    _check_rounds(steps, errors.shape[2:])


def _check_epochs(arrays: Arrays, name: str) -> None:
    if name.startswith(_EPOCHS) and arrays[name].ndim != 1:
        raise ValueError(f"has the shape {arrays[name].shape}, wanted one number an epoch")


def _check_pictures(arrays: Arrays, name: str) -> None:
    pixels, bounds = arrays[f"{name}.pixels"], arrays[f"{name}.range"]
    if pixels.ndim not in (3, 4) or 0 in pixels.shape or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3)):
        raise ValueError(f"has pixels of shape {pixels.shape}, wanted {_WANTED}")
    if bounds.shape != (2,) or not np.isfinite(bounds).all() or not bounds[0] < bounds[1]:
        raise ValueError(f"has the range {one_line(str(bounds.tolist()), 60)}, wanted low < high")
    if name == "forming":
        _check_rounds(arrays["forming.rounds"], pixels.shape[:1])


def _check_rounds(rounds: NDArray[Any], wanted: tuple[int, ...]) -> int:
    """The last of the numbers of rounds or steps, which must be as many as wanted, and whole numbers from 0 on."""
    if rounds.shape != wanted:
        raise ValueError(f"has {wanted} rounds or steps and {rounds.shape} numbers for them")
    if not rounds.size:
        return 0
    if not np.isfinite(rounds).all() or (rounds != np.floor(rounds)).any() or rounds.min() < 0 or rounds.max() > 2**31:
        raise ValueError("has numbers of rounds or steps that are no counts")
    return int(rounds.max())
