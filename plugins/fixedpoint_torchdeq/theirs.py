"""torchdeq's solvers as solvers of ours: run as they are, judged from outside.

    z, trajectory, info = solver(func, x0, max_iter, tol, stop_mode, ...)

(Geng & Kolter 2023, "TorchDEQ: a library for deep equilibrium models"; torchdeq 0.1.0, ``torchdeq/solver``.)

What is added around them, and nothing else:

- Every evaluation goes through the evaluator, so that counts and trace are those of every solver.
- The point they return is evaluated, unless they did so themselves, and its error and status are what the solution
  says. What they say of it stands in ``solution.extras["claimed"]``.
- ``max_rounds`` is the number of evaluations, that one included. Their ``max_iter`` means evaluations in two of them
  and steps in the third.
- A row of which they return NaN comes back with its best finite point, as everywhere.

They stop when the worst row of the batch is within one tolerance, so finished rows go on being evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.loop import solution_at
from fixedpoint.core.options import option
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Claim, Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.termination import Termination
from fixedpoint_torchdeq import faults
from fixedpoint_torchdeq.library import torchdeq
from fixedpoint_torchdeq.outside import Exhausted, StopMode, Watch, statuses, tolerance

__all__ = ["TorchdeqAnderson", "TorchdeqBroyden", "TorchdeqPicard", "TorchdeqSolver"]

_STOP_MODE = "what tolerance they stop by: relative, absolute, or (auto) that of the termination, relative first"
_FINAL = "run to the limit on rounds and return the last point instead of that of the smallest residual"


@dataclass(frozen=True)
class TorchdeqSolver(Solver):
    """Base of the three; their options, with their defaults and names, are the fields."""

    stop_mode: Literal["auto", "abs", "rel"] = option("auto", help=_STOP_MODE)
    return_final: bool = option(False, help=_FINAL)

    uses = ("torchdeq",)

    key: ClassVar[str]
    """The name torchdeq has for it."""

    def solve(
        self,
        f: Evaluator,
        z0: Float[Tensor, "B D"],
        termination: Termination,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Solution:
        """Run torchdeq's solver, and judge what it returns.

        Raises
        ------
        RuntimeError
            When autograd records f: torchdeq detaches its iterates, so that unrolling would be cut off in silence.
        NotImplementedError
            From torch, for its Anderson in half precision on a CPU, with a note that says where it came from.
        """
        z0 = z0.clone()  # theirs may write into it
        limit = termination.max_rounds or 1000
        mode = self._mode(termination)
        watch = Watch(f, z0, mode, limit, on_round)
        if watch.first.fz.requires_grad and torch.is_grad_enabled():
            name = type(self).__name__
            raise RuntimeError(f"{name} detaches its iterates and cannot be unrolled; solve with no_grad")
        tol = tolerance(termination, mode, watch.first)
        returned, claim = self._run(watch, z0, limit, mode, tol)
        spent = watch.asked >= self._calls(limit)
        sound = returned.isfinite().all(dim=1)
        at = watch.at(returned)
        status, _ = statuses(termination, watch, at, sound, spent)
        rounds = np.full(z0.shape[0], f.counts.rounds, dtype=np.int64)
        return solution_at(at, status, rounds, f, self, {"claimed": claim} if claim else {})

    def _run(
        self, watch: Watch, z0: Tensor, limit: int, mode: StopMode, tol: float
    ) -> tuple[Float[Tensor, "B D"], Claim | None]:
        """What torchdeq returns, and what it claims; the start where the limit leaves it no step."""
        if limit < 2:
            watch.asked = limit
            return z0, None
        solver = torchdeq("solver").get_solver(self.key)
        options = {"stop_mode": mode, "return_final": self.return_final, **self._options()}
        try:
            z, _, info = solver(watch, z0, max_iter=limit - 1, tol=tol, **options)
        except Exhausted:
            return watch.best(), None
        except Exception as error:
            if error is not watch.error:
                error.add_note(f"raised inside torchdeq's {solver.__name__}, on a state of {z0.dtype} on {z0.device}")
            raise
        residual = info[f"{mode}_lowest"].double().cpu().numpy()
        return z, Claim(converged=residual < tol, residual=residual, relative=mode == "rel", tolerance=tol)

    def _mode(self, termination: Termination) -> StopMode:
        if self.stop_mode != "auto":
            return self.stop_mode
        return "rel" if termination.rtol > 0 and termination.relative_to == "state" else "abs"

    def _options(self) -> Mapping[str, Any]:
        """Their own options."""
        raise NotImplementedError

    def _calls(self, limit: int) -> int:
        """Calls of f they make within the limit when they do not stop by themselves."""
        return limit - 1 if limit > 1 else limit


@dataclass(frozen=True)
class TorchdeqPicard(TorchdeqSolver):
    """torchdeq's ``fixed_point_iter``: plain iteration, optionally damped."""

    tau: float = option(1.0, gt=0.0, le=2.0, help="damping; they test the damped step")

    key = "fixed_point_iter"

    @property
    def known_faults(self) -> Mapping[str, str]:
        return faults.PICARD

    def _options(self) -> Mapping[str, Any]:
        return {"tau": self.tau}


@dataclass(frozen=True)
class TorchdeqAnderson(TorchdeqSolver):
    """torchdeq's ``anderson_solver``: type II, bordered system, absolute ridge."""

    m: int = option(6, ge=2, help="number of earlier steps combined")
    lam: float = option(1e-4, ge=0.0, help="absolute ridge added to the Gram matrix of residuals")
    tau: float = option(1.0, gt=0.0, le=2.0, help="mixing: how much of the remaining residual is added")

    key = "anderson"

    @property
    def known_faults(self) -> Mapping[str, str]:
        return faults.ANDERSON

    def _options(self) -> Mapping[str, Any]:
        return {"m": self.m, "lam": self.lam, "tau": self.tau}

    def _calls(self, limit: int) -> int:
        return max(min(limit, 2), limit - 1)  # two evaluations are made before the loop, whatever max_iter says


@dataclass(frozen=True)
class TorchdeqBroyden(TorchdeqSolver):
    """torchdeq's ``broyden_solver``: Broyden's good method."""

    LBFGS_thres: int | None = option(None, ge=1, help="rank-one updates kept; None: as many as the limit on rounds")
    ls: bool = option(False, help="search along the line, one step length for the whole batch")

    key = "broyden"

    @property
    def known_faults(self) -> Mapping[str, str]:
        return faults.BROYDEN

    def _options(self) -> Mapping[str, Any]:
        return {"LBFGS_thres": self.LBFGS_thres, "ls": self.ls}

    def _calls(self, limit: int) -> int:
        return limit  # max_iter counts steps, each of one evaluation at least, and the start is one more
