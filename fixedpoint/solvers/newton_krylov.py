r"""Newton's method with GMRES: uses only products with the Jacobian, never its matrix.

At ``z_k`` with ``r_k = f(z_k) - z_k`` and ``J = df/dz``:

    (I - J) s = r_k,   by GMRES, to ||r_k - (I - J) s|| <= eta_k ||r_k||
    z_{k+1} = z_k + lambda s

with ``lambda = 1`` at first, halved while ``||r(z_k + lambda s)|| > (1 - 1e-4 lambda (1 - eta_k)) ||r_k||``.

(Knoll & Keyes 2004, "Jacobian-free Newton-Krylov methods", sections 2.1 to 2.3; Kelley 1995, "Iterative methods for
linear and nonlinear equations", algorithm 8.2.1.) The forcing term (Eisenstat & Walker 1996, "Choosing the forcing
terms in an inexact Newton method", choice 2, eq. 2.6):

    eta_k = 0.9 (||r_k|| / ||r_{k-1}||)^2,   at least 0.9 eta_{k-1}^2 if that is over 0.1

The products are made in forward mode where the problem supports it, and by differences elsewhere. Each product is
counted, and it has to wait for the one before it, so it is a round. Where we differ: every row has its own forcing
term and its own step length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import option
from fixedpoint.core.problem import AbilityError
from fixedpoint.core.reduce import row_norms
from fixedpoint.core.transfer import to_device
from fixedpoint.solvers.gmres import GMRES

__all__ = ["NewtonKrylov", "NewtonKrylovState"]

# Eisenstat & Walker's gamma and alpha, and the largest forcing term.
_GAMMA, _ALPHA, _LARGEST = 0.9, 2.0, 0.9
# Kelley's sufficient decrease.
_DECREASE = 1e-4


@dataclass(frozen=True)
class NewtonKrylovState:
    """The forcing term of every row for the next step, float64, and how the products were made."""

    forcing: Float[Tensor, " B"]
    jacobian: Literal["forward", "difference"] = "forward"


@dataclass(frozen=True)
class NewtonKrylov(StepSolver[NewtonKrylovState]):
    """Newton's method; GMRES solves its linear systems, more exactly the faster the residual falls."""

    forcing: float = option(0.1, gt=0.0, lt=1.0, help="eta_0: relative residual of the first linear system")
    memory: int = option(50, ge=1, help="number of products of one linear system after which GMRES restarts")
    max_products: int = option(200, ge=1, help="products of one linear system at most")
    halvings: int = option(8, ge=0, help="how often a step is halved at most while it does not decrease the residual")
    jacobian: Literal["auto", "forward", "difference"] = option(
        "auto", help="products in forward mode, by differences, or (auto) by differences where forward mode fails"
    )

    provides = frozenset()  # no "decisions": autograd cannot go through the linear systems

    @property
    def supports_row_selection(self) -> bool:
        return True

    def init(self, f: Evaluator, at: Evaluated) -> NewtonKrylovState:
        return NewtonKrylovState(torch.full_like(row_norms(at.z), self.forcing))

    def step(
        self, f: Evaluator, at: Evaluated, state: NewtonKrylovState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, NewtonKrylovState]:
        if torch.is_grad_enabled():
            raise AbilityError("NewtonKrylov cannot be unrolled: autograd would not see its linear systems")
        exact = {"auto": None, "forward": True, "difference": False}[self.jacobian]
        running = f.running
        residual = torch.where(to_device(running, at.z.device).unsqueeze(1), at.residual, 0.0)
        # One round is reserved for the evaluation at the new point.
        budget = min(self.max_products, f.remaining - 1)
        if budget < 1:
            return f(at.fz), state  # no round is left for a product: a plain step

        def product(v: Tensor, rows: NDArray[np.bool_]) -> Tensor:
            f.narrow(rows)
            return v - f.product(at, v, exact)

        solved = GMRES(self.memory).solve(product, residual, state.forcing, budget, running)
        f.narrow(running)
        size = at.residual_norm
        new = self._searched(f, at, solved.x, size, state.forcing)
        ratio = new.residual_norm / torch.where(size > 0, size, 1.0)
        forcing = _GAMMA * ratio**_ALPHA
        floor = _GAMMA * state.forcing**_ALPHA
        # A forcing term that falls too fast would solve the next system more exactly than the step deserves.
        forcing = torch.where(floor > 0.1, torch.maximum(forcing, floor), forcing).nan_to_num(nan=_LARGEST)
        made: Literal["forward", "difference"] = "difference" if exact is False or f.differs else "forward"
        return new, NewtonKrylovState(forcing.clamp(min=1e-6, max=_LARGEST), made)

    def extras(self, state: NewtonKrylovState) -> dict[str, Any]:
        """``jacobian``: how the products were made, ``"forward"`` or ``"difference"``."""
        return {"jacobian": state.jacobian}

    def _searched(
        self,
        f: Evaluator,
        at: Evaluated,
        step: Float[Tensor, "B D"],
        size: Float[Tensor, " B"],
        forcing: Float[Tensor, " B"],
    ) -> Evaluated:
        """For every row the first of the halved steps that decreases the residual enough, else the last one tried."""
        new = f(at.z + step)
        before = f.running
        length = torch.ones_like(size)
        for _ in range(self.halvings):
            enough = new.residual_norm <= (1.0 - _DECREASE * length * (1.0 - forcing)) * size
            done = (new.finite & enough).cpu().numpy() | ~before
            if done.all() or not f.remaining:
                break
            length = torch.where(to_device(done, length.device), length, 0.5 * length)
            f.narrow(before & ~done)
            trial = f(at.z + length.to(step.dtype).unsqueeze(1) * step)
            new = trial.where(to_device(~done, length.device), new)
        f.narrow(before)
        return new
