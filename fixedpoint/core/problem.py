"""Problems ``z = f(z)``, and the abilities a problem may declare.

A problem is a map of the state ``(B, D)``. Rows are independent: ``f(z)[i]`` depends on ``z[i]`` alone. Convergence per
row, batching and fair counting rely on this; ``check_row_independence`` tests it.

An ability is an abstract class that a problem inherits from, in addition to :class:`Problem`:
``class Mine(Problem, HasTake)``. The library never infers an ability from the name of a method, since ``take``,
``cost`` or ``measure`` may mean anything in a user's class. Where a class declares an ability but lacks one of its
methods, Python raises a ``TypeError`` on construction that names the method. A solver or estimator that requires an
ability the problem does not declare raises :class:`AbilityError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fixedpoint.core.domain import leaves_domain
from fixedpoint.core.inference import writes
from fixedpoint.core.layout import Layout, Rows
from fixedpoint.core.structure import leaves

__all__ = [
    "AbilityError",
    "Cost",
    "FunctionProblem",
    "HasCost",
    "HasExactResidual",
    "HasMeasure",
    "HasProduct",
    "HasSamples",
    "HasTake",
    "Measure",
    "Problem",
    "check_row_independence",
]


class Problem(ABC):
    """A fixed-point problem ``z = f(z)`` on states of shape ``(B, D)`` and one floating-point dtype.

    Attributes
    ----------
    layout
        Number of rows, size, dtype and device of the state, and how it corresponds to the user's value.
    """

    layout: Layout

    @abstractmethod
    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return ``f(z)`` in new memory: shape, dtype and device of ``z``."""

    @abstractmethod
    def initial(self) -> Float[Tensor, "B D"]:
        """Return the start, shape ``(B, D)``. Callers must not write into it."""


class AbilityError(TypeError):
    """A problem or a solver lacks an ability that the other one, or a gradient estimator, requires.

    A run skips the cell and shows the message.
    """


class Cost(NamedTuple):
    """The cost of one evaluation of some rows.

    Attributes
    ----------
    calls
        Calls of the user's function, for all these rows together.
    evaluations
        Evaluations counted for each row.
    """

    calls: int
    evaluations: int


class Measure(NamedTuple):
    """How far a point is from solving the problem.

    Attributes
    ----------
    error
        Shape ``(B, blocks)``, float64, nonnegative: the error of every block.
    scale
        Shape ``(B, blocks)``, float64: what the relative tolerance multiplies.
    settled
        Shape ``(B,)``: whether the row may be called converged by its relative tolerance. A row within the absolute
        tolerance is converged in any case. None: the error alone decides.
    """

    error: Float[Tensor, "B blocks"]
    scale: Float[Tensor, "B blocks"]
    settled: Bool[Tensor, " B"] | None = None


class HasTake(ABC):
    """A problem that can be restricted to some of its rows."""

    @abstractmethod
    def take(self, rows: Int[Tensor, " k"]) -> Problem:
        """Return the problem of the rows with these indices, in this order, with their conditioning.

        Parameters
        ----------
        rows
            Shape ``(k,)``, int64, on the device of the problem: values from 0 to ``B - 1``.
        """


class HasMeasure(ABC):
    """A problem that measures the error of a point itself, in place of the norm of ``f(z) - z``."""

    @abstractmethod
    def measure(self, z: Float[Tensor, "B D"], fz: Float[Tensor, "B D"], residual: Float[Tensor, "B D"]) -> Measure:
        """Return error and scale at ``z``, right after the problem was evaluated there.

        Parameters
        ----------
        z, fz
            Shape ``(B, D)``: the point and ``f(z)``. Rows that have finished may hold ``fz = z``.
        residual
            Shape ``(B, D)``: ``f(z) - z``.
        """


class HasExactResidual(ABC):
    """A problem that knows ``f(z) - z`` more exactly than the difference of the two, which cancels digits."""

    @abstractmethod
    def exact_residual(self) -> Float[Tensor, "B D"]:
        """Return ``f(z) - z``, shape ``(B, D)``, at the point evaluated last."""

    def residual(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return ``f(z) - z`` at ``z``, by one evaluation; its derivatives are those of the residual.

        By default this is the difference. Override it where derivatives, too, would lose digits to it.
        """
        difference: Tensor = self(z) - z  # type: ignore[operator]
        return difference


class HasProduct(ABC):
    """A problem that computes Jacobian-vector products itself, in place of forward mode."""

    @abstractmethod
    def product(self, z: Float[Tensor, "B D"], v: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return ``J v``, shape ``(B, D)``, with the Jacobian ``J`` of ``f`` at ``z``."""


class HasSamples(ABC):
    """A problem whose states stand for those of a sampler, which ``solution.samples`` returns."""

    @abstractmethod
    def sample_map(self) -> Callable[[Float[Tensor, "B D"]], Any] | None:
        """Return the function that makes the sampler's own states of a state; None if there are none.

        Solutions keep the function, so it should not hold the problem.
        """


class HasCost(ABC):
    """A problem whose single evaluation takes several calls or evaluations of the user's function."""

    @abstractmethod
    def cost(self, rows: int) -> Cost:
        """Return the cost of one evaluation of ``rows`` rows."""


class FunctionProblem(Problem):
    """A plain function of the user's value, as a problem.

    Arithmetic of Python's floats raises where that of arrays returns NaN: ``math.log(-1)``, ``1 / 0.0``, or
    ``(-1.0) ** 0.5``, which turns complex. Where a problem of one row raises such an exception at any point but the
    first, its value is NaN there.

    Parameters
    ----------
    function
        ``f``: takes a value like ``z0`` and returns one of the same structure, shapes, dtype and device. Its argument
        is valid only during the call, since the library reuses that memory.
    z0
        The start: a tensor, a numpy array, a float, or tuples, lists or dicts of tensors or of arrays; real or complex.
    rows
        ``"independent"`` or ``"joint"``; see :meth:`Layout.of`.
    has_aux
        Whether ``f`` returns a pair: its value, and anything else, which :meth:`with_aux` also returns.
    called
        The name of the function in error messages.

    Attributes
    ----------
    undefined
        How often the function had no value at a point, for every exception that said so.

    Raises
    ------
    TypeError, ValueError
        If ``z0`` is not as described, is not finite or lies on the meta device. Calling the problem raises the same
        exceptions if the returned value does not match ``z0``, or if ``f`` changed its argument in place.
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
        self.undefined: Counter[str] = Counter()
        self._was_defined = False
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
        """Return ``f(z)``, shape ``(B, D)``, and the second item that the function returned (None without ``has_aux``).

        Raises
        ------
        TypeError, ValueError
            If the returned value does not match ``z0``, or ``f`` changed its argument in place.
        """
        # torch counts in-place writes: comparing their number afterwards shows whether f changed its argument.
        version = writes(z)
        try:
            value = self.function(self.layout.unpack(z))
        except ValueError as error:
            if self.layout.namespace != "numpy" or "read-only" not in str(error):
                return self._nowhere(z, error), None
            raise ValueError(
                f"{self.called} wrote into a read-only array ({error}), as its argument is: it must not change that in "
                "place, but return a new value"
            ) from error
        except Exception as error:
            return self._nowhere(z, error), None
        aux = None
        if self.has_aux:
            if not isinstance(value, tuple) or len(value) != 2:
                came = f"{len(value)} of them" if isinstance(value, tuple) else type(value).__name__
                raise TypeError(f"with has_aux=True {self.called} must return a tuple (value, aux), got {came}")
            value, aux = value
        if self._was_defined and self._turned_complex(value):
            return self._nowhere(z, ArithmeticError("the value is complex")), aux
        state = self.layout.pack(value, f"{self.called}(z)")
        if writes(z) != version:
            raise ValueError(f"{self.called} changed its argument in place; it must return a new value")
        self._was_defined = True
        return state, aux

    def _turned_complex(self, value: Any) -> bool:
        """Whether a function of Python floats returned a complex number, as a root of a negative number is."""
        real = self.layout.namespace == "python" and not self.layout.is_complex and type(value) is not float
        return real and any(isinstance(number, complex) for _, number in leaves(value, self.called))

    def _nowhere(self, z: Float[Tensor, "B D"], error: Exception) -> Float[Tensor, "B D"]:
        """Return NaN for a point at which the function has no value; raise what says something else."""
        if not (self._was_defined and self.layout.rows == 1 and leaves_domain(error)):
            raise error
        self.undefined[f"{type(error).__name__}: {error}"] += 1
        return torch.full_like(z, torch.nan)

    def initial(self) -> Float[Tensor, "B D"]:
        return self._start


def check_row_independence(problem: Problem, seed: int = 0) -> Bool[Tensor, " B"]:
    """Check that each row's value of ``f`` at the start stays the same when the *other* rows change.

    Costs ``B + 1`` evaluations of the whole batch.

    Parameters
    ----------
    problem
        The problem to check.
    seed
        Seed of the noise that is added to the other rows, a tenth of the size of the start.

    Returns
    -------
    Tensor
        Shape ``(B,)``, bool: whether the row's value changed by at most 64 units of rounding, relative to its largest
        entry. Smaller changes are allowed because a kernel may round a row differently within another batch.
    """
    generator = torch.Generator().manual_seed(seed)
    z = problem.initial()
    size = z.abs().amax().clamp(min=1.0)
    noise = torch.randn(z.shape, generator=generator, dtype=torch.float64, device="cpu").to(z) * size * 0.1
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
