"""Solver: what finds a fixed point. Most are StepSolvers, driven by the one loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.inverse import InverseEstimate
from fixedpoint.core.loop import Progress, iterate
from fixedpoint.core.options import Options
from fixedpoint.core.shift import Shift
from fixedpoint.core.solution import Solution
from fixedpoint.core.termination import Termination

__all__ = ["AdaptsSolver", "Slides", "Solver", "StepSolver"]

S = TypeVar("S")


class Solver(Options, ABC):
    """A method for ``z = f(z)``: a frozen dataclass of options, comparable and printable.

    ``needs`` and ``provides`` are names by which a run finds out, before it starts, which solver cannot go with which
    problem or gradient estimator. They are asked of the instance: where they hang on the options, ``by_options``
    (``fixedpoint.core.options``) makes them of these. Estimators ask for ``"inverse"`` (an estimate of the inverse
    Jacobian, see :meth:`StepSolver.inverse`) and ``"decisions"`` (that the loop is the library's, and its steps can be
    taken again while autograd records).
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = frozenset()

    @property
    def known_faults(self) -> Mapping[str, str]:
        """Checks of ``fixedpoint.testing`` that this solver fails by its nature, each with the fault.

        For solvers of other libraries, wrapped as they are, and options that cannot but fail one. A fault that is gone
        (with other options than the default ones) is told by the report.
        """
        return {}

    @abstractmethod
    def solve(
        self,
        f: Evaluator,
        z0: Float[Tensor, "B D"],
        termination: Termination,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Solution:
        """Find a fixed point from ``z0``, evaluating the problem through ``f`` alone."""


class AdaptsSolver(ABC):
    """A problem that wants any solver it is given wrapped in one that knows its structure."""

    @abstractmethod
    def adapt(self, solver: Solver) -> Solver:
        """The solver that the problem is solved by."""


class Slides(ABC):
    """A step solver that can accelerate a window that slides along a chain."""

    @abstractmethod
    def slide(self, f: Evaluator, state: Any, shift: Shift) -> Any:
        """Move all that is kept of earlier points along with the blocks of the state."""

    @abstractmethod
    def renew(self, state: Any, at: Evaluated, blocks: Bool[Tensor, "B blocks"]) -> Any:
        """Take it that in these blocks the point before ``at`` is not comparable with it."""


class StepSolver(Solver, Generic[S]):
    """A solver that proposes one point after another; the loop does all the rest.

    ``S`` is its state: whatever it keeps between steps, held per row along the first dimension.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"decisions"})

    affine: ClassVar[bool] = False
    """Takes the map for affine: its solution may be any distance away, and is reached in one long step."""

    lasting: ClassVar[bool] = False
    """Ends by itself after a known number of rounds, whatever the error does meanwhile; the answer is the latest
    point, not the best."""

    def solve(
        self,
        f: Evaluator,
        z0: Float[Tensor, "B D"],
        termination: Termination,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Solution:
        return iterate(self, f, z0, termination, on_round)

    def begin(self, f: Evaluator, z0: Float[Tensor, "B D"]) -> Evaluated:
        """The first evaluated point: the start, in memory that is not the user's."""
        return f(z0.clone())

    def rounds_bound(self, f: Evaluator) -> int:
        """Limit on rounds where the termination sets none."""
        return 1000

    @property
    def narrows(self) -> bool:
        """Whether the loop may go on with some of its rows alone, once the others have ended.

        It may where every tensor of the state, in dataclasses, tuples, lists and dicts, has the rows for its first
        dimension, and nothing is kept elsewhere.
        """
        return False

    @abstractmethod
    def init(self, f: Evaluator, at: Evaluated) -> S:
        """The state before the first step."""

    @abstractmethod
    def step(self, f: Evaluator, at: Evaluated, state: S) -> tuple[Float[Tensor, "B D"] | Evaluated, S]:
        """The next proposal, or the next point already evaluated, and the new state.

        Rows must not mix, and nothing may wait for the device (no ``.item()``, no boolean indexing).
        """

    def reset(self, state: S, rows: Bool[Tensor, " B"]) -> S:
        """Forget the history of ``rows``: the loop has put them back to their best point."""
        return state

    def extras(self, state: S) -> dict[str, Any]:
        """What the solution is to carry from the final state."""
        return {}

    def inverse(self, state: S) -> InverseEstimate:
        """The estimate of ``(J - I)^{-1}`` in the final state; of solvers that provide ``"inverse"``.

        Row by row it belongs to the point that is returned: what a row is given after it has finished takes no part.
        """
        raise TypeError(f"{type(self).__name__} keeps no estimate of the inverse Jacobian")
