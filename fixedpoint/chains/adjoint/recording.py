"""Records steps of a chain under autograd, and adds up the gradients of the tensors that they depend on."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.problem import ChainProblem
from fixedpoint.gradients.ambient import Ambient
from fixedpoint.gradients.boundary import Boundary, Edge
from fixedpoint.gradients.recorded import severed

__all__ = ["Gradients", "recorded_constants", "recorded_steps", "times_rows"]


def recorded_steps(
    problem: ChainProblem,
    x: Float[Tensor, "P *event"],
    index: Int[Tensor, " P"],
    row: Int[Tensor, " P"],
    ambient: Ambient,
) -> tuple[Float[Tensor, "P *event"], Float[Tensor, "P *event"], Edge | None]:
    """Evaluate steps or predictions under autograd.

    Returns
    -------
    tuple
        Their inputs, equal to ``x``, their values, and the tensors that these depend on in addition to the inputs; None
        in place of the tensors if they cannot be determined.
    """
    z = severed(x)
    with torch.enable_grad(), ambient, Boundary(z) as boundary:
        value = problem.pairs(z, index, row)
    return z, value, boundary.edge(value, z)


def recorded_constants(
    problem: ChainProblem, index: Int[Tensor, " P"], row: Int[Tensor, " P"], ambient: Ambient
) -> tuple[Float[Tensor, "P *event"] | None, Edge | None]:
    """Compute the constants of a recurrence under autograd; return them and the tensors that they depend on.

    None in place of the constants if there are none, or none that require a gradient.
    """
    if problem.memoryless:
        return None, {}
    nothing = severed(problem.x0)
    with torch.enable_grad(), ambient, Boundary(nothing) as boundary:
        constants = problem.constants(index, row)
    if constants is None or not constants.requires_grad:
        return None, {}
    return constants, boundary.edge(constants, nothing)


class Gradients:
    """The sums of the gradients of some tensors, ``found``, in the order of ``edge``; None where nothing was added.

    Parameters
    ----------
    edge
        The tensors, by the autograd nodes that made them.
    """

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.outside = tuple(edge.values())
        self._totals: list[Tensor | None] = [None] * len(edge)

    @property
    def found(self) -> tuple[Tensor | None, ...]:
        """One gradient per tensor."""
        return tuple(self._totals)

    def add(self, value: Tensor, known: Edge | None, cotangent: Tensor, z: Tensor | None = None) -> Tensor | None:
        """Add the products of ``cotangent`` with the Jacobians of a recorded value; return that with respect to ``z``.

        Raises
        ------
        RuntimeError
            When the value depends on a tensor that is not in ``edge``, or it is not known on which.
        """
        if known is None or not known.keys() <= self.edge.keys():
            raise RuntimeError(
                "steps of this chain depend on tensors that its first one does not; their gradient would be lost "
                "(a chain can declare which steps depend on them: HasRepresentativeSteps)"
            )
        if not value.requires_grad:
            return None
        of = (*self.outside, z) if z is not None else self.outside
        parts = torch.autograd.grad(value, of, cotangent, allow_unused=True)
        for place, part in enumerate(parts[: len(self.outside)]):
            before = self._totals[place]
            self._totals[place] = part if before is None else before if part is None else before + part
        return parts[-1] if z is not None else None


def times_rows(states: Float[Tensor, "B *any"], factors: Float[Tensor, " B"]) -> Float[Tensor, "B *any"]:
    """Return the rows of ``states`` times float64 numbers, in the dtype of ``states``."""
    return (states.double() * factors.view(-1, *[1] * (states.ndim - 1))).to(states.dtype)
