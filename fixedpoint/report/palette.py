"""Assigns a colour to each solver, the same in plots and tables, that colour-blind readers can distinguish.

The colours are those of Okabe & Ito 2008, "Color universal design", without the yellow, which is hardly visible on
white. A solver without a curve, such as the serial reference, is grey. If there are more solvers than colours, they
differ in their dashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["GRID", "INK", "REFERENCE", "Stroke", "strokes"]

INK = "#23282e"
GRID = "#d8dce1"
REFERENCE = "#80878f"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES: Sequence[Any] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))


@dataclass(frozen=True)
class Stroke:
    """How the curve of a solver is drawn.

    Attributes
    ----------
    colour
        Colour, as in ``"#0072b2"``.
    dashes
        Line style of matplotlib.
    """

    colour: str
    dashes: Any


def strokes(solvers: Iterable[str], with_curve: Iterable[str]) -> dict[str, Stroke]:
    """Return the stroke of every solver by its label.

    Parameters
    ----------
    solvers
        Labels of all solvers.
    with_curve
        Labels of the solvers that have a curve in some plot; all others are grey.
    """
    curved = {solver: index for index, solver in enumerate(with_curve)}
    found: dict[str, Stroke] = {}
    for solver in solvers:
        if solver not in curved:
            found[solver] = Stroke(REFERENCE, (0, (2, 2)))
            continue
        index = curved[solver]
        found[solver] = Stroke(_COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)])
    return found
