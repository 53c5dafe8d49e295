r"""The cell of the simplest deep equilibrium model.

    z = tanh(W z + b),     W_ij ~ N(0, gain^2 / D),   b_i ~ N(0, input_scale^2)

(Bai, Kolter & Koltun 2019, "Deep equilibrium models", section 3, with the tanh cell of a recurrent network). With a
gain above 1 the map is not a contraction at zero, and without input it is chaotic (Sompolinsky, Crisanti & Sommers
1988, "Chaos in random neural networks"). Input saturates the units and makes the fixed point attracting again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.options import option
from fixedpoint.tasks.task import Context
from fixedpoint_classic.gradient import gradient_metrics
from fixedpoint_classic.newton import newton, picard
from fixedpoint_classic.problem import ClassicProblem, RandomTask, apply

__all__ = ["TanhCell", "TanhCellProblem"]


@dataclass(eq=False)
class TanhCellProblem(ClassicProblem):
    """``f(z) = tanh(W z + b)``.

    Attributes
    ----------
    weight
        ``W``, shape ``(B, D, D)``.
    offset
        ``b``, shape ``(B, D)``.
    """

    weight: Float[Tensor, "B D D"]
    offset: Float[Tensor, "B D"]

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return torch.tanh(apply(self.weight, z) + self.offset)

    def jacobian(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D D"]:
        return (1 - self(z).square()).unsqueeze(2) * self.weight

    def reference(self) -> Float[Tensor, "B D"]:
        """The fixed point that Newton's method finds after 300 plain iterations; the map may have others."""
        return newton(self, picard(self, 300))


@dataclass(frozen=True)
class TanhCell(RandomTask):
    """Random tanh cells, from the start 0.

    With a gradient estimator, the metric ``gradient_error`` compares it with the exact gradient with respect to ``b``.
    """

    size: int = option(256, ge=1, help="D: units")
    gain: float = option(1.5, ge=0.0, help="standard deviation of the weights, times the root of D")
    input_scale: float = option(1.0, ge=0.0, help="standard deviation of the input")

    def draw(self, generator: torch.Generator) -> TanhCellProblem:
        weight = torch.randn(1, self.size, self.size, generator=generator, dtype=torch.float64, device="cpu")
        offset = self.input_scale * torch.randn(1, self.size, generator=generator, dtype=torch.float64, device="cpu")
        return TanhCellProblem(torch.zeros_like(offset), weight * (self.gain / self.size**0.5), offset)

    def differentiated(
        self, problem: ClassicProblem, exact: Float[Tensor, "B D"], context: Context
    ) -> dict[str, float]:
        return {} if context.gradient is None else gradient_metrics(problem, exact, context)
