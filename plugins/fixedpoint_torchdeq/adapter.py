"""A step solver of this library as a function that torchdeq can call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.inference import outside_of_inference_mode
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import nearest
from fixedpoint.core.problem import FunctionProblem
from fixedpoint.core.termination import Termination
from fixedpoint_torchdeq.sampling import Sampled, SampledToTheEnd
from fixedpoint_torchdeq.stat import solver_stat, unsolved

__all__ = ["GLOBALS", "TorchdeqCallable"]

GLOBALS = frozenset(
    (
        *("f_solver", "b_solver", "f_max_iter", "b_max_iter", "f_tol", "b_tol", "f_stop_mode", "b_stop_mode"),
        *("eval_factor", "eval_f_max_iter", "no_stat", "sradius_mode"),
        *("norm_type", "norm_no_scale", "norm_clip", "norm_clip_value", "norm_target_norm", "sn_n_power_iters"),
        *("core", "ift", "hook_ift", "n_states", "gamma", "grad", "sup_gap", "sup_loc"),
        *("jac_loss_weight", "jac_loss_freq", "jac_incremental"),
    )
)
"""Options of torchdeq that do not belong to a solver (those of its ``add_deq_args``, and ``no_stat``). They may occur
among the options of a solver, if a whole configuration is passed as ``solver_kwargs``, and are ignored there."""

_SYNONYMS = {"m": "memory", "LBFGS_thres": "memory", "tau": "relaxation"}
"""The names of torchdeq for options of this library."""


@dataclass(frozen=True)
class TorchdeqCallable:
    """A function with the signature that torchdeq expects of a solver.

    Every row is solved to ``tol`` independently of the others. A row that is done keeps its point, and is not evaluated
    again if the problem allows it. The reported residual is that of the returned point.

    Attributes
    ----------
    solver
        The step solver.
    """

    solver: StepSolver[Any]

    @outside_of_inference_mode
    def __call__(
        self,
        func: Callable[[Tensor], Tensor],
        x0: Tensor,
        max_iter: int = 50,
        tol: float = 1e-3,
        stop_mode: str = "abs",
        indexing: Sequence[int] | None = None,
        return_final: bool = False,
        **options: Any,
    ) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """Solve ``x = func(x)`` from ``x0``.

        Parameters
        ----------
        func
            A function that takes and returns a tensor of the shape of ``x0``.
        x0
            The start, shape ``(B, ...)``, of a floating-point dtype. A vector of shape ``(B,)`` stands for ``B``
            problems of one unknown, a scalar for one.
        max_iter
            Limit on evaluations of ``func``. With 0, the start is returned.
        tol
            Tolerance of every row, absolute or relative to ``||func(x)||``.
        stop_mode
            ``"abs"`` or ``"rel"``: how ``tol`` is meant.
        indexing
            Numbers of evaluations after which the best points so far are returned as well.
        return_final
            Whether to make all evaluations and return the last point.
        options
            Options of the solver, by the names of this library or of torchdeq (``m``, ``LBFGS_thres``, ``tau``); None
            means the default. Global options of torchdeq (``GLOBALS``) are ignored.

        Returns
        -------
        z : Tensor
            The solution, of the shape of ``x0``, without a graph.
        trajectory : list of Tensor
            One point for every entry of ``indexing``; the solution itself for entries after the last evaluation.
        info : SolverStat
            ``abs_lowest``, ``rel_lowest``: the residual of the returned point, shape ``(B,)``. ``abs_trace``,
            ``rel_trace``: the residuals after ``k`` evaluations in column ``k``, shape ``(B, max_iter + 1)``; column 0
            is 1e8, and columns after the last evaluation hold the residual of the solution. ``nstep``: the evaluation
            at which the point was found, shape ``(B,)``. The object also has the attributes ``status``, ``message`` and
            ``counts`` of a ``Solution``.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as described, or an option is unknown; the message names the nearest option.
        """
        method = self._with(options)
        limit = _refuse_bad(x0, max_iter, stop_mode)
        wanted = tuple(sorted(indexing or ()))
        rows = x0.flatten(1) if x0.dim() >= 2 else x0.reshape(-1, 1)
        if not limit:
            return x0, [x0] * len(wanted), unsolved(rows)
        problem = FunctionProblem(lambda z: func(z.view(x0.shape)).reshape(rows.shape), rows, rows="independent")
        kind = SampledToTheEnd if return_final else Sampled
        sampled = kind(method, wanted, [])
        with torch.no_grad():  # torchdeq attaches the gradient itself
            rule = _rule(tol, stop_mode, limit, return_final)
            solution = sampled.solve(Evaluator(problem), problem.initial(), rule)
        z = solution.state.view(x0.shape)
        trajectory = [point.view(x0.shape) for point in sampled.points]
        trajectory += [z] * (len(wanted) - len(trajectory))
        return z, trajectory, solver_stat(solution, limit, return_final)

    def _with(self, options: dict[str, Any]) -> StepSolver[Any]:
        """The solver with the given options; global options of torchdeq are ignored."""
        fields = [field.name for field in dataclasses.fields(self.solver) if field.init]  # type: ignore[arg-type]
        changes = {}
        for key, value in options.items():
            name = key if key in fields else _SYNONYMS.get(key, key)
            if name in fields and value is not None:
                changes[name] = value
            elif name not in fields and key not in GLOBALS:
                known = [*fields, *(theirs for theirs, own in _SYNONYMS.items() if own in fields)]
                raise TypeError(f"{type(self.solver).__name__}: unknown option {key!r}; {nearest(key, known)}")
        return dataclasses.replace(self.solver, **changes) if changes else self.solver  # type: ignore[type-var]


def _refuse_bad(x0: Any, max_iter: Any, stop_mode: Any) -> int:
    """Check the arguments of a call, and return the limit on evaluations as an integer."""
    if not isinstance(x0, Tensor):
        raise TypeError(
            f"x0 must be a tensor, got {type(x0).__name__}; torchdeq makes one of several tensors unless no_stat=True"
        )
    if stop_mode not in ("abs", "rel"):
        raise ValueError(f"stop_mode must be 'abs' or 'rel', got {stop_mode!r}")
    if isinstance(max_iter, bool) or not isinstance(max_iter, (int, float)) or max_iter < 0 or max_iter % 1:
        raise ValueError(f"max_iter must be a whole number, 0 or more, got {max_iter!r}")
    return int(max_iter)


def _rule(tol: float, stop_mode: str, limit: int, to_the_end: bool) -> Termination:
    """The termination that corresponds to the arguments of a call."""
    if to_the_end:
        return Termination(rtol=0.0, max_rounds=limit)
    if stop_mode == "rel":
        return Termination(rtol=tol, max_rounds=limit)
    return Termination(rtol=0.0, atol=tol, max_rounds=limit)
