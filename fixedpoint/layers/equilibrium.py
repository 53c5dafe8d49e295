r"""EquilibriumLayer: a layer whose output is the fixed point of a cell, ``z* = cell(z*, x)``.

(Bai, Kolter & Koltun 2019, "Deep equilibrium models".) What solves it, how its gradient is computed, and when either
is done are arguments; what changes from call to call of the cell is held still within a solve
(``fixedpoint.layers.held``); solves may begin where those of the same samples have ended before
(``fixedpoint.layers.warm``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fixedpoint.api import solve
from fixedpoint.core.compiling import outside_of_graphs
from fixedpoint.core.layout import Layout, Rows
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.status import ConvergenceError, Status
from fixedpoint.core.termination import Termination
from fixedpoint.core.transfer import to_device
from fixedpoint.gradients.estimator import GradientEstimator
from fixedpoint.gradients.implicit import Implicit
from fixedpoint.layers.empty import is_empty, solution_of_none
from fixedpoint.layers.inputs import Inputs, Shared, shared_paths
from fixedpoint.layers.problem import CellProblem
from fixedpoint.layers.statistics import Statistics
from fixedpoint.layers.warm import WarmStart
from fixedpoint.registry import registry

__all__ = ["Equilibrium", "EquilibriumLayer", "EquilibriumWarning"]

# How a row ends whose point is no start for the next solve.
_LOST = (Status.DIVERGED, Status.NONFINITE, Status.MIXED)


class EquilibriumWarning(UserWarning):
    """A row of a layer's output is no fixed point: the solve ended before it was one."""


@dataclass(frozen=True)
class Equilibrium:
    """A layer's solve.

    Attributes
    ----------
    z
        The fixed point, in the structure of the state; differentiable.
    f
        The map that was solved: the cell with its inputs, and with all that was held still.
    solution
        How it went.
    corrections
        States on the way to it, each one evaluation of ``f`` after the round that was asked for, and differentiable
        through that evaluation alone: for a loss on each of them.
    """

    z: Any
    f: Callable[[Any], Any]
    solution: Solution
    corrections: tuple[Any, ...] = ()


class EquilibriumLayer(nn.Module):
    """The fixed point of ``cell(z, *inputs)`` as a layer.

    Every row of the state's first dimension is a fixed point of its own, so the cell must not mix them: no batch
    normalisation in training mode. Rows that are done are left out of the calls that follow, and of the inputs that
    have a row for each of them: tensors, in whatever structure, whose first dimension is the batch. All others belong
    to every row. One whose first dimension only happens to be the batch does, too; ``shared`` says so. Where nothing is
    said, the answer is held against the cell's value of all rows, and where that is another one, the solve is made
    again with all rows in every call, and a warning says what to state.

    Parameters
    ----------
    cell
        A module of the state and the inputs; returns a value of the state's structure and shapes: a tensor, or a
        tuple, list or dict of tensors.
    state
        The start, a function of the inputs, keyword ones included; by default zeros like the first input.
    solver
        A registered name, a mapping of ``name`` and options, or a solver.
    gradient
        Likewise; by default implicit, its adjoint equation solved as exactly as the layer.
    training, evaluation
        When a row is done, in training mode and in evaluation mode.
    warm_start
        Solves in training mode begin where the last ones of the same ``samples`` ended; those in evaluation mode do
        where they are given ``samples``, too.
    corrections
        Numbers of rounds, from 1, after which the state is kept for a loss of its own: sparse fixed-point correction
        (Bai, Geng, Savani & Kolter 2022, "Deep equilibrium optical flow estimation", section 3.2). There are as many
        states as numbers: where the solve ended before, or tells no state in that round, the next one it has told, in
        the end the fixed point itself.
    on_failure
        What happens where rows did not converge: a warning, an exception, or nothing. ``statistics`` counts them.
    shared
        Which inputs belong to every row whatever their size: positions from 0, names, or paths into a structure, as
        ``("mask", (1, "memory"))``. It is a statement of all inputs: those that are not named and have the batch for
        their first dimension are taken row by row. None: nothing is stated.
    rows
        ``"independent"``: rows of the state's first dimension. ``"joint"``: they depend on one another (nodes of a
        graph, attention across the batch), and the whole state is one fixed point, judged as one.

    Attributes
    ----------
    statistics
        What the solves took, in training mode, and in evaluation mode: ``layer.statistics["training"]``.

    Examples
    --------
    >>> class Cell(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.linear = torch.nn.Linear(8, 8)
    ...
    ...     def forward(self, z, x):
    ...         return torch.tanh(0.5 * self.linear(z) + x)
    >>> layer = EquilibriumLayer(Cell())
    >>> layer(torch.ones(4, 8)).shape
    torch.Size([4, 8])
    """

    def __init__(
        self,
        cell: nn.Module,
        state: Callable[..., Any] | None = None,
        *,
        solver: str | Mapping[str, Any] | Solver = "anderson",
        gradient: str | Mapping[str, Any] | GradientEstimator | None = None,
        training: Termination | None = None,
        evaluation: Termination | None = None,
        warm_start: WarmStart | None = None,
        corrections: Sequence[int] = (),
        on_failure: Literal["warn", "raise", "ignore"] = "warn",
        shared: Shared | None = None,
        rows: Rows = "independent",
    ) -> None:
        super().__init__()
        if not isinstance(cell, nn.Module):
            raise TypeError(f"cell must be a torch.nn.Module, got {type(cell).__name__}")
        if state is not None and not callable(state):
            raise TypeError(f"state must be a function of the inputs, got {type(state).__name__}")
        if on_failure not in ("warn", "raise", "ignore"):
            raise ValueError(f"on_failure must be 'warn', 'raise' or 'ignore', got {on_failure!r}")
        if list(corrections) != sorted({number for number in corrections if isinstance(number, int) and number >= 1}):
            raise ValueError(f"corrections must be increasing numbers of rounds, from 1, got {corrections!r}")
        if rows not in ("independent", "joint"):
            raise ValueError(f"rows must be 'independent' or 'joint', got {rows!r}")
        if rows == "joint" and warm_start is not None:
            raise ValueError("a layer with a warm_start requires independent rows: what is kept is kept row by row")
        self.cell = cell
        self.shared = shared_paths(cell, shared)
        self.rows: Rows = rows
        self.state = state
        self.solver: Solver = registry.create("solver", solver)
        self.terminations = {
            "training": training or Termination(rtol=1e-3, max_rounds=50),
            "evaluation": evaluation or Termination(rtol=1e-4, max_rounds=100),
        }
        self.gradient: GradientEstimator = Implicit() if gradient is None else registry.create("gradient", gradient)
        self.warm_start = warm_start
        self.corrections = tuple(corrections)
        self.on_failure = on_failure
        self.statistics = {"training": Statistics(), "evaluation": Statistics()}

    @outside_of_graphs
    def forward(self, *inputs: Any, start: Any = None, samples: Tensor | None = None, **keywords: Any) -> Any:
        """The fixed point; of an empty batch, none.

        Parameters
        ----------
        inputs, keywords
            What the cell takes beside the state, as the cell is to be given it.
        start
            Where the solve begins, in the structure of the state; by default what ``state`` says.
        samples
            Shape ``(B,)``, integers: which samples the rows are, for ``warm_start``.

        Raises
        ------
        ConvergenceError
            Where a row did not converge and ``on_failure`` is ``"raise"``.
        ValueError, TypeError
            For inputs, a start or samples that are not as described.
        """
        return self._equilibrium(inputs, keywords, start, samples).z

    @outside_of_graphs
    def solve(self, *inputs: Any, start: Any = None, samples: Tensor | None = None, **keywords: Any) -> Equilibrium:
        """The fixed point, with all that is known of it; parameters as for :meth:`forward`."""
        return self._equilibrium(inputs, keywords, start, samples)

    def _equilibrium(
        self, inputs: tuple[Any, ...], keywords: Mapping[str, Any], start: Any, samples: Tensor | None
    ) -> Equilibrium:
        if not inputs and not keywords:
            raise TypeError("an equilibrium layer requires at least one input")
        given = Inputs.of(self.cell, inputs, keywords, self.shared)
        begun = self._begin(given, start, samples)
        if is_empty(begun):
            return self._of_none(given, begun)
        problem = CellProblem(self.cell, given, begun, self.rows)
        solution, kept = self._solved(problem)
        if self.shared is None and problem.taking.used and "apart" in solution.extras:
            before, problem = solution, problem.together()
            solution, kept = self._solved(problem)
            solution.counts.add(before.counts)
            if "apart" not in solution.extras:  # nothing is wrong with the cell
                self._tell_shared(given, len(before.status))
        elif problem.taking.refusal is not None and "apart" not in solution.extras:
            self._tell_shared(given, len(solution.status), problem.taking.refusal)
        self.statistics[self._mode].add(solution)
        self._tell(solution, problem)
        if self.warm_start is not None and samples is not None and self.training:
            lost = np.array([status in _LOST for status in solution.status])
            good = to_device(~lost, self.warm_start.states.device)
            state = solution.state.detach().to(self.warm_start.states.device)
            self.warm_start.keep(samples, state, good)
        corrections = tuple(problem.value(problem.layout.unpack(state)) for state in kept)
        return Equilibrium(solution.z, problem.value, solution, corrections)

    @property
    def _mode(self) -> str:
        return "training" if self.training else "evaluation"

    def _solved(self, problem: CellProblem) -> tuple[Solution, list[Tensor]]:
        """The solution, and the states on the way that corrections are made of."""
        kept: list[Tensor] = []

        def keep(progress: Progress) -> None:
            due = [number for number in self.corrections[len(kept) :] if number <= progress.round]
            if due and progress.latest is not None:
                kept.extend([progress.latest.detach().clone()] * len(due))

        solution = solve(
            problem,
            solver=self.solver,
            gradient=self.gradient,
            termination=self.terminations[self._mode],
            on_round=keep if self.corrections else None,
        )
        solution.counts.computed += problem.taking.beside
        missing = len(self.corrections) - len(kept)
        return solution, [*kept, *[solution.fstate.detach()] * missing]

    def _of_none(self, given: Inputs, start: Any) -> Equilibrium:
        """That of an empty batch: no rows, of the cell's own making, so that parameters have the gradient zero."""

        def f(z: Any) -> Any:
            return self.cell(z, *given.positional, **given.keywords)

        z = f(start)
        solution = solution_of_none(start, z, self.solver)
        return Equilibrium(z, f, solution, (z,) * len(self.corrections))

    def _begin(self, given: Inputs, start: Any, samples: Tensor | None) -> Any:
        """Where the solve begins."""
        if start is None and self.state is not None:
            start = self.state(*given.positional, **given.keywords)
        elif start is None:
            start = torch.zeros_like(_first(given))
        start = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, start)
        if self.warm_start is None:
            if samples is not None:
                raise ValueError("samples are for a layer with a warm_start, which this one has not")
            return start
        if is_empty(start):
            return start
        if samples is None:
            if self.training:
                raise ValueError(
                    "a layer with a warm_start requires samples=, the numbers of the rows' samples, to train"
                )
            return start
        layout = Layout.of(start, "independent")
        cold = layout.pack(start, "the start")
        begun = self.warm_start.start(samples, cold.to(self.warm_start.states.device))
        return layout.unpack(begun.to(cold.device))

    def _tell(self, solution: Solution, problem: CellProblem) -> None:
        failed = int((~solution.converged).sum()) if self.on_failure != "ignore" else 0
        if not failed:
            return
        sentence = (
            f"{failed} of {len(solution.status)} rows of an equilibrium layer did not converge (relative error "
            f"{solution.relative_error.max():.1e}):\n{solution.message}"
        )
        if problem.taking.used and Status.MIXED in solution.status:
            taken = ", ".join(problem.inputs.by_row(problem.layout.rows))
            sentence += (
                f"\nInputs {taken} were taken row by row; one that belongs to every row is to be named in shared="
            )
        if self.on_failure == "raise":
            raise ConvergenceError(sentence)
        warnings.warn(EquilibriumWarning(sentence), stacklevel=5)

    def _tell_shared(self, given: Inputs, rows: int, refusal: Exception | None = None) -> None:
        """Warn that all rows had to be called together, and why."""
        listed = ", ".join(given.by_row(rows)) or "none"
        why = "it gives other values" if refusal is None else f"it raises {type(refusal).__name__}: {refusal}"
        warnings.warn(
            EquilibriumWarning(
                f"the cell cannot be called with some of its rows alone ({why}), so all {rows} were in every call: "
                f"right, but slower. Tensors taken row by row, since their first dimension is {rows}: inputs {listed}. "
                "State which of them belong to every row: EquilibriumLayer(cell, shared=[...])"
            ),
            stacklevel=5,
        )

    def extra_repr(self) -> str:
        """Its options."""
        parts = [f"solver={self.solver}", f"gradient={self.gradient}"]
        parts += [f"{mode}={rule}" for mode, rule in self.terminations.items()]
        return ",\n".join(parts)


def _first(given: Inputs) -> Tensor:
    """The first tensor among the inputs, which zeros can be a state like."""
    for leaf in given.tensors:
        if not (leaf.is_floating_point() or leaf.is_complex()):
            raise TypeError(
                "without state=, an equilibrium layer begins with zeros like its first input, which must then be of a "
                f"floating-point or complex dtype, got {leaf.dtype}; say with state= what the state is"
            )
        return leaf
    raise TypeError(
        "without state=, an equilibrium layer requires a tensor among its inputs to begin with zeros like it"
    )
