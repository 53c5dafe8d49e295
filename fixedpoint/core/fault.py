"""Fault: why something fails a conformance check by its nature, where the failure is an exception."""

from __future__ import annotations

from typing import Self

__all__ = ["Fault"]


class Fault(str):
    """The reason of a known fault that shows as an exception, and the exception's type.

    A plain string in ``known_faults`` says that the check's own demand is not met; whatever is raised instead is no
    expected failure. A fault says that this exception, and nothing else, is raised.

    ``Fault("no double backward", raises=NotImplementedError)``: the reason in a few words, the type of the exception.

    Attributes
    ----------
    raises
        Type of the exception; subclasses of it count.
    """

    raises: type[Exception]

    def __new__(cls, reason: str, raises: type[Exception]) -> Self:
        fault = super().__new__(cls, reason)
        fault.raises = raises
        return fault
