r"""Gradients of ``||x_0(x_T) - x*||^2`` with respect to the noise ``x_T`` that a chain starts from.

    serial      backpropagation through the steps, one after another
    one-step    joint solve, then one damped step of the joint map from the solution, differentiated
    phantom     the same with several steps
    exact       joint solve, then a joint solve of the adjoint chain (``fixedpoint.chains.adjoint.adjoint``)

The joint map uses the coefficients ``A_i`` of the steps (Pokle, Geng & Kolter 2022, "Deep equilibrium approaches
to diffusion models", eq. 9; ``X + M r`` of the preconditioner "coefficient"). With ``x_{i+1} = A_i x_i + c_i(x_i)``,

    G(X)_k = A_{k-1} ... A_0 x_T + sum_{i<k} A_{k-1} ... A_{i+1} c_i(x_i)

where ``c_i`` contains the network and the noise of a stochastic chain. A damped step is ``(1 - tau) X + tau G(X)``. The
method of the authors is one such step with ``tau = 0.1``, from states held constant. The noise then enters only through
the linear term, and the gradient is ``2 tau A_{N-1} ... A_0 (x_0 - x*)``, without a Jacobian of the network. ``N + 1``
steps with ``tau = 1`` are backpropagation. (In ``F`` itself the last state depends only on the state before it, so one
step of it would give the noise no gradient.)

The cost is counted in sequential calls of the network, whatever their batch: one for a round of steps, and one for a
backward pass through a round. A product of the adjoint chain evaluates its step again and so costs two calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

import fixedpoint
from fixedpoint.chains.adjoint.adjoint import AdjointChain
from fixedpoint.chains.joint.solver import BlockSecant, ChainSolver
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.recurrence.linear import LinearPart
from fixedpoint.chains.slope.preconditioner import Coefficient
from fixedpoint.core.options import OptionError, Options, option
from fixedpoint.core.reduce import row_norms, vecdot
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.termination import Termination
from fixedpoint.gradients.adjoint import failed_rows, scaled_rows
from fixedpoint_diffusion.inversion.secant import Secant

__all__ = ["AnyLatentGradient", "Exact", "LatentGradient", "LossAndGradient", "OneStep", "Phantom", "Serial"]


@dataclass(frozen=True)
class LossAndGradient:
    """The result of one evaluation of loss and gradient.

    Attributes
    ----------
    misfit
        ``x_0 - x*``, shape ``(B, *event)``.
    gradient
        Gradient of the squared norm of ``misfit`` with respect to the noise, shape ``(B, *event)``.
    calls
        Sequential calls of the network.
    evaluations, products
        Forward and backward passes of single steps, shape ``(B,)``, int64.
    solved
        Whether all solves of a row reached their tolerance, shape ``(B,)``.
    kept
        Tensors with one entry per row, from which the next evaluation, at nearby noise, starts.
    """

    misfit: Float[Tensor, "B *event"]
    gradient: Float[Tensor, "B *event"]
    calls: int
    evaluations: NDArray[np.int64]
    products: NDArray[np.int64]
    solved: NDArray[np.bool_]
    kept: dict[str, Tensor]

    @property
    def loss(self) -> Float[Tensor, " B"]:
        """The squared norm of the misfit, float64."""
        return row_norms(self.misfit.flatten(1)).square()


class LatentGradient(Options, ABC):
    """Base class of the methods that compute loss and gradient, with their options."""

    @abstractmethod
    def find(
        self, problem: ChainProblem, images: Float[Tensor, "B *event"], kept: Mapping[str, Tensor]
    ) -> LossAndGradient:
        """Compute the loss and its gradient with respect to the start of a chain.

        Parameters
        ----------
        problem
            The chain; ``problem.x0`` is the noise ``x_T``.
        images
            The target images ``x*``, shape ``(B, *event)``.
        kept
            ``LossAndGradient.kept`` of the previous evaluation for these rows; empty at the first one.
        """


@dataclass(frozen=True)
class Serial(LatentGradient):
    """Exact backpropagation through the steps, one after another: ``2 N`` calls; stores all activations."""

    variant = "serial"

    def find(
        self, problem: ChainProblem, images: Float[Tensor, "B *event"], kept: Mapping[str, Tensor]
    ) -> LossAndGradient:
        rows = torch.arange(len(images), device=images.device)
        # An optimisation calls this without gradients, so recording is switched on for the chain alone.
        with torch.enable_grad():
            x = x_T = problem.x0.detach().requires_grad_()
            for step in range(problem.length):
                x = problem.pairs(x, torch.full_like(rows, step), rows)
        misfit = x.detach() - images
        (gradient,) = torch.autograd.grad(x, x_T, 2 * misfit)  # 2 misfit: the derivative of its squared norm
        each = np.full(len(images), problem.length)
        return LossAndGradient(
            misfit, gradient, 2 * problem.length, each, each, np.ones(len(images), dtype=np.bool_), {}
        )


@dataclass(frozen=True)
class _Joint(LatentGradient):
    """Solves for the trajectory jointly, without a graph; the start is extrapolated from the two last trajectories."""

    solver: Solver = option(factory=lambda: ChainSolver(accelerator=BlockSecant()), help="solver of the chain")
    termination: Termination = option(factory=lambda: Termination(rtol=1e-3), help="when a row of the chain is solved")
    warm: bool = option(True, help="start from the trajectories of the previous steps")

    def check(self) -> None:
        if "chain" not in self.solver.needs:
            raise OptionError(type(self).__name__, "solver", f"must be a solver of chains, got {self.solver!r}")

    def _trajectory(self, problem: ChainProblem, secant: Secant) -> Solution:
        start = secant.expected("trajectory") if self.warm else None
        begun = ChainProblem(problem.chain, problem.x0, max_batch=problem.max_batch, rows=problem.rows, start=start)
        return fixedpoint.solve(begun, solver=self.solver, termination=self.termination)


@dataclass(frozen=True)
class OneStep(_Joint):
    """One damped step of the joint map from the solution (Pokle, Geng & Kolter 2022); no Jacobian of the network."""

    variant = "one-step"

    tau: float = option(0.1, gt=0.0, le=1.0, help="how far the step goes")

    def find(
        self, problem: ChainProblem, images: Float[Tensor, "B *event"], kept: Mapping[str, Tensor]
    ) -> LossAndGradient:
        secant = Secant(kept, problem.x0)
        return _differentiated(problem, images, self._trajectory(problem, secant), secant, 1, self.tau)


@dataclass(frozen=True)
class Phantom(_Joint):
    """Several damped steps of the joint map from the solution; stores the activations of all of them."""

    variant = "phantom"

    steps: int = option(5, ge=1, help="k: number of steps")
    tau: float = option(0.1, gt=0.0, le=1.0, help="how far each step goes")

    def find(
        self, problem: ChainProblem, images: Float[Tensor, "B *event"], kept: Mapping[str, Tensor]
    ) -> LossAndGradient:
        secant = Secant(kept, problem.x0)
        return _differentiated(problem, images, self._trajectory(problem, secant), secant, self.steps, self.tau)


@dataclass(frozen=True)
class Exact(_Joint):
    """Solves the adjoint chain along the solution jointly, to a tolerance of its own; it stores states only.

    The adjoint states are linear in the cotangent. A warm start therefore extrapolates the adjoint states from the two
    previous evaluations and multiplies them by the coefficient of the new cotangent along the extrapolated one. The
    first round carries the remaining part of the cotangent along the chain unchanged.
    """

    variant = "exact"

    adjoint_solver: Solver = option(
        factory=lambda: ChainSolver(accelerator=BlockSecant()), help="solver of the adjoint chain"
    )
    adjoint_termination: Termination = option(
        factory=lambda: Termination(rtol=1e-2), help="when a row of the adjoint chain is solved"
    )
    adjoint_warm: bool = option(True, help="start from the adjoint states of the previous steps")

    def check(self) -> None:
        super().check()
        if "chain" not in self.adjoint_solver.needs:
            raise OptionError("Exact", "adjoint_solver", f"must be a solver of chains, got {self.adjoint_solver!r}")

    def find(
        self, problem: ChainProblem, images: Float[Tensor, "B *event"], kept: Mapping[str, Tensor]
    ) -> LossAndGradient:
        secant = Secant(kept, problem.x0)
        solution = self._trajectory(problem, secant)
        misfit = solution.z[:, -1] - images
        cotangent = 2 * misfit.flatten(1)
        # The adjoint is solved for unit cotangents: a small misfit would otherwise be lost to an absolute tolerance or
        # to underflow.
        unit, size = scaled_rows(cotangent)
        start = self._start(secant, unit)
        last = unit.view(images.shape)
        begun = ChainProblem(AdjointChain(problem, solution.z, last), last, max_batch=problem.max_batch, start=start)
        adjoint = fixedpoint.solve(begun, solver=self.adjoint_solver, termination=self.adjoint_termination)
        # Back to the size of the cotangent, in float64 like ``size``, and rounded once.
        states = (adjoint.z.flatten(1).double() * size.unsqueeze(1)).to(misfit).view(adjoint.z.shape)
        products = adjoint.evaluations
        return LossAndGradient(
            misfit,
            states[:, -1],
            solution.counts.rounds + 2 * adjoint.counts.rounds,
            solution.evaluations + products,
            products,
            ~failed_rows(solution) & ~failed_rows(adjoint),
            secant.keep(trajectory=solution.z, adjoint=states, cotangent=cotangent),
        )

    def _start(self, secant: Secant, unit: Float[Tensor, "B D"]) -> Float[Tensor, "B N *event"] | None:
        """The warm start of the adjoint chain; None at the first evaluation, and without ``adjoint_warm``."""
        states, cotangent = secant.expected("adjoint"), secant.expected("cotangent")
        if not self.adjoint_warm or states is None or cotangent is None:
            return None
        length, shared = (vecdot(cotangent, other) for other in (cotangent, unit))
        # The coefficient of the projection of ``unit`` on the extrapolated cotangent; clamped, as that may be zero.
        share = torch.where(length > 0, shared / length.clamp(min=torch.finfo(length.dtype).tiny), 0.0).to(states)
        return states * share.view(-1, *[1] * (states.ndim - 1))


AnyLatentGradient = Serial | OneStep | Phantom | Exact


def _differentiated(
    problem: ChainProblem, images: Float[Tensor, "B *event"], solution: Solution, secant: Secant, steps: int, tau: float
) -> LossAndGradient:
    """Loss and gradient by damped steps of the joint map, from states that are held constant.

    As in the code of the authors, autograd also computes the gradient with respect to these states, through the
    network, which is then discarded.
    """
    linear = Coefficient().linear_part(problem, images)
    # The coefficient of a first step from zero terminal SNR is infinite, and here, unlike in a sweep, it is used.
    if not bool(linear.slopes.isfinite().all()):
        raise ValueError("the joint map has no coefficient for a first step from no signal (zero terminal SNR)")
    with torch.enable_grad():
        x_T = problem.x0.detach().requires_grad_()
        held = torch.cat([x_T.detach().unsqueeze(1), solution.z], dim=1).requires_grad_()
        path = held
        for _ in range(steps):
            path = torch.lerp(path, torch.cat([x_T.unsqueeze(1), joint_map(problem, linear, x_T, path)], dim=1), tau)
        last = path[:, -1]
    misfit = last.detach() - images
    gradient, _ = torch.autograd.grad(last, (x_T, held), 2 * misfit)
    each = np.full(len(images), steps * problem.length)
    return LossAndGradient(
        misfit,
        gradient,
        solution.counts.rounds + 2 * steps,
        solution.evaluations + each,
        each,
        ~failed_rows(solution),
        secant.keep(trajectory=solution.z),
    )


def joint_map(
    problem: ChainProblem, linear: LinearPart, x_T: Float[Tensor, "B *event"], states: Float[Tensor, "B n *event"]
) -> Float[Tensor, "B N *event"]:
    """``G(X)`` for states ``x_T, x_1 .. x_N``, shape ``(B, N + 1, *event)``.

    The first of ``states`` is only the point at which the network is evaluated; the linear term uses ``x_T``.
    """
    inputs = states[:, :-1]
    index = torch.arange(problem.length, device=x_T.device).repeat(len(x_T))
    row = torch.arange(len(x_T), device=x_T.device).repeat_interleave(problem.length)
    values = problem.pairs(inputs.flatten(0, 1), index, row).view(inputs.shape)
    along = (1, -1, *[1] * (x_T.ndim - 1))
    # ``c_i(x_i)`` of the module docstring, swept along the chain.
    rest = values - linear.slopes.to(x_T).view(along) * inputs
    swept = linear.sweep(rest.flatten(2)).view(inputs.shape)
    return (linear.slopes[0] * linear.scales).to(x_T).view(along) * x_T.unsqueeze(1) + swept
