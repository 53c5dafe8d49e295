"""What a map of the suite is, and how its residual and its reference solution are found without any solver under test.

Every state is one vector of float64 (or one Python float): tensors and matrices are flattened. A map is called as its
users would call it, on a torch tensor, a numpy array or a float (``kind``). It is kept as it is: outside of its domain
it may return NaN or raise, as maps of users do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["STARTS", "Map", "Vector", "fresh", "newton", "plain", "relative_residual"]

Vector = NDArray[np.float64]
STARTS = ("reference", "far", "random")
"""The starts of every map: that of its source, one far from the solution, and one drawn with a seed in the domain."""


@dataclass(frozen=True)
class Map:
    """A map with its source and its starts.

    Attributes
    ----------
    name
        The name, lower case, with hyphens.
    source
        Paper and equation, and the data.
    f
        The map, of values of ``kind``.
    starts
        The three starts, in the order of ``STARTS``, each of shape ``(D,)``, or ``(1,)`` where ``kind`` is ``"float"``.
    kind
        What ``f`` takes and returns: a ``"torch"`` tensor or a ``"numpy"`` array of shape ``(D,)``, or a ``"float"``.
    domain
        Where ``f`` is defined, and what it does elsewhere.
    exact
        Makes a fixed point, shape ``(D,)``, where the map has one of closed form or a reference of its own; None: see
        ``solution``.
    settling
        Plain iterations from the reference start before Newton's method may take over in ``solution``.
    """

    name: str
    source: str
    f: Callable[[Any], Any]
    starts: tuple[Vector, Vector, Vector]
    kind: Literal["torch", "numpy", "float"] = "numpy"
    domain: str = "all states"
    exact: Callable[[], Vector] | None = field(default=None, repr=False)
    settling: int = 300

    def vector(self, z: Vector) -> Vector:
        """``f`` of a vector of shape ``(D,)``, whatever the kind."""
        if self.kind == "numpy":
            return np.asarray(self.f(z))
        if self.kind == "torch":
            value: Vector = self.f(torch.from_numpy(z)).detach().numpy()
            return value
        return np.array([self.f(float(z[0]))])

    def start(self, name: str) -> Any:
        """The start with this name, as a value of the map's kind, in memory of its own."""
        z = self.starts[STARTS.index(name)]
        if self.kind == "float":
            return float(z[0])
        return torch.from_numpy(z.copy()) if self.kind == "torch" else z.copy()

    @cached_property
    def solution(self) -> Vector:
        """A fixed point: the exact one, else that of plain iteration and Newton's method from the reference start."""
        if self.exact is not None:
            return self.exact()
        return newton(self.vector, plain(self.vector, self.starts[0], self.settling))


def relative_residual(f: Callable[[Vector], Vector], z: Vector) -> float:
    """``||f(z) - z|| / ||z||``: inf if it is not finite, if ``f`` raises, or if ``z`` is 0 and no fixed point."""
    with np.errstate(all="ignore"):
        try:
            defect = float(np.linalg.norm(f(z) - z))
        except (ArithmeticError, ValueError, TypeError):
            return math.inf
        size = float(np.linalg.norm(z))
    if not math.isfinite(defect + size):
        return math.inf
    return 0.0 if defect == 0 else defect / size if size else math.inf


def plain(f: Callable[[Vector], Vector], z: Vector, rounds: int) -> Vector:
    """Plain iteration, ended early where the relative residual is below 1e-14."""
    for _ in range(rounds):
        value = f(z)
        if np.linalg.norm(value - z) <= 1e-14 * np.linalg.norm(value):
            return value
        z = value
    return z


def newton(f: Callable[[Vector], Vector], z: Vector, rounds: int = 20) -> Vector:
    """Newton's method with a dense Jacobian by central differences and least-squares steps; the best point found."""
    best, least = z, relative_residual(f, z)
    for _ in range(rounds):
        if least < 1e-14:
            break
        step = 1e-6 * max(float(np.abs(z).max()), 1e-3)
        columns = [(f(z + step * unit) - f(z - step * unit)) / (2 * step) for unit in np.eye(len(z))]
        z = z + np.linalg.lstsq(np.eye(len(z)) - np.array(columns).T, f(z) - z, rcond=1e-10)[0]
        now = relative_residual(f, z)
        if not now < least:
            break
        best, least = z, now
    return best


def fresh(seed: int) -> np.random.Generator:
    """A generator of random numbers."""
    return np.random.default_rng(seed)
