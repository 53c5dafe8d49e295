"""The base class of all solvers, :class:`Solver`."""

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

    Attributes
    ----------
    needs
        Abilities that the solver requires of a problem, by name; a task lists those of its problems in ``provides``.
    provides
        What the solver offers to gradient estimators, by name: ``"inverse"``, an estimate of the inverse Jacobian (see
        :meth:`.StepSolver.inverse`), or ``"decisions"``, which says that the library runs the loop and that its steps
        can be repeated while autograd records.

    A run compares these names before it starts, and skips combinations that do not match. It reads them from the
    instance: where they depend on the options, declare them with ``by_options`` (``fixedpoint.core.options``).
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = frozenset()

    @property
    def known_faults(self) -> Mapping[str, str]:
        """Conformance checks of ``fixedpoint.testing`` that this solver fails by design: name of the check to reason.

        A reason is a string, or a :class:`.Fault` where the failure is an exception. For wrapped solvers of other
        libraries, and for options that cannot pass a check. A listed check that passes after all, for example with
        other options, is reported as an unexpected pass.
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
        """Find a fixed point of every row.

        Parameters
        ----------
        f
            The evaluator. A solver calls the problem only through it.
        z0
            The start, shape ``(B, D)``, of the dtype of ``f.layout``. It must not be written into.
        termination
            The stopping rule.
        on_round
            Called with a :class:`.Progress` after every round that ends with a judged point.

        Returns
        -------
        Solution
            The judged point, with a status for every row. A row that does not converge raises nothing.
        """
