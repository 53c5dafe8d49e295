"""Mistakes in a run file, each with its position and a message of one line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["ConfigError", "Mistake", "Path", "Place", "where"]

Path = tuple[str | int, ...]
"""The keys and indices that lead to a value, e.g. ``("solvers", 1, "memory")``."""


# Characters of a path or message that are shown: the keys of a damaged file may be as long as the file.
_LONGEST = 400


@dataclass(frozen=True, order=True)
class Place:
    """A position in a file.

    Attributes
    ----------
    file
        Name of the file.
    line, column
        Line and column, counted from 1. Line 0 stands for the file as a whole.
    """

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, order=True)
class Mistake:
    """One mistake.

    Attributes
    ----------
    place
        Its position in the file.
    where
        The path of the value, as in ``solvers[1].memory``.
    sentence
        The message.
    """

    place: Place
    where: str
    sentence: str

    def __str__(self) -> str:
        said = (part if len(part) <= _LONGEST else f"{part[: _LONGEST - 3]}..." for part in (self.where, self.sentence))
        line = ": ".join(part for part in (str(self.place), *said) if part)
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)  # keys may contain control characters


class ConfigError(ValueError):
    """A run file cannot be used. The message has one line for every mistake, in the order of the file.

    Parameters
    ----------
    mistakes
        The mistakes.
    """

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(sorted(mistakes))
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))

    @classmethod
    def at(cls, place: Place, sentence: str, path: Path = ()) -> ConfigError:
        """Return the error for a single mistake."""
        return cls([Mistake(place, where(path), sentence)])


def where(path: Path) -> str:
    """Return a path as it is typed in an override: ``solvers[1].memory``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
