"""Solver: what finds a fixed point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import Options
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.core.termination import Termination

__all__ = ["Solver"]


class Solver(Options, ABC):
    """A method for ``z = f(z)``: a frozen dataclass of options, comparable and printable.

    ``needs`` and ``provides`` are names by which a run finds out, before it starts, which solver cannot go with which
    problem or gradient estimator. They are asked of the instance: where they hang on the options, ``by_options``
    (``fixedpoint.core.options``) makes them of these. Estimators ask for ``"inverse"`` (an estimate of the inverse
    Jacobian, see :meth:`.StepSolver.inverse`) and ``"decisions"`` (that the loop is the library's, and its steps can be
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
