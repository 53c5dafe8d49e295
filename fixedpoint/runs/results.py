"""Checks what a task returns, when it returns it: a record that is written can be read, shown and reported."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from fixedpoint.config.arrays import numbers_of, usable
from fixedpoint.execution.plain import cut, is_printable, one_line, printable
from fixedpoint.tasks.task import Images, Result

__all__ = ["COLUMNS", "ResultError", "arrays_of", "numbers_and_message"]

COLUMNS = ("task", "gradient", "seed", "solver", "status", "rounds", "evaluations", "seconds")
"""The columns that every table has; no metric bears the name of one."""

# Characters of the name of a metric or status.
_LONGEST = 200


class ResultError(ValueError):
    """A task returned what cannot be a result. The message says what came and what was wanted."""


def numbers_and_message(result: Any) -> dict[str, Any]:
    """Return the numbers and the message of a result as plain values, for the record.

    Raises
    ------
    ResultError
        If it is no ``Result``; if a metric has no name of its own or is no real number; if a count is none.
    """
    if not isinstance(result, Result):
        raise ResultError(f"the task returned {_kind(result)}, wanted a Result")
    if not isinstance(result.message, str):
        raise ResultError(f"the task returned {_kind(result.message)} as its message, wanted a text")
    seconds = _number(result.seconds, "seconds")
    if not seconds >= 0:
        raise ResultError(f"the task returned {seconds} as its seconds, wanted a number of at least 0")
    return {
        "metrics": dict(_metrics(result.metrics)),
        "rows": {_name(label, "status"): _count(n, f"rows {label}") for label, n in _items(result.status, "status")},
        "rounds": _count(result.rounds, "rounds"),
        "evaluations": _count(result.evaluations, "evaluations"),
        "seconds": seconds,
        "message": cut(printable(result.message)),
    }


def arrays_of(result: Result) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return traces, epochs and pictures by their names in the arrays file, and a note on each that is left out."""
    arrays: dict[str, NDArray[Any]] = {}
    wrong: dict[str, str] = {}
    for name, given in _given(result, wrong):
        try:
            arrays[name] = numbers_of(given)
        except ValueError as error:
            wrong[name] = str(error)
    kept, unusable = usable(arrays)
    # What belongs to a part that is no array is left out for want of it; the first reason is told.
    told = {name.removesuffix(".pixels"): reason for name, reason in {**unusable, **wrong}.items()}
    return kept, [f"{one_line(name, _LONGEST)}: is left out, for it {reason}" for name, reason in told.items()]


def _given(result: Result, wrong: dict[str, str]) -> Iterator[tuple[str, Any]]:
    mappings: dict[str, Any] = {"trace": result.trace, "epochs": result.epochs}
    for kind, values in mappings.items():
        if not isinstance(values, Mapping):
            wrong[kind] = f"is {_kind(values)}, wanted a mapping of names and arrays"
            continue
        for name, array in values.items():
            try:
                yield f"{kind}.{_name(name, kind)}", array
            except ResultError:
                wrong[f"{kind}.{one_line(str(name), _LONGEST)}"] = "has a name that is none"
    forming = result.forming
    pictures: dict[str, Any] = {"images": result.images, "reference": result.reference}
    if forming is not None:
        pictures["forming"] = getattr(forming, "images", forming)
        yield "forming.rounds", getattr(forming, "rounds", ())
    for name, images in pictures.items():
        if isinstance(images, Images):
            yield f"{name}.pixels", images.pixels
            yield f"{name}.range", [images.low, images.high]
        elif images is not None:
            wrong[name] = f"is {_kind(images)}, wanted Images"


def _metrics(metrics: Any) -> Iterator[tuple[str, float]]:
    for name, value in _items(metrics, "metrics"):
        if _name(name, "metric") in COLUMNS:
            raise ResultError(f'the task returned a metric called "{name}", which is a column of every table')
        yield name, _number(value, f"metric {name}")


def _items(given: Any, what: str) -> list[tuple[Any, Any]]:
    if not isinstance(given, Mapping):
        raise ResultError(f"the task returned {_kind(given)} as its {what}, wanted a mapping of names and numbers")
    return list(given.items())


def _name(name: Any, what: str) -> str:
    if not isinstance(name, str) or not name.strip() or not is_printable(name) or len(name) > _LONGEST:
        shown = one_line(ascii(name), 60) if isinstance(name, str) else _kind(name)
        wanted = f"a printable text of at most {_LONGEST} characters"
        raise ResultError(f"the task returned {shown} as the name of a {what}, wanted {wanted}")
    return name


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except Exception:  # any object may come, and refuse in any way
        raise ResultError(f"the task returned {_kind(value)} as {what}, wanted a real number") from None


def _count(value: Any, what: str) -> int:
    number = _number(value, what)
    if not math.isfinite(number) or number != math.floor(number) or not 0 <= number < 2**63:
        raise ResultError(f"the task returned {number:g} as {what}, wanted a whole number of at least 0")
    return int(value)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"an object of the class {one_line(type(value).__name__, 60)}"
