"""Base classes of the problems and tasks of this package: problems with a reference solution, and their judgement."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.core.layout import Layout
from fixedpoint.core.options import OptionError, option
from fixedpoint.core.problem import HasTake, Problem
from fixedpoint.core.reduce import row_norms
from fixedpoint.core.solution import Solution
from fixedpoint.tasks.task import Context, Judgement, SolveTask

__all__ = ["ClassicProblem", "ClassicTask", "RandomTask", "apply"]

# Largest number of products that `apply` holds in memory at once. The order of summation does not depend on it.
_ENTRIES = 1 << 18


def apply(matrix: Float[Tensor, "*A D E"], z: Float[Tensor, "*B E"]) -> Float[Tensor, "*C D"]:
    """``matrix @ z`` with leading dimensions broadcast; every entry is summed in the same order whatever the batch.

    A matrix kernel may round a row in a batch differently from the same row alone. Elementwise products and sums along
    the last dimension do not.
    """
    # The sums must run along contiguous memory: for other layouts of the factors the layout of their product, and with
    # it the order of summation, would depend on the batch.
    z = z.contiguous()
    matrix = matrix if matrix.stride(-1) == 1 else matrix.contiguous()
    rows = max(z[..., 0].numel(), matrix[..., 0, 0].numel())
    width = max(_ENTRIES // max(rows * z.shape[-1], 1), 1)
    parts = [(part * z.unsqueeze(-2)).sum(-1) for part in matrix.split(width, dim=-2)]
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


@dataclass(eq=False)
class ClassicProblem(Problem, HasTake):
    """A problem given by tensors whose first dimension is the batch.

    Attributes
    ----------
    start
        The start, shape ``(B, D)``.
    """

    layout: Layout = field(init=False, repr=False)
    start: Float[Tensor, "B D"]

    def __post_init__(self) -> None:
        self.layout = Layout.of(self.start.detach(), "independent")

    @abstractmethod
    def reference(self) -> Float[Tensor, "B D"]:
        """The solution, computed without a fixed-point solver. Requires a problem in float64."""

    def error(self, z: Float[Tensor, "B D"], exact: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """The distance of ``z`` from the solution, relative to the solution's norm unless that is zero; float64."""
        size = row_norms(exact)
        return row_norms(z.double() - exact.double()) / torch.where(size > 0, size, 1.0)

    def checks(self, z: Float[Tensor, "B D"]) -> dict[str, Float[Tensor, " B"]]:
        """Defects of identities that hold exactly at the solution, by name."""
        return {}

    def jacobian(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D D"]:
        """``df/dz`` of every row. This default takes ``D`` backward passes."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self(z)
            rows = [torch.autograd.grad(value[:, i].sum(), z, retain_graph=True)[0] for i in range(z.shape[1])]
        return torch.stack(rows, dim=1)

    def initial(self) -> Float[Tensor, "B D"]:
        return self.start.clone()

    def take(self, rows: Int[Tensor, " k"]) -> Self:
        return replace(self, **{name: value[rows] for name, value in self._tensors().items()})

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Self:
        """The same problem in another dtype and on another device; the coefficients are rounded to that dtype."""
        return replace(
            self,
            **{
                name: value.to(device=device, dtype=dtype if value.is_floating_point() else None)
                for name, value in self._tensors().items()
            },
        )

    def beside(self, others: Sequence[Self]) -> Self:
        """The problem with the rows of this problem and of ``others``, which have the same type and size."""
        tensors = [problem._tensors() for problem in (self, *others)]
        joined: dict[str, Any] = {name: torch.cat([each[name] for each in tensors]) for name in tensors[0]}
        return replace(self, **joined)

    def starting_at(self, start: Float[Tensor, "B D"]) -> Self:
        """The same problem with another start."""
        return replace(self, start=start)

    def _tensors(self) -> dict[str, Any]:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.init}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class ClassicTask(SolveTask):
    """A task that builds a problem in float64, casts it, and judges solutions by its reference and identities."""

    dtype: Literal["float32", "float64"] = option("float64", help="dtype of the states")
    device: str = option("cpu", help="device of the states")

    @abstractmethod
    def build(self, seed: int) -> ClassicProblem:
        """The problem for a seed, in float64, on the CPU."""

    def problem(self, seed: int) -> ClassicProblem:
        return self.build(seed).to(getattr(torch, self.dtype), self.device)

    def judge(self, problem: Problem, solution: Solution, context: Context) -> Judgement:
        assert isinstance(problem, ClassicProblem)  # made by ``problem``
        # The reference is always that of the problem in float64, whatever the dtype of the solve.
        exact = context.once((self, context.seed, "reference"), lambda: self.build(context.seed).reference())
        state = solution.state.detach()
        metrics = {"relative_error": float(problem.error(state, exact.to(state.device)).amax())}
        metrics |= {name: float(defect.amax()) for name, defect in problem.checks(state).items()}
        return Judgement(metrics | self.differentiated(problem, exact.to(state.device), context))

    def differentiated(
        self, problem: ClassicProblem, exact: Float[Tensor, "B D"], context: Context
    ) -> dict[str, float]:
        """Metrics of the gradient estimator of the context, for tasks that know the gradient of their solution."""
        return {}

    def refuse(self, name: str, reason: str) -> OptionError:
        """The error for an option with a wrong value."""
        return OptionError(type(self).__name__, name, reason)


@dataclass(frozen=True)
class RandomTask(ClassicTask):
    """A task whose rows are drawn one after another, so that a row does not depend on the number of rows."""

    batch: int = option(1, ge=1, help="problems solved at once")

    @abstractmethod
    def draw(self, generator: torch.Generator) -> ClassicProblem:
        """Draw the next row, in float64, on the CPU."""

    def build(self, seed: int) -> ClassicProblem:
        generator = torch.Generator().manual_seed(seed)
        rows = [self.draw(generator) for _ in range(self.batch)]
        return rows[0].beside(rows[1:])
