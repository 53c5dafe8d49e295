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
from torch.utils._pytree import tree_leaves, tree_map

from fixedpoint.api import solve
from fixedpoint.core.layout import Layout
from fixedpoint.core.loop import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.status import ConvergenceError, Status
from fixedpoint.core.termination import Termination
from fixedpoint.core.transfer import to_device
from fixedpoint.gradients.estimator import GradientEstimator
from fixedpoint.gradients.implicit import Implicit
from fixedpoint.layers.problem import CellProblem
from fixedpoint.layers.statistics import Statistics
from fixedpoint.layers.warm import WarmStart
from fixedpoint.registry import registry

__all__ = ["Equilibrium", "EquilibriumLayer", "EquilibriumWarning"]


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
    normalisation in training mode. Rows that are done are left out of the calls that follow: tensors among the inputs
    whose first dimension is the batch are taken row by row, all others belong to every row.

    Parameters
    ----------
    cell
        A module of the state and the inputs; returns a value of the state's structure and shapes: a tensor, or a
        tuple, list or dict of tensors.
    state
        The start, a function of the inputs; by default zeros like the first input.
    solver
        A registered name, a mapping of ``name`` and options, or a solver.
    gradient
        Likewise; by default implicit, its adjoint equation solved to the termination of the training.
    training, evaluation
        When a row is done, in training mode and in evaluation mode.
    warm_start
        Solves in training mode begin where the last ones of the same ``samples`` ended; those in evaluation mode do
        where they are given ``samples``, too.
    corrections
        Numbers of rounds, from 1, after which the state is kept for a loss of its own: sparse fixed-point correction
        (Bai, Geng, Savani & Kolter 2022, "Deep equilibrium optical flow estimation", section 3.2). A solve that ends
        before leaves them out.
    on_failure
        What happens where rows did not converge: a warning, an exception, or nothing. ``statistics`` counts them.

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
        self.cell = cell
        self.state = state
        self.solver: Solver = registry.create("solver", solver)
        self.terminations = {
            "training": training or Termination(rtol=1e-3, max_rounds=50),
            "evaluation": evaluation or Termination(rtol=1e-4, max_rounds=100),
        }
        self.gradient: GradientEstimator = (
            Implicit(termination=self.terminations["training"])
            if gradient is None
            else registry.create("gradient", gradient)
        )
        self.warm_start = warm_start
        self.corrections = tuple(corrections)
        self.on_failure = on_failure
        self.statistics = {"training": Statistics(), "evaluation": Statistics()}

    def forward(self, *inputs: Any, start: Any = None, samples: Tensor | None = None) -> Any:
        """The fixed point.

        Parameters
        ----------
        inputs
            What the cell takes beside the state.
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
        return self.solve(*inputs, start=start, samples=samples).z

    def solve(self, *inputs: Any, start: Any = None, samples: Tensor | None = None) -> Equilibrium:
        """The fixed point, with all that is known of it; parameters as for :meth:`forward`."""
        if not inputs:
            raise TypeError("an equilibrium layer wants at least one input")
        mode = "training" if self.training else "evaluation"
        problem = CellProblem(self.cell, inputs, self._begin(inputs, start, samples))
        kept: dict[int, Tensor] = {}

        def keep(progress: Progress) -> None:
            if progress.round in self.corrections and progress.latest is not None:
                kept.setdefault(progress.round, progress.latest.detach().clone())

        solution = solve(
            problem,
            solver=self.solver,
            gradient=self.gradient,
            termination=self.terminations[mode],
            on_round=keep if self.corrections else None,
        )
        self.statistics[mode].add(solution)
        self._tell(solution)
        if self.warm_start is not None and samples is not None and self.training:
            lost = np.array([status in (Status.DIVERGED, Status.NONFINITE) for status in solution.status])
            good = to_device(~lost, self.warm_start.states.device)
            state = solution.state.detach().to(self.warm_start.states.device)
            self.warm_start.keep(samples, state, good)
        corrections = tuple(problem.value(problem.layout.unpack(kept[number])) for number in sorted(kept))
        return Equilibrium(solution.z, problem.value, solution, corrections)

    def _begin(self, inputs: tuple[Any, ...], start: Any, samples: Tensor | None) -> Any:
        """Where the solve begins."""
        if start is None:
            start = torch.zeros_like(_first(inputs)) if self.state is None else self.state(*inputs)
        start = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, start)
        if self.warm_start is None:
            if samples is not None:
                raise ValueError("samples are for a layer with a warm_start, which this one has not")
            return start
        if samples is None:
            if self.training:
                raise ValueError("a layer with a warm_start wants samples=, the numbers of the rows' samples, to train")
            return start
        layout = Layout.of(start, "independent")
        cold = layout.pack(start, "the start")
        begun = self.warm_start.start(samples, cold.to(self.warm_start.states.device))
        return layout.unpack(begun.to(cold.device))

    def _tell(self, solution: Solution) -> None:
        failed = int((~solution.converged).sum()) if self.on_failure != "ignore" else 0
        if not failed:
            return
        sentence = (
            f"{failed} of {len(solution.status)} rows of an equilibrium layer did not converge (relative error "
            f"{solution.relative_error.max():.1e}):\n{solution.message}"
        )
        if self.on_failure == "raise":
            raise ConvergenceError(sentence)
        warnings.warn(EquilibriumWarning(sentence), stacklevel=4)

    def extra_repr(self) -> str:
        """Its options."""
        parts = [f"solver={self.solver}", f"gradient={self.gradient}"]
        parts += [f"{mode}={rule}" for mode, rule in self.terminations.items()]
        return ",\n".join(parts)


def _first(inputs: tuple[Any, ...]) -> Tensor:
    """The first tensor among the inputs."""
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor):
            return leaf
    raise TypeError("without state=, an equilibrium layer wants a tensor among its inputs to begin with zeros like it")
