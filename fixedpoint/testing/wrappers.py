"""Wrappers of problems that make them misbehave, or record how a solver calls them."""

from __future__ import annotations

import math
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
    """The actual calls of a solver, counted where the function is called.

    Attributes
    ----------
    calls
        Number of calls of the function.
    rows
        Number of evaluations of every row, by the number of the row.
    dtypes
        Dtypes of the points that the function was called with.
    """

    calls: int = 0
    rows: dict[int, int] = field(default_factory=dict)
    dtypes: set[torch.dtype] = field(default_factory=set)

    def note(self, rows: Int[Tensor, " k"], dtype: torch.dtype, times: int = 1) -> None:
        """Count one call with ``times`` points of each of ``rows``; a row may occur more than once."""
        self.calls += 1
        self.dtypes.add(dtype)
        with torch._C._DisableFuncTorch():  # torch before 2.6 reads no numbers within its transforms
            numbers = rows.tolist()
        for row in numbers:
            self.rows[row] = self.rows.get(row, 0) + times


@dataclass(eq=False)
class Wrapper(TakeableProblem):
    """A problem that wraps another one, with the same layout and start."""

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
    """``s f(z / s)`` with ``s = factor``: the same problem in other units."""

    factor: float

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return self.factor * self.inner(z / self.factor)

    def initial(self) -> Float[Tensor, "B D"]:
        return self.factor * self.inner.initial()


@dataclass(eq=False)
class Poisoned(Wrapper):
    """Sets the first unknown of the rows in ``mask`` to ``value`` (NaN or Inf), after ``grace`` unchanged calls."""

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
    """Returns NaN where an unknown is larger than ``wall`` in absolute value, like a function with a bounded domain."""

    wall: float

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        outside = z.abs().amax(dim=1, keepdim=True) > self.wall
        return self.inner(z).masked_fill(outside, torch.nan)


@dataclass(eq=False)
class Mixed(Wrapper):
    """Takes the rows in ``mask`` from ``other`` and the rest from ``inner``."""

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
    """Counts its calls, their rows and dtypes in ``tally``."""

    tally: Tally = field(default_factory=Tally)
    rows: Int[Tensor, " B"] | None = None
    _numbers: Int[Tensor, " B"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        # Not in a call: what is made within a transform of torch.func belongs to it.
        self._numbers = torch.arange(self.layout.rows, device="cpu") if self.rows is None else self.rows

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        self.tally.note(self._numbers, z.dtype, times=_batched_points())
        return self.inner(z)

    def take(self, rows: Int[Tensor, " k"]) -> Self:
        return replace(self, inner=self.inner.take(rows), rows=self._numbers[rows])


def _batched_points() -> int:
    """How many points, or vectors of a product, ``torch.func.vmap`` puts into the call that is under way."""
    functorch = torch._C._functorch
    levels = functorch.get_interpreter_stack() or []
    vmaps = [level for level in levels if level.key() == functorch.TransformType.Vmap]
    return math.prod(functorch.CVmapInterpreterPtr(level).batchSize() for level in vmaps)


@dataclass(eq=False)
class Opaque(Wrapper):
    """The same function with an operation that has no forward mode, like a fused kernel."""

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        through: Tensor = _Backwards.apply(z)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self.inner(through)


class _Backwards(torch.autograd.Function):
    """The identity, with a backward pass and no forward mode."""

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
