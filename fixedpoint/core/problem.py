"""Problems ``z = f(z)``, and the abilities a problem may declare.

A problem is a map of the state ``(B, D)``. Rows are independent: ``f(z)[i]`` depends on ``z[i]`` alone, which is
what makes convergence per row, batching and fair counting possible (``check_row_independence`` tests it).

An ability is an abstract class that a problem inherits from, beside :class:`Problem`: ``class Mine(Problem, HasTake)``.
It is never concluded from the names of methods, since ``take``, ``cost`` or ``measure`` may mean anything in a class of
somebody else. Python refuses an instance of a class that declares an ability and lacks a method of it, naming it. What
lacks an ability that it is asked for raises :class:`AbilityError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fixedpoint.core.layout import Layout, Rows

__all__ = [
    "AbilityError",
    "Cost",
    "FunctionProblem",
    "HasCost",
    "HasDerivatives",
    "HasExactResidual",
    "HasMeasure",
    "HasPairs",
    "HasProduct",
    "HasTake",
    "Measure",
    "Problem",
    "check_row_independence",
]


class Problem(ABC):
    """A fixed-point problem ``z = f(z)`` on states ``(B, D)`` of one floating-point dtype."""

    layout: Layout

    @abstractmethod
    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """``f(z)``, in new memory."""

    @abstractmethod
    def initial(self) -> Float[Tensor, "B D"]:
        """The start; nobody writes into it."""


class AbilityError(TypeError):
    """A problem, or a solver, lacks an ability that it was asked for: it and what asked cannot go together.

    A run skips the cell, with this sentence.
    """


class Cost(NamedTuple):
    """What evaluating some rows costs: ``calls`` of the user's function, and ``evaluations`` per row."""

    calls: int
    evaluations: int


class Measure(NamedTuple):
    """How far a point is from solving the problem, and the size it is to be compared with, both ``(B, blocks)``.

    ``settled``, of shape ``(B,)``: whether a row may be called converged where its error is small beside that size (one
    within the absolute tolerance may in any case); None where nothing but the error is to be asked.
    """

    error: Float[Tensor, "B blocks"]
    scale: Float[Tensor, "B blocks"]
    settled: Bool[Tensor, " B"] | None = None


class HasTake(ABC):
    """A problem whose rows can be taken out: the sub-problem of ``rows``, conditioning included."""

    @abstractmethod
    def take(self, rows: Int[Tensor, " k"]) -> Problem:
        """The problem of some of the rows, which come in the order they are asked for."""


class HasMeasure(ABC):
    """A problem with its own measure of how far a point is, in place of the norm of ``f(z) - z``."""

    @abstractmethod
    def measure(self, z: Float[Tensor, "B D"], fz: Float[Tensor, "B D"], residual: Float[Tensor, "B D"]) -> Measure:
        """Error and scale at ``z``, where the problem has just been evaluated as ``fz = residual + z``."""


class HasExactResidual(ABC):
    """A problem that knows ``f(z) - z`` of the point evaluated last more exactly than as a difference."""

    @abstractmethod
    def exact_residual(self) -> Float[Tensor, "B D"]:
        """``f(z) - z`` at the point evaluated last."""


class HasProduct(ABC):
    """A problem with Jacobian-vector products of its own, in place of forward mode: ``J v`` at ``z``."""

    @abstractmethod
    def product(self, z: Float[Tensor, "B D"], v: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """``J v``, the Jacobian at ``z``."""


class HasCost(ABC):
    """A problem one of whose evaluations is many calls or evaluations of the user's function."""

    @abstractmethod
    def cost(self, rows: int) -> Cost:
        """What one evaluation of so many rows costs."""


class HasPairs(ABC):
    """A chain whose steps can be taken at any pairs of a state and a step."""

    @abstractmethod
    def pairs(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """``Phi_index(x)``, each pair of the row ``0 .. B-1`` it names."""

    @abstractmethod
    def calls(self, pairs: int) -> int:
        """In how many calls of the user's function so many pairs are taken."""


class HasDerivatives(ABC):
    """A chain that can be asked for the derivatives of its steps."""

    @abstractmethod
    def derivatives(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"], full_jacobian: bool
    ) -> Float[Tensor, "P d"] | Float[Tensor, "P d d"]:
        """Jacobians of the steps at any pairs of a state and a step: diagonals, or the whole."""

    @abstractmethod
    def calls(self, pairs: int) -> int:
        """In how many calls of the user's function so many pairs are taken."""


class FunctionProblem(Problem):
    """A plain function of the user's value as a problem.

    Parameters
    ----------
    function
        ``f``: takes a value like ``z0`` and returns one of the same structure, shapes, dtype and device. What it is
        given is valid during the call: its memory is used again.
    z0
        The start: a tensor, a numpy array, a float, or tuples, lists or dicts of tensors or of arrays; real or complex.
    rows
        ``"independent"`` or ``"joint"``; see :meth:`Layout.of`.
    has_aux
        ``f`` returns a pair: its value, and anything else, which :meth:`with_aux` returns, too.
    called
        What sentences call the function.

    Raises
    ------
    TypeError, ValueError
        For a start, and at every call for a value, that is not as described.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        z0: Any,
        rows: Rows | None = None,
        *,
        has_aux: bool = False,
        called: str = "f",
    ) -> None:
        if not callable(function):
            raise TypeError(f"{called} must be a function, got {type(function).__name__}")
        self.function = function
        self.has_aux, self.called = has_aux, called
        self.layout = Layout.of(z0, rows)
        self._start = self.layout.pack(z0, "z0")
        if self._start.is_meta:
            raise ValueError("z0 must hold numbers, got a tensor on the meta device")
        if not bool(self._start.isfinite().all()):
            count = int((~self._start.isfinite()).sum())
            raise ValueError(f"z0 must be finite, got {count} entries that are NaN or Inf")

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return self.with_aux(z)[0]

    def with_aux(self, z: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B D"], Any]:
        """``f(z)``, and what else the function returned; None without ``has_aux``."""
        version = z._version
        try:
            value = self.function(self.layout.unpack(z))
        except ValueError as error:
            if self.layout.namespace != "numpy" or "read-only" not in str(error):
                raise
            raise ValueError(
                f"{self.called} wrote into a read-only array ({error}), as its argument is: it must not change that in "
                "place, but return a new value"
            ) from error
        aux = None
        if self.has_aux:
            if not isinstance(value, tuple) or len(value) != 2:
                came = f"{len(value)} of them" if isinstance(value, tuple) else type(value).__name__
                raise TypeError(f"with has_aux=True {self.called} must return a tuple (value, aux), got {came}")
            value, aux = value
        state = self.layout.pack(value, f"{self.called}(z)")
        if z._version != version:
            raise ValueError(f"{self.called} changed its argument in place; it must return a new value")
        return state, aux

    def initial(self) -> Float[Tensor, "B D"]:
        return self._start


def check_row_independence(problem: Problem, seed: int = 0) -> Bool[Tensor, " B"]:
    """Whether each row's value of ``f`` at the start stays the same when the *other* rows change.

    Costs ``B + 1`` evaluations. A row may move by a few roundings (kernels round differently), not more.
    """
    generator = torch.Generator().manual_seed(seed)
    z = problem.initial()
    size = z.abs().amax().clamp(min=1.0)
    noise = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z) * size * 0.1
    with torch.no_grad():
        value = problem(z.clone())
        kept = []
        for row in range(z.shape[0]):
            moved = z + noise
            moved[row] = z[row]
            change = (problem(moved)[row] - value[row]).abs().amax()
            kept.append(
                change <= 64 * torch.finfo(z.dtype).eps * value[row].abs().amax().clamp(min=torch.finfo(z.dtype).tiny)
            )
    return torch.stack(kept)
