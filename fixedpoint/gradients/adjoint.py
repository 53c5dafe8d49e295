r"""The adjoint equation of a fixed point, ``u = J^T u + g``, solved as a fixed-point problem itself.

Its rows are those of the problem. Its evaluations are vector-Jacobian products of one recorded evaluation, and any
solver can solve it. Each row is divided by the norm of its cotangent before the solve and multiplied by it afterwards,
so that cotangents of 1e-13 in single precision neither vanish nor count as solved. For a row whose cotangent is zero,
zero is the solution, found at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.layout import Layout
from fixedpoint.core.problem import HasProduct, HasTake, Problem
from fixedpoint.core.reduce import row_norms
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.status import ConvergenceError, Status
from fixedpoint.core.termination import Termination, at_rounding_floor
from fixedpoint.core.transfer import to_device
from fixedpoint.core.warning import warn_caller
from fixedpoint.gradients.direct import defect, is_direct, solved_directly
from fixedpoint.gradients.recorded import Map, without_tangents
from fixedpoint.gradients.recordings import Recordings
from fixedpoint.gradients.report import AdjointReport, AdjointWarning, counted_message
from fixedpoint.solvers.krylov import Krylov

__all__ = ["AdjointProblem", "OnFailure", "failed_rows", "report_failure", "scaled_rows", "solve_adjoint"]

OnFailure = Literal["warn", "raise", "one-step"]


class AdjointProblem(Problem, HasProduct):
    """The problem ``u = K u + g``, with a linear ``K`` given by its products; the start is ``u = g``.

    Parameters
    ----------
    linear
        Function that returns ``K v`` for ``v`` of shape ``(B, D)``: ``J^T v`` in a backward pass, ``J v`` in forward
        mode. Rows must not mix.
    g
        Shape ``(B, D)``: the right-hand side.
    """

    def __init__(self, linear: Map, g: Float[Tensor, "B D"]) -> None:
        self.linear, self.g = linear, g
        self.layout = Layout.of(g, "independent")

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return self.linear(z) + self.g

    def product(self, z: Float[Tensor, "B D"], v: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """``K v``, which does not depend on ``z``."""
        return self.linear(v)

    def initial(self) -> Float[Tensor, "B D"]:
        return self.g


class RowTakingAdjoint(AdjointProblem, HasTake):
    """An adjoint equation from which rows can be taken.

    Once half of the recorded rows are done, the others are evaluated and recorded again without them, so that products
    are computed for these rows only. This works on the CPU only, since the host must know the indices of the rows.

    Parameters
    ----------
    linear, g
        As for :class:`AdjointProblem`.
    record
        Function of row indices, shape ``(k,)``, int64, that records these rows by one evaluation and returns their
        ``K``; None if these rows cannot be evaluated without the others.

    Attributes
    ----------
    recordings
        What has been recorded, and of which rows.
    """

    def __init__(self, linear: Map, g: Float[Tensor, "B D"], record: Callable[[Tensor], Map | None]) -> None:
        super().__init__(linear, g)
        self.recordings = Recordings(linear, len(g), record)

    @property
    def evaluations(self) -> NDArray[np.int64]:
        """Shape ``(B,)``, int64: evaluations of each row spent on recording again."""
        return self.recordings.evaluations

    def take(self, rows: Int[Tensor, " k"]) -> AdjointProblem:
        """The adjoint equation of some of the rows, in the given order."""
        return _Taken(self, rows, self.recordings.part(rows.numpy()))


class _Taken(AdjointProblem, HasTake):
    """The adjoint equation of some of the rows of another one."""

    def __init__(self, whole: RowTakingAdjoint, rows: Int[Tensor, " k"], linear: Map) -> None:
        super().__init__(linear, whole.g[rows])
        self.whole, self.rows = whole, rows

    def take(self, rows: Int[Tensor, " k"]) -> AdjointProblem:
        """The adjoint equation of some of these rows."""
        return self.whole.take(self.rows[rows])


def solve_adjoint(
    linear: Map,
    g: Float[Tensor, "B D"],
    solver: Solver,
    termination: Termination,
    on_failure: OnFailure,
    report: AdjointReport,
    record: Callable[[Tensor], Map | None] | None = None,
    noise: float = 0.0,
) -> Float[Tensor, "B D"]:
    """Solve ``u = K u + g`` row by row, fill in the report, and return ``u = (I - K)^{-1} g``.

    Parameters
    ----------
    linear
        Function that returns ``K v`` for ``v`` of shape ``(B, D)``.
    g
        Shape ``(B, D)``: the cotangent.
    solver, termination
        The solver and its stopping rule.
    on_failure
        What to do about rows that are not solved: ``"warn"``, ``"raise"``, or ``"one-step"``, which returns their rows
        of ``g``.
    report
        Filled in by this call.
    record
        See :class:`RowTakingAdjoint`. Given on a CPU, rows that are done are left out of the products.
    noise
        The relative rounding of a product, where it is more than that of the dtype of ``g``.

    Raises
    ------
    ConvergenceError
        If a row was not solved and ``on_failure`` is ``"raise"``.
    """
    # On another device the host would have to wait to learn which rows are done.
    record = record if g.device.type == "cpu" else None
    with torch.no_grad(), without_tangents():
        if isinstance(solver, Krylov) and is_direct(solver, termination, g.dtype):
            answer, failed = _directly(linear, g.detach(), solver, termination, report, record, noise)
        else:
            answer, failed = _by_any(linear, g.detach(), solver, termination, report, record)
        if on_failure == "one-step" and failed.any():
            answer = torch.where(to_device(failed, g.device).unsqueeze(1), g, answer)
    report.backwards += 1
    report.replaced = failed if on_failure == "one-step" else np.zeros_like(failed)
    report_failure(failed, report, on_failure)
    return answer


def _directly(
    linear: Map,
    g: Float[Tensor, "B D"],
    solver: Krylov,
    termination: Termination,
    report: AdjointReport,
    record: Callable[[Tensor], Map | None] | None,
    noise: float,
) -> tuple[Float[Tensor, "B D"], NDArray[np.bool_]]:
    """Solve the equation as a linear system; return ``u`` and the rows that failed."""
    found = solved_directly(linear, g, solver, termination, record)
    u, codes, rounds, products, relative = (
        found.u, found.status, found.rounds, found.products, found.relative_error
    )  # fmt: skip
    if noise > torch.finfo(g.dtype).eps:
        # Products are rounded more coarsely than g: only an evaluation tells whether a row is solved.
        measured = defect(linear, g, u)
        rounds, products, wrong = rounds + 1, products + 1, (codes == Status.CONVERGED) & (measured > termination.rtol)
        relative = measured
        if wrong.any():
            again, failed = _by_any(linear, g, solver, termination, report, record)
            u = torch.where(to_device(wrong, g.device).unsqueeze(1), again, u)
            codes, relative = np.where(wrong, report.codes, codes), np.where(wrong, report.relative_error, relative)
            rounds, products = rounds + report.rounds, products + np.where(wrong, report.products, 0)
            report.codes, report.rounds, report.products, report.relative_error = codes, rounds, products, relative
            report.method = f"{found.method}, {report.method}"
            return u, np.where(wrong, failed, codes != Status.CONVERGED)
    report.codes, report.rounds, report.products, report.relative_error = codes, rounds, products, relative
    report.method, report.message = found.method, counted_message(codes)
    return u, codes != Status.CONVERGED


def _by_any(
    linear: Map,
    g: Float[Tensor, "B D"],
    solver: Solver,
    termination: Termination,
    report: AdjointReport,
    record: Callable[[Tensor], Map | None] | None,
) -> tuple[Float[Tensor, "B D"], NDArray[np.bool_]]:
    """Solve the equation by any solver; return ``u`` and the rows that failed."""
    unit, size = scaled_rows(g)
    problem = AdjointProblem(linear, unit) if record is None else RowTakingAdjoint(linear, unit, record)
    evaluator = Evaluator(problem, norm=termination.yardstick)
    solution = solver.solve(evaluator, problem.initial(), termination)
    answer = (solution.state.double() * size.unsqueeze(1)).to(g.dtype)  # the size may exceed the range of g's dtype
    report.status = solution.status
    report.rounds = solution.counts.rounds
    report.products = solution.counts.evaluations + solution.counts.products
    if isinstance(problem, RowTakingAdjoint):
        report.products = report.products + problem.evaluations
    report.relative_error = solution.relative_error
    report.message, report.method = solution.message, type(solver).__name__.lower()
    return answer, failed_rows(solution)


def scaled_rows(g: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
    """Return the rows of ``g`` scaled to unit length, and their lengths, float64.

    Rows whose length is zero, Inf or NaN are not scaled: their length is given as 1.
    """
    size = row_norms(g)
    size = torch.where((size > 0) & size.isfinite(), size, 1.0)
    return (g.double() / size.unsqueeze(1)).to(g.dtype), size


def report_failure(failed: NDArray[np.bool_], report: AdjointReport, on_failure: OnFailure) -> None:
    """Warn about the rows that failed, or raise ``ConvergenceError``."""
    if not failed.any():
        return
    worst = float(report.relative_error[failed].max())
    sentence = (
        f"the adjoint equation of {int(failed.sum())} of {len(failed)} rows was not solved "
        f"(relative error {worst:.1e}):\n{report.message}"
    )
    if on_failure == "raise":
        raise ConvergenceError(sentence)
    given = "these rows have the one-step gradient" if report.replaced.any() else "the gradient is that inexact"
    warn_caller(AdjointWarning(f"{sentence}\n{given}"))


def failed_rows(solution: Solution) -> NDArray[np.bool_]:
    """The rows that did not converge, except those whose error is only rounding of the dtype; shape ``(B,)``."""
    floor = at_rounding_floor(solution.error, solution.scale, torch.finfo(solution.layout.dtype).eps)
    failed: NDArray[np.bool_] = ~solution.converged & ~floor.cpu().numpy()
    return failed
