"""The solvers of torchdeq as solvers of this library: they run unchanged and are judged from outside.

    z, trajectory, info = solver(func, x0, max_iter, tol, stop_mode, ...)

(Geng & Kolter 2023, "TorchDEQ: a library for deep equilibrium models"; torchdeq 0.1.0, ``torchdeq/solver``.)

The wrapper adds the following, and nothing else:

- Every evaluation goes through the evaluator, so that counts and traces are as for every other solver.
- The returned point is evaluated, unless the solver has done so itself, and determines the error and the status of the
  solution. What the solver reports is in ``solution.extras["claimed"]``.
- ``max_rounds`` is the number of evaluations, including that one. The argument ``max_iter`` of torchdeq means
  evaluations in two of the solvers and steps in the third.
- A row for which the solver returns NaN gets its best finite point, as with every other solver.

These solvers stop when the worst row of the batch is within a single tolerance, so rows that are done are evaluated
until then.
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
from fixedpoint.core.options import option
from fixedpoint.core.outcome import solution_at
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Claim, Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.termination import Termination
from fixedpoint_torchdeq import faults
from fixedpoint_torchdeq.library import torchdeq
from fixedpoint_torchdeq.outside import Exhausted, StopMode, Watch, at_least_single, statuses, tolerance

__all__ = ["TorchdeqAnderson", "TorchdeqBroyden", "TorchdeqPicard", "TorchdeqSolver"]

_STOP_MODE = "kind of tolerance: relative, absolute, or (auto) that of the termination, relative first"
_FINAL = "run to the limit on rounds and return the last point instead of the one with the smallest residual"


@dataclass(frozen=True)
class TorchdeqSolver(Solver):
    """Base class of the three solvers; their fields are the options of torchdeq, with its names and defaults."""

    stop_mode: Literal["auto", "abs", "rel"] = option("auto", help=_STOP_MODE)
    return_final: bool = option(False, help=_FINAL)

    uses = ("torchdeq",)

    key: ClassVar[str]
    """The name of the solver in torchdeq."""

    def solve(
        self,
        f: Evaluator,
        z0: Float[Tensor, "B D"],
        termination: Termination,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Solution:
        """Run the solver of torchdeq, and judge the point that it returns.

        Raises
        ------
        RuntimeError
            If autograd records f. torchdeq detaches its iterates, so an unrolled gradient would silently be wrong.
        NotImplementedError
            From torch, for Anderson in half precision on a CPU, with a note on its origin.
        """
        z0 = z0.clone()  # torchdeq may write into it
        limit = termination.max_rounds or 1000  # torchdeq requires a limit
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
        """The point that torchdeq returns, and its claim; the start and None if the limit leaves no step."""
        if limit < 2:
            watch.asked = limit
            return z0, None
        solver = torchdeq("solver").get_solver(self.key)
        options = {"stop_mode": mode, "return_final": self.return_final, **self._options()}
        try:
            # One evaluation of the limit is reserved for the point that is returned.
            with at_least_single(watch) as watched:
                z, _, info = solver(watched, z0, max_iter=limit - 1, tol=tol, **options)
        except Exhausted:
            return watch.best(), None
        except Exception as error:
            if error is not watch.error:
                error.add_note(f"raised inside torchdeq's {solver.__name__}, on a state of {z0.dtype} on {z0.device}")
            raise
        residual = info[f"{mode}_lowest"].double().cpu().numpy()
        # ``<`` as in torchdeq's own test.
        return z, Claim(converged=residual < tol, residual=residual, relative=mode == "rel", tolerance=tol)

    def _mode(self, termination: Termination) -> StopMode:
        """The stop mode; for ``"auto"``, that of the tolerance in the termination, relative first."""
        if self.stop_mode != "auto":
            return self.stop_mode
        return "rel" if termination.rtol > 0 and termination.relative_to == "state" else "abs"

    def _options(self) -> Mapping[str, Any]:
        """The options to pass to the solver of torchdeq."""
        raise NotImplementedError

    def _calls(self, limit: int) -> int:
        """The number of calls of f that the solver makes within the limit if it does not stop by itself."""
        return limit - 1 if limit > 1 else limit


@dataclass(frozen=True)
class TorchdeqPicard(TorchdeqSolver):
    """``fixed_point_iter`` of torchdeq: plain iteration, optionally damped."""

    tau: float = option(1.0, gt=0.0, le=2.0, help="damping; torchdeq tests the damped step")

    key = "fixed_point_iter"

    @property
    def known_faults(self) -> Mapping[str, str]:
        return faults.PICARD

    def _options(self) -> Mapping[str, Any]:
        return {"tau": self.tau}


@dataclass(frozen=True)
class TorchdeqAnderson(TorchdeqSolver):
    """``anderson_solver`` of torchdeq: Anderson acceleration of type II; bordered system with an absolute ridge."""

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
    """``broyden_solver`` of torchdeq: Broyden's good method."""

    LBFGS_thres: int | None = option(None, ge=1, help="rank-one updates kept; None: as many as the limit on rounds")
    ls: bool = option(False, help="line search, with one step length for the whole batch")

    key = "broyden"

    @property
    def known_faults(self) -> Mapping[str, str]:
        return faults.BROYDEN

    def _options(self) -> Mapping[str, Any]:
        return {"LBFGS_thres": self.LBFGS_thres, "ls": self.ls}

    def _calls(self, limit: int) -> int:
        return limit  # max_iter counts steps, each of one evaluation at least, and the start is one more
