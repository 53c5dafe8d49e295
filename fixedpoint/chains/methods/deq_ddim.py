r"""DEQ-DDIM as published, as a reference to compare with.

The joint map ``G(X) = X + M r`` uses the steps' own coefficients (``preconditioner`` "coefficient"; Pokle, Geng &
Kolter 2022, "Deep equilibrium approaches to diffusion models", eq. 9). Every state is mixed separately, like a row of
its own, from its last ``m`` points ``x_j``, their images ``g_j`` and ``D = [g_j - x_j]``:

    [ 0       1^T         ] [ nu    ]   [ 1 ]
    [ 1   D D^T + lambda I ] [ alpha ] = [ 0 ]      x+ = sum_j alpha_j g_j

This is the bordered form of Anderson acceleration in their published solver (after Bai, Kolter & Koltun's deep
equilibrium tutorial, 2020), with ``m = 5`` and ``lambda = 1e-3``. The ridge is absolute: near the solution it outweighs
the residuals, and the weights become uniform. There is no guard: no state takes its plain step and none becomes final,
so ``N`` rounds need not suffice.

The method is that of the paper; the counts, the error and the stopping rule are those of this library. The published
method stops after 15 rounds: ``max_rounds=15``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.chains.capabilities import HasCoefficients, undeclared
from fixedpoint.chains.problem import chain_of
from fixedpoint.chains.recurrence.linear import LinearPart
from fixedpoint.chains.slope.preconditioner import Coefficient
from fixedpoint.core.combine import add_combination
from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.history import History
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import option
from fixedpoint.core.problem import AbilityError
from fixedpoint.core.reduce import block_dots

__all__ = ["DEQDDIM", "DEQDDIMState"]


@dataclass(frozen=True)
class DEQDDIMState:
    """State of DEQ-DDIM.

    Attributes
    ----------
    linear
        The linear part of the joint map.
    history
        The last ``m`` points and their images.
    """

    linear: LinearPart
    history: History


@dataclass(frozen=True)
class DEQDDIM(StepSolver[DEQDDIMState]):
    """DEQ-DDIM as published: its joint map, with Anderson acceleration of each state alone and an absolute ridge."""

    memory: int = option(5, ge=1, help="m: number of points combined, the last one included")
    ridge: float = option(1e-3, ge=0.0, help="lambda: absolute ridge, added to the squared lengths of the changes")
    relaxation: float = option(1.0, gt=0.0, le=2.0, help="beta: weight of the images; the points have the rest")

    needs = frozenset({"chain", "coefficients"})

    @property
    def known_faults(self) -> dict[str, str]:
        return {"scale": "the ridge is absolute"} if self.ridge > 0 else {}

    def begin(self, f: Evaluator, z0: Float[Tensor, "B D"]) -> Evaluated:
        problem = chain_of(f.problem, "deq-ddim")
        if problem.coefficients() is None:
            lacks = undeclared(problem.chain, HasCoefficients, "has none")
            raise AbilityError(f"deq-ddim requires a chain that knows its coefficients, and this one {lacks}")
        return f(z0.clone())

    def init(self, f: Evaluator, at: Evaluated) -> DEQDDIMState:
        linear = Coefficient().linear_part(chain_of(f.problem, "deq-ddim"), at.z)
        assert isinstance(linear, LinearPart)
        return DEQDDIMState(linear, History.empty(at.z, self.memory, groups=2))

    def step(self, f: Evaluator, at: Evaluated, state: DEQDDIMState) -> tuple[Float[Tensor, "B D"], DEQDDIMState]:
        length = len(state.linear)
        image = at.z + state.linear.sweep(at.residual.unflatten(1, (length, -1))).flatten(1)
        history = state.history.push(at.z, image, valid=torch.ones_like(at.finite))
        points, images = history.columns
        alpha = _weights(images - points, history.valid, history.newest, length, self.ridge)
        proposal = add_combination(torch.zeros_like(at.z), images, self.relaxation * alpha)
        if self.relaxation != 1.0:
            proposal = add_combination(proposal, points, (1.0 - self.relaxation) * alpha)
        return proposal, replace(state, history=history)

    def reset(self, state: DEQDDIMState, rows: Bool[Tensor, " B"]) -> DEQDDIMState:
        return replace(state, history=state.history.forget(rows))


def _weights(
    changes: Float[Tensor, "B m D"], valid: Bool[Tensor, "B m"], newest: int, blocks: int, ridge: float
) -> Float[Tensor, "B blocks m"]:
    """Return the weights ``alpha`` of every state; where the system is singular, the newest point has weight 1."""
    rows, count, _ = changes.shape
    gram = torch.stack([block_dots(changes, changes[:, j], blocks) for j in range(count)], dim=3)
    unit = torch.eye(count, dtype=torch.float64, device=changes.device)
    both = (valid.unsqueeze(1) & valid.unsqueeze(2)).unsqueeze(1)
    system = gram.new_zeros(rows, blocks, count + 1, count + 1)
    system[..., 0, 1:] = system[..., 1:, 0] = valid.unsqueeze(1).double()
    # Columns that hold no point get a row of the identity, so that their weight is zero.
    system[..., 1:, 1:] = torch.where(both, gram + ridge * unit, unit)
    wanted = torch.zeros_like(system[..., 0])
    wanted[..., 0] = 1.0
    solved, info = torch.linalg.solve_ex(system, wanted)
    alpha = solved[..., 1:]
    sound = (info == 0) & alpha.isfinite().all(dim=2)
    return torch.where(sound.unsqueeze(2), alpha, unit[newest])
