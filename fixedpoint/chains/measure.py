"""How far a trajectory is from its chain's: the change of every state that the defects imply."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.chains.slope.scan import running_sums
from fixedpoint.core.reduce import block_norms

__all__ = ["finite_states", "implied", "relative", "state_norms"]


def implied(defects: Float[Tensor, "B p d"], sizes: Float[Tensor, "B p"]) -> Float[Tensor, "B p"]:
    """Norm of the change of every state, were defects handed on along the chain unchanged; of its size, float64.

    That is what the identity preconditioner would change. Of the size of the state itself: later ones may be far off.
    """
    return relative(running_sums(defects.detach().clone()), sizes)


def relative(changes: Float[Tensor, "B p d"], sizes: Float[Tensor, "B p"]) -> Float[Tensor, "B p"]:
    """Norm of a change of every state, of the state's size, float64; zero where nothing changes, else NaN stays NaN."""
    norms = state_norms(changes)
    return torch.where(norms == 0, 0.0, norms / sizes)


def state_norms(states: Float[Tensor, "B p d"]) -> Float[Tensor, "B p"]:
    """Euclidean norm of every state, float64."""
    return block_norms(states.detach().flatten(1), states.shape[1], "l2")


def finite_states(states: Float[Tensor, "B p d"]) -> Bool[Tensor, "B p"]:
    """Whether all entries of a state are finite; makes nothing of the states' size."""
    states = states.detach()
    return states.amin(dim=2).isfinite() & states.amax(dim=2).isfinite()
