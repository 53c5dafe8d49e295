"""Measures the error of a trajectory: the change of every state that its defects imply."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.recurrence.linear import LinearPart
from fixedpoint.chains.recurrence.recurrence import Held
from fixedpoint.core.reduce import block_norms, largest_moduli, outside, raw_block_norms
from fixedpoint.core.transfer import to_host

__all__ = ["finite_states", "implied", "read_relative", "relative", "sizes_to_read", "state_norms"]


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
    return (states.amin(dim=2) > -torch.inf) & (states.amax(dim=2) < torch.inf)


def sizes_to_read(states: Float[Tensor, "B p d"]) -> tuple[Tensor, Tensor]:
    """Return norm and largest modulus of every state, ``(B, p)``, as :func:`read_relative` expects them on the host.

    Each takes one pass over the states. Where squares leave the range of float64, the norm is wrong.
    """
    states = states.detach()
    return raw_block_norms(states.flatten(1), states.shape[1], "l2"), largest_moduli(states)


def read_relative(
    states: Float[Tensor, "B p d"], changes: Float[Tensor, "B p d"], told: Sequence[NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return on the host what :func:`relative` returns, and the norms of the states.

    Parameters
    ----------
    states, changes
        Shape ``(B, p, d)``.
    told
        What was read of :func:`sizes_to_read` of the states and of the changes. Norms that are wrong are computed anew,
        and read.
    """
    sizes, norms = _careful(states, *told[:2]), _careful(changes, *told[2:])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(norms == 0.0, 0.0, norms / sizes), sizes


def _careful(
    states: Float[Tensor, "B p d"], norms: NDArray[np.float64], largest: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return norms, of which those out of range are those of :func:`state_norms`."""
    wild = outside(norms) & (largest > 0.0) & (largest < np.inf)
    if states.dtype != torch.float64 or not wild.any():  # squares of other dtypes stay within the range
        return norms
    return np.where(wild, to_host(state_norms(states))[0], norms)
