"""Wrappers that make a problem misbehave, or watch what a solver does to it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fixedpoint.core.layout import Layout
from fixedpoint.testing.problems import TakeableProblem

__all__ = ["Counted", "Mixed", "Opaque", "Poisoned", "Raising", "Scaled", "Tally", "Walled", "Wrapper"]


@dataclass
class Tally:
    """What a solver really did, counted where the function is called.

    Attributes
    ----------
    calls
        Calls of the function.
    rows
        Evaluations of every row.
    dtypes
        Dtypes of the points the function was given.
    """

    calls: int = 0
    rows: dict[int, int] = field(default_factory=dict)
    dtypes: set[torch.dtype] = field(default_factory=set)

    def note(self, rows: Int[Tensor, " k"], dtype: torch.dtype) -> None:
        """One call at these rows; a row evaluated twice in it stands in it twice."""
        self.calls += 1
        self.dtypes.add(dtype)
        for row in rows.tolist():
            self.rows[row] = self.rows.get(row, 0) + 1


@dataclass(eq=False)
class Wrapper(TakeableProblem):
    """A problem around another one of the same layout and start."""

    layout: Layout = field(init=False, repr=False)
    inner: TakeableProblem

    def __post_init__(self) -> None:
        self.layout = self.inner.layout

    @abstractmethod
    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]: ...

    def initial(self) -> Float[Tensor, "B D"]:
        return self.inner.initial()

    def take(self, rows: Int[Tensor, " k"]) -> Self:
        return replace(self, inner=self.inner.take(rows))


@dataclass(eq=False)
class Scaled(Wrapper):
    """``s f(z / s)``: the same problem in other units."""

    factor: float

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return self.factor * self.inner(z / self.factor)

    def initial(self) -> Float[Tensor, "B D"]:
        return self.factor * self.inner.initial()


@dataclass(eq=False)
class Poisoned(Wrapper):
    """Rows of ``mask`` get ``value`` (NaN or Inf) in one of their unknowns, after ``grace`` calls that are sound."""

    mask: Bool[Tensor, " B"]
    value: float = float("nan")
    grace: int = 0
    tally: Tally = field(default_factory=Tally)

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        self.tally.calls += 1
        fz = self.inner(z)
        if self.tally.calls <= self.grace:
            return fz
        bad = torch.cat([torch.full_like(fz[:, :1], self.value), fz[:, 1:]], dim=1)
        return torch.where(self.mask.unsqueeze(1), bad, fz)

    def take(self, rows: Int[Tensor, " k"]) -> Self:
        return replace(self, inner=self.inner.take(rows), mask=self.mask[rows])


@dataclass(eq=False)
class Walled(Wrapper):
    """NaN at points with an unknown larger than ``wall``: a function with a domain."""

    wall: float

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        outside = z.abs().amax(dim=1, keepdim=True) > self.wall
        return self.inner(z).masked_fill(outside, torch.nan)


@dataclass(eq=False)
class Mixed(Wrapper):
    """Rows of ``mask`` are those of ``other``, the rest those of ``inner``."""

    other: TakeableProblem
    mask: Bool[Tensor, " B"]

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return torch.where(self.mask.unsqueeze(1), self.other(z), self.inner(z))

    def initial(self) -> Float[Tensor, "B D"]:
        return torch.where(self.mask.unsqueeze(1), self.other.initial(), self.inner.initial())

    def take(self, rows: Int[Tensor, " k"]) -> Self:
        return replace(self, inner=self.inner.take(rows), other=self.other.take(rows), mask=self.mask[rows])


@dataclass(eq=False)
class Counted(Wrapper):
    """Counts in ``tally`` what it is called with."""

    tally: Tally = field(default_factory=Tally)
    rows: Int[Tensor, " B"] | None = None

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        self.tally.note(self._rows(), z.dtype)
        return self.inner(z)

    def take(self, rows: Int[Tensor, " k"]) -> Self:
        return replace(self, inner=self.inner.take(rows), rows=self._rows()[rows])

    def _rows(self) -> Int[Tensor, " B"]:
        return torch.arange(self.layout.rows) if self.rows is None else self.rows


@dataclass(eq=False)
class Opaque(Wrapper):
    """The same function by an operation that has no forward mode, as fused kernels have not."""

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        through: Tensor = _Backwards.apply(z)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self.inner(through)


class _Backwards(torch.autograd.Function):
    """The identity, with a backward pass alone."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return cotangent


@dataclass(eq=False)
class Raising(Wrapper):
    """Raises ``error`` after ``grace`` calls."""

    error: Exception
    grace: int = 0
    tally: Tally = field(default_factory=Tally)

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        self.tally.calls += 1
        if self.tally.calls > self.grace:
            raise self.error
        return self.inner(z)
