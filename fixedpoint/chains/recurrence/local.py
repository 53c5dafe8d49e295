r"""The shortest history of a recurrence that is given by dense tables.

A chain may be known as ``u_j = L_j x_0 + sum_{i<j} B_ji p_i + sum_k Z_jk n_k``, every input from the start, all earlier
predictions and all noise. Many such tables have a local form

    u_{j+1} = sum_{i<q} (a_ji u_{j-i} + b_ji p_{j-i}) + sum_k c_jk n_k

of the last ``q`` pairs and the noise ``n_k`` that no earlier input contains. Predictions that are held and noise that
is new have coefficients of their own; all the rest has to come from the inputs that are held.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.chains.recurrence.affine import Affine

__all__ = ["LONGEST", "local_coefficients", "shortest"]

# The longest history that is tried; a chain that needs more is carried by its dense tables.
LONGEST = 4


def shortest(starts: Float[Tensor, " M"], weights: Float[Tensor, "M K"], closes: float = 1e-9) -> Affine:
    """Return the recurrence of dense tables with the shortest history, from 1 to 4 pairs; else the dense one.

    Parameters
    ----------
    starts
        ``L``, shape ``(K + 1,)``, float64, with ``L_0`` not zero.
    weights
        ``B``, shape ``(K + 1, K)``, float64, strictly lower triangular.
    closes
        The relative residual below which a local form holds.
    """
    # Inputs count in units of the first one: its coefficient in the tables is then 1.
    rows = torch.cat([starts.unsqueeze(1), weights], dim=1)
    for q in range(1, LONGEST + 1):
        found = local_coefficients(rows, weights.shape[1], q, closes)
        if found is not None:
            return Affine(found[0], found[1])
    return Affine.dense(starts, weights)


def local_coefficients(
    rows: Float[Tensor, "M C"], count: int, q: int, closes: float
) -> tuple[Float[Tensor, "K q"], Float[Tensor, "K q"], Float[Tensor, "K n"]] | None:
    """Return ``a``, ``b`` and ``c`` of the local form with ``q`` pairs by least squares; None where it does not hold.

    Parameters
    ----------
    rows
        Shape ``(K + 1, 1 + K + n)``, float64: ``L``, ``B`` and ``Z`` next to one another, for ``u_0 .. u_K``.
    count
        ``K``, the number of predictions.
    q
        The number of pairs, at least 1: the current one and ``q - 1`` before it.
    closes
        The largest residual of an input, relative to its largest coefficient.
    """
    inputs, outputs = (torch.zeros(count, q, dtype=torch.float64, device="cpu") for _ in range(2))
    tables = rows[:, 1 + count :]
    noise = torch.zeros_like(tables[1:])
    contained = (tables != 0).cumsum(dim=0) > 0  # by an input up to this one
    for j in range(count):
        held = torch.arange(j, max(j - q, -1), -1, device="cpu")  # the current prediction first
        target = rows[j + 1]
        inherited = torch.ones_like(target, dtype=torch.bool)
        inherited[1 + held] = False
        new = ~contained[j]
        inherited[1 + count :] = ~new
        basis = rows[held]
        # Early steps have fewer equations than unknowns; this driver returns the smallest of their solutions.
        share = torch.linalg.lstsq(basis[:, inherited].T, target[inherited].unsqueeze(1), driver="gelsd").solution[:, 0]
        left = target - share @ basis
        if bool(left[inherited].abs().max() > closes * target.abs().max()):
            return None
        inputs[j, : len(held)], outputs[j, : len(held)] = share, left[1 + held]
        noise[j] = torch.where(new, left[1 + count :], 0.0)
    return inputs, outputs, noise
