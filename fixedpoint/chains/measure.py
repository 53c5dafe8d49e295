"""Measures the error of a trajectory: the change of every state that its defects imply."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.chains.recurrence.linear import LinearPart
from fixedpoint.chains.recurrence.recurrence import Held
from fixedpoint.core.reduce import block_norms

__all__ = ["finite_states", "implied", "relative", "state_norms"]


def implied(
    defects: Float[Tensor, "B p d"], sizes: Float[Tensor, "B p"], reference: LinearPart, held: Held
) -> Float[Tensor, "B p"]:
    """Return the relative change of every state if defects are carried along the chain by its reference, float64.

    The reference is the linear part that the preconditioner ``identity`` uses: for opaque steps, changes are carried
    unchanged. The change is divided by the norm of the state itself, since later states may be far from their solution.
    """
    return relative(reference.wide_sweep(defects.detach().clone(), held), sizes)


def relative(changes: Float[Tensor, "B p d"], sizes: Float[Tensor, "B p"]) -> Float[Tensor, "B p"]:
    """Return the norm of each state's change over the state's norm, float64; 0 where the change is 0; NaN is kept."""
    norms = state_norms(changes)
    return torch.where(norms == 0, 0.0, norms / sizes)


def state_norms(states: Float[Tensor, "B p d"]) -> Float[Tensor, "B p"]:
    """Return the Euclidean norm of every state, float64."""
    return block_norms(states.detach().flatten(1), states.shape[1], "l2")


def finite_states(states: Float[Tensor, "B p d"]) -> Bool[Tensor, "B p"]:
    """Return whether all entries of a state are finite, without a temporary of the size of the states."""
    states = states.detach()
    return states.amin(dim=2).isfinite() & states.amax(dim=2).isfinite()
