"""The reason why a component fails a conformance check with an exception."""

from __future__ import annotations

from typing import Self

__all__ = ["Fault"]


class Fault(str):
    """The reason for a known fault, with the type of the exception that it raises.

    A plain string in ``known_faults`` says that the component runs but does not meet the check's own requirement; an
    exception is then an unexpected failure. A ``Fault`` says that exactly this exception is raised:
    ``Fault("no double backward", raises=NotImplementedError)``.

    The string itself is the reason, in a few words.

    Attributes
    ----------
    raises
        Type of the exception; subclasses count too.
    """

    raises: type[Exception]

    def __new__(cls, reason: str, raises: type[Exception]) -> Self:
        fault = super().__new__(cls, reason)
        fault.raises = raises
        return fault
