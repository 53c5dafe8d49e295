r"""EquilibriumLayer: a layer whose output is the fixed point of a cell, ``z* = cell(z*, x)``.

(Bai, Kolter & Koltun 2019, "Deep equilibrium models".) The solver, the gradient estimator and the stopping rules are
arguments. Parametrised weights and random numbers of the cell stay the same in all calls of one solve
(``fixedpoint.layers.held``). A solve may begin at the last fixed points of the same samples
(``fixedpoint.layers.warm``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fixedpoint.api import solve
from fixedpoint.core.compiling import outside_of_graphs
from fixedpoint.core.inference import outside_of_inference_mode
from fixedpoint.core.layout import Layout, Rows
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.status import ConvergenceError, Status
from fixedpoint.core.termination import Termination
from fixedpoint.core.transfer import to_device
from fixedpoint.core.warning import warn_caller
from fixedpoint.gradients.estimator import GradientEstimator
from fixedpoint.gradients.implicit import Implicit
from fixedpoint.layers.empty import empty_solution, is_empty
from fixedpoint.layers.inputs import Inputs, Shared, shared_paths
from fixedpoint.layers.problem import CellProblem
from fixedpoint.layers.statistics import Statistics
from fixedpoint.layers.warm import WarmStart
from fixedpoint.registry import registry

__all__ = ["Equilibrium", "EquilibriumLayer", "EquilibriumWarning"]

# Statuses of rows whose last point must not be used as a warm start.
_LOST = (Status.DIVERGED, Status.NONFINITE, Status.MIXED)


class EquilibriumWarning(UserWarning):
    """Rows of a layer's output are not fixed points, or the cell could not be called with only some of the rows."""


@dataclass(frozen=True)
class Equilibrium:
    """The result of one solve of a layer.

    Attributes
    ----------
    z
        The fixed point, in the structure of the state; differentiable.
    f
        The map that was solved, a function of the state: the cell with its inputs, weights and random numbers fixed.
    solution
        The ``Solution``, with statuses, errors and counts.
    corrections
        One state for each of the layer's ``corrections``: one evaluation of ``f`` at the state after that round, and
        differentiable through that evaluation only. Each may have a loss of its own.
    """

    z: Any
    f: Callable[[Any], Any]
    solution: Solution
    corrections: tuple[Any, ...] = ()


class EquilibriumLayer(nn.Module):
    """The fixed point of ``cell(z, *inputs)`` as a layer.

    Each row of the state, along its first dimension, is a separate fixed point. The cell must therefore not mix rows,
    as batch normalisation in training mode would. Rows that are done are left out of later calls. They are also taken
    out of the inputs that have one row for each row of the state: tensors, in any structure, whose first dimension is
    the batch size. All other inputs belong to every row. If the first dimension of a tensor only happens to equal the
    batch size, name it in ``shared``. If ``shared`` is None, the answer is compared with the cell's value for all rows
    together; if these differ, the solve is repeated with all rows in every call, and a warning asks for ``shared``.

    Parameters
    ----------
    cell
        A module called as ``cell(z, *inputs, **keywords)``. It returns a value with the structure, shapes and dtypes of
        the state: a tensor, or a tuple, list or dict of tensors.
    state
        A function of the inputs, including keyword inputs, that returns the start; by default zeros like the first
        input.
    solver
        A registered name, a mapping with ``name`` and options, or a solver.
    gradient
        The gradient estimator, given like the solver; by default implicit, solved as exactly as the layer.
    training, evaluation
        The stopping rules in training and in evaluation mode. Default: ``rtol`` 1e-3 and at most 50 rounds; ``rtol``
        1e-4 and at most 100 rounds.
    warm_start
        In training mode a solve begins at the last states of the same ``samples``. In evaluation mode it does so only
        if it is given ``samples``.
    corrections
        Increasing numbers of rounds, from 1, after which the state is kept for a separate loss: sparse fixed-point
        correction (Bai, Geng, Savani & Kolter 2022, "Deep equilibrium optical flow estimation", section 3.2). If the
        solver reports no state after that round, the next reported state is kept; if there is none, the fixed point.
    on_failure
        What happens if rows do not converge: a warning, an exception, or nothing. ``statistics`` counts these rows.
    shared
        The inputs that belong to every row whatever their size: positions from 0, names, or paths into a structure, as
        in ``("mask", (1, "memory"))``. Inputs not named here are taken row by row if their first dimension is the batch
        size. If None, which inputs are shared is not known, and is checked as described above.
    rows
        ``"independent"``: the rows along the first dimension of the state are separate fixed points. ``"joint"``: they
        depend on one another (nodes of a graph, attention across the batch), and the whole state is one fixed point.

    Attributes
    ----------
    statistics
        A ``Statistics`` of the solves in each mode: ``statistics["training"]`` and ``statistics["evaluation"]``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, or if ``rows`` is ``"joint"`` and there is a ``warm_start``.

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
        """Return the fixed point, in the structure of the state. An empty batch gives an empty result.

        Parameters
        ----------
        inputs, keywords
            The inputs of the cell after the state, at least one.
        start
            The start of the solve, in the structure of the state. By default the start that ``state`` computes; samples
            for which the ``warm_start`` has a stored state begin at that state.
        samples
            Shape ``(B,)``, int32 or int64: the index of each row's sample. Only for a layer with a ``warm_start``, and
            required by it in training mode.

        Raises
        ------
        ConvergenceError
            If a row did not converge and ``on_failure`` is ``"raise"``.
        ValueError, TypeError
            If the inputs, the start or the samples are not as described.
        """
        return self._equilibrium(inputs, keywords, start, samples).z

    @outside_of_graphs
    def solve(self, *inputs: Any, start: Any = None, samples: Tensor | None = None, **keywords: Any) -> Equilibrium:
        """Return the fixed point with its solution; parameters and exceptions as for :meth:`forward`."""
        return self._equilibrium(inputs, keywords, start, samples)

    @outside_of_inference_mode
    def _equilibrium(
        self, inputs: tuple[Any, ...], keywords: Mapping[str, Any], start: Any, samples: Tensor | None
    ) -> Equilibrium:
        if not inputs and not keywords:
            raise TypeError("an equilibrium layer requires at least one input")
        given = Inputs.of(self.cell, inputs, keywords, self.shared)
        begun = self._begin(given, start, samples)
        if is_empty(begun):
            return self._of_empty_batch(given, begun)
        problem = CellProblem(self.cell, given, begun, self.rows)
        solution, kept = self._solved(problem)
        # Rows were called separately without a statement about the inputs, and the whole batch gives other values.
        if self.shared is None and problem.taking.used and "apart" in solution.extras:
            before, problem = solution, problem.together()
            solution, kept = self._solved(problem)
            solution.counts.add(before.counts)  # both solves were made, so both count
            if "apart" not in solution.extras:  # the cell is sound: only calls with some of its rows are wrong
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
        """Return the solution and the intermediate states from which the corrections are computed."""
        kept: list[Tensor] = []

        def keep(progress: Progress) -> None:
            due = [number for number in self.corrections[len(kept) :] if number <= progress.round]
            if due and progress.latest is not None:
                kept.extend([progress.latest.detach().clone()] * len(due))  # the solver reuses this memory

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

    def _of_empty_batch(self, given: Inputs, start: Any) -> Equilibrium:
        """The result for an empty batch. The cell is called, so that its parameters get a gradient of zero."""

        def f(z: Any) -> Any:
            return self.cell(z, *given.positional, **given.keywords)

        z = f(start)
        solution = empty_solution(start, z, self.solver)
        return Equilibrium(z, f, solution, (z,) * len(self.corrections))

    def _begin(self, given: Inputs, start: Any, samples: Tensor | None) -> Any:
        """Return the start of the solve, detached: it has no part in the gradient."""
        chosen = start is not None
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
        if chosen:  # the caller knows better than the memory, which keeps what comes of it
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
        warn_caller(EquilibriumWarning(sentence))

    def _tell_shared(self, given: Inputs, rows: int, refusal: Exception | None = None) -> None:
        """Warn that all rows had to be evaluated together, with the reason."""
        listed = ", ".join(given.by_row(rows)) or "none"
        why = "it gives other values" if refusal is None else f"it raises {type(refusal).__name__}: {refusal}"
        warn_caller(
            EquilibriumWarning(
                f"the cell cannot be called with some of its rows alone ({why}), so all {rows} were in every call: "
                f"right, but slower. Tensors taken row by row, since their first dimension is {rows}: inputs {listed}. "
                "State which of them belong to every row: EquilibriumLayer(cell, shared=[...])"
            )
        )

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        parts = [f"solver={self.solver}", f"gradient={self.gradient}"]
        parts += [f"{mode}={rule}" for mode, rule in self.terminations.items()]
        return ",\n".join(parts)


def _first(given: Inputs) -> Tensor:
    """The first tensor among the inputs, whose shape and dtype the default start takes."""
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
