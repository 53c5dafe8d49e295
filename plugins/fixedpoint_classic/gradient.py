"""Compares a gradient estimator with the exact gradient of a fixed point, computed by elimination.

For ``f(z) = phi(z, b)`` with a known Jacobian ``J``, the gradient of ``sum(z*)`` with respect to ``b`` is
``u^T df/db`` with ``u = (I - J^T)^{-1} 1``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.api import solve
from fixedpoint.core.reduce import row_norms
from fixedpoint.gradients.report import AdjointReport
from fixedpoint.tasks.task import Context
from fixedpoint_classic.problem import ClassicProblem

__all__ = ["gradient_metrics", "with_offset"]


def with_offset(problem: Any, offset: Float[Tensor, "B D"]) -> Any:
    """The problem with another offset ``b``."""
    return replace(problem, offset=offset)


def gradient_metrics(problem: ClassicProblem, exact: Float[Tensor, "B D"], context: Context) -> dict[str, float]:
    """The error of the estimator's gradient with respect to the offset, and the metrics of its adjoint solve.

    Parameters
    ----------
    problem
        A problem with an ``offset`` of shape ``(B, D)``.
    exact
        Its solution, shape ``(B, D)``, float64.
    context
        Solver, termination and gradient estimator, with which the problem is solved once more.
    """
    reference = _reference(problem.to(torch.float64, exact.device), exact)
    with torch.enable_grad():
        moved: Any = problem
        offset = moved.offset.detach().clone().requires_grad_()
        solution = solve(
            with_offset(problem, offset),
            solver=context.solver,
            gradient=context.gradient,
            termination=context.termination,
        )
        (found,) = torch.autograd.grad(solution.state.sum(), offset)
    error = row_norms(found.double() - reference) / row_norms(reference)
    metrics = {"gradient_error": float(error.amax())}
    report = solution.extras.get("adjoint")
    return metrics | report.metrics() if isinstance(report, AdjointReport) else metrics


def _reference(problem: Any, exact: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """The exact gradient with respect to the offset."""
    identity = torch.eye(exact.shape[1], dtype=exact.dtype, device=exact.device)
    u = torch.linalg.solve(identity - problem.jacobian(exact).mT, torch.ones_like(exact))
    with torch.enable_grad():
        offset = problem.offset.detach().clone().requires_grad_()
        through: Tensor = torch.autograd.grad(with_offset(problem, offset)(exact), offset, u)[0]
    return through
