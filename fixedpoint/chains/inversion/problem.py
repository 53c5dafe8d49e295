r"""Defines ``InverseProblem``: all states of a chain, given the last one, as one joint fixed point.

Given ``x_N``, the states ``x_0 .. x_{N-1}`` solve ``Phi_i(x_i) = x_{i+1}``. All steps are evaluated in one batch,

    r_i = Phi_i(x_i) - x_{i+1}

and with models ``A_i`` of their slopes the defects are swept from the end to the start:

    delta_N = 0,    delta_i = (delta_{i+1} - r_i) / A_i,    G(X) = X + delta

The fixed points of ``G`` are the inverses of the chain for any nonzero ``A_i``. Each step is an implicit equation of
its own. Unlike the chain itself, its inverse is not a finite iteration, and plain rounds contract only if every step
does after division by its slope. The joint equation is an ordinary fixed point, for any solver: Anderson acceleration
and Newton's method solve problems that plain rounds do not.

A DDIM step of an exact denoiser is, for any data, the gradient of a strictly convex function (its Jacobian is
``a I + b Cov(x0 | x)`` with positive ``a`` and ``b >= 0``): the inverse is unique. The inverse of a trained network's
step need not be unique, nor need it exist: near the clean end a network nearly projects.

The inversion of single steps by fixed points of their own, one after the other, is known (Pan et al. 2023, "Effective
real image editing with accelerated iterative diffusion inversion"; Garibi et al. 2024, "ReNoise"). Here all steps are
one equation, and a round evaluates them in one batch.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.capabilities import HasNoInverse
from fixedpoint.chains.chain import Chain, PredictionChain
from fixedpoint.chains.measure import relative, state_norms
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.recurrence.linear import LinearPart
from fixedpoint.chains.scan import linear_recurrence, running_sums
from fixedpoint.chains.slope.preconditioner import Identity, Preconditioner
from fixedpoint.core.layout import Layout
from fixedpoint.core.problem import Cost, HasCost, HasMeasure, HasTake, Measure, Problem

__all__ = ["InverseProblem"]


class InverseProblem(Problem, HasTake, HasMeasure, HasCost):
    """The joint fixed point of the states of a chain that ends in ``x_N``.

    Inside a solve a state has shape ``(B, N d)``. ``solution.z`` has shape ``(B, N, *event)``, and ``solution.z[:, 0]``
    is the start of the chain.

    Parameters
    ----------
    chain
        The chain.
    x_N
        The last state, shape ``(B, *event)``, floating-point dtype, finite. With ``steps`` it is the state after the
        last of them.
    preconditioner
        The slopes ``A_i``: one known number per step, finite and not zero; default ``Identity()``.
    max_batch
        Largest number of (state, step) pairs in one call of ``chain.step``, at least 1; default: no limit.
    rows
        Shape ``(B,)``, int64: the rows of the chain's conditioning and noise that the rows of ``x_N`` use; default
        ``0 .. B-1``.
    start
        States to start from, shape ``(B, N, *event)``, with the dtype and device of ``x_N``; default: every state
        equals ``x_N``.
    steps
        The consecutive steps to invert, ``range(first, last)``; ``N`` is then their number. Default: all steps.

    Raises
    ------
    TypeError, ValueError
        When an argument is not as described; the message names the argument. Also when the chain states that it has no
        inverse (:class:`~fixedpoint.chains.HasNoInverse`).
    """

    def __init__(
        self,
        chain: Chain,
        x_N: Float[Tensor, "B *event"],
        *,
        preconditioner: Preconditioner | None = None,
        max_batch: int | None = None,
        rows: Int[Tensor, " B"] | None = None,
        start: Float[Tensor, "B N *event"] | None = None,
        steps: range | None = None,
    ) -> None:
        self.steps = _checked(steps, chain)
        self.forward = ChainProblem(chain, x_N, max_batch=max_batch, rows=rows)
        self.preconditioner = preconditioner or Identity()
        self._linear = self._slopes()
        shape = (len(x_N), self.length, *x_N.shape[1:])
        if start is not None and (start.shape != shape or start.dtype != x_N.dtype or start.device != x_N.device):
            raise ValueError(
                f"start must have shape {shape}, {x_N.dtype} on {x_N.device}, to go with x_N, "
                f"got {tuple(start.shape)}, {start.dtype} on {start.device}"
            )
        self.start = start
        self.layout = Layout.of(x_N.unsqueeze(1).expand(shape), rows="independent")

    @property
    def length(self) -> int:
        """``N``, the number of steps that are inverted."""
        return len(self.steps)

    def initial(self) -> Float[Tensor, "B D"]:
        """Return the states to start from."""
        if self.start is not None:
            return self.start.flatten(1)
        return self.forward.x0.flatten(1).repeat(1, self.length)

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Evaluate ``G(X)``, at one evaluation of every step."""
        problem, event = self.forward, self.forward.x0.shape[1:]
        states = z.view(len(z), self.length, -1)
        index = torch.arange(self.steps.start, self.steps.stop, device=z.device).repeat(len(z))
        row = torch.arange(len(z), device=z.device).repeat_interleave(self.length)
        values = problem.pairs(states.reshape(-1, *event), index, row).view(states.shape)
        after = torch.cat([states[:, 1:], problem.x0.flatten(1).unsqueeze(1)], dim=1)
        return z + self._swept(values - after).flatten(1)

    def defects(self, z: Float[Tensor, "B D"], fz: Float[Tensor, "B D"]) -> Float[Tensor, "B N d"]:
        """Compute the defects ``r_i`` of all steps from a point ``z`` and ``fz = G(z)``, shape ``(B, N, d)``.

        This inverts the sweep and evaluates nothing.
        """
        delta = (fz - z).unflatten(1, (self.length, -1))
        later = torch.cat([delta[:, 1:], torch.zeros_like(delta[:, :1])], dim=1)
        defects: Tensor = later - self._linear.slopes.to(delta).view(1, -1, 1) * delta
        return defects

    def step_errors(self, z: Float[Tensor, "B D"], fz: Float[Tensor, "B D"]) -> Float[Tensor, "B N"]:
        """Return ``||Phi_i(x_i) - x_{i+1}|| / ||x_{i+1}||`` of every step, shape ``(B, N)``, float64."""
        after = torch.cat([z.unflatten(1, (self.length, -1))[:, 1:], self.forward.x0.flatten(1).unsqueeze(1)], dim=1)
        return relative(self.defects(z, fz), state_norms(after))

    def measure(self, z: Float[Tensor, "B D"], fz: Float[Tensor, "B D"], residual: Float[Tensor, "B D"]) -> Measure:
        """Measure the largest relative change of any state that the defects imply.

        The error is that change times the norm of the first state; the scale is the norm of the first state.
        """
        changes, states = (part.unflatten(1, (self.length, -1)) for part in (residual, z))
        sizes = state_norms(states)
        change = relative(changes, sizes).amax(dim=1, keepdim=True)
        return Measure(change * sizes[:, :1], sizes[:, :1])

    def cost(self, rows: int) -> Cost:
        """One evaluation is ``N`` evaluations of steps per row."""
        return Cost(calls=self.forward.calls(rows * self.length), evaluations=self.length)

    def take(self, rows: Int[Tensor, " k"]) -> InverseProblem:
        """Return the problem of some of the rows."""
        problem = self.forward
        assert isinstance(problem.chain, Chain)  # checked at the start
        return InverseProblem(
            problem.chain,
            problem.x0[rows],
            preconditioner=self.preconditioner,
            max_batch=problem.max_batch,
            rows=problem.rows[rows],
            start=None if self.start is None else self.start[rows],
            steps=self.steps,
        )

    def _slopes(self) -> LinearPart:
        """Return the slopes ``A_i`` of the steps that are inverted."""
        linear = self.preconditioner.linear_part(self.forward, self.forward.x0)
        if not isinstance(linear, LinearPart):
            raise TypeError(f"preconditioner must know one slope a step beforehand, got {self.preconditioner!r}")
        part = LinearPart(linear.slopes[self.steps.start : self.steps.stop])
        if not bool((part.slopes.isfinite() & (part.slopes != 0)).all()):
            raise ValueError(
                f"an inverse divides by the slopes of {self.preconditioner!r}, which must be finite and not zero, got "
                f"{part.numbers}"
            )
        return part

    def _swept(self, defects: Float[Tensor, "B N d"]) -> Float[Tensor, "B N d"]:
        backwards = defects.flip(1)
        if self._linear.numbers == [1.0] * self.length:
            return -running_sums(backwards).to(defects.dtype).flip(1)
        slopes = self._linear.slopes.flip(0).to(defects).view(1, -1, 1)
        return linear_recurrence(1 / slopes, -backwards / slopes).flip(1)


def _checked(steps: range | None, chain: Chain | PredictionChain) -> range:
    """Check that the chain has an inverse and return the steps to be inverted."""
    if isinstance(chain, PredictionChain):
        raise TypeError(
            f"chain must be a Chain, got {type(chain).__name__}, whose states depend on more than the state before; "
            "only steps without memory are inverted"
        )
    if isinstance(chain, HasNoInverse) and (why := chain.no_inverse()):
        raise ValueError(f"this chain has no inverse: {why}")
    if steps is None:
        return range(chain.length)
    if steps.step != 1 or not 0 <= steps.start < steps.stop <= chain.length:
        raise ValueError(f"steps must be range(first, last) within 0 to {chain.length}, not empty, got {steps}")
    return steps
