r"""A recurrent network over a sequence as a chain: ``x_{i+1} = cell(u_i, x_i)``.

The derivatives of torch's own cells are computed in closed form. For Elman's cell, ``x' = tanh(W x + U u + b)`` (Elman
1990):

    dx'/dx = diag(1 - x'^2) W

For the gated recurrent unit (Cho et al. 2014; in the form of torch.nn.GRUCell), with sigmoids ``r`` and ``z``,
``q = W_n x + c``, ``n = tanh(U_n u + b + r q)`` and ``x' = (1 - z) n + z x``:

    dx'/dx = diag(z) + diag((x - n) z (1 - z)) W_z
             + diag((1 - z) (1 - n^2)) (diag(r) W_n + diag(q r (1 - r)) W_r)

Both are a diagonal plus weights with scaled rows, so that the diagonal of the Jacobian does not require the matrix. Any
other cell is differentiated by autograd, with ``d`` backward passes of the cell for the diagonal or the Jacobian.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from fixedpoint.chains.capabilities import HasJacobians, HasSlopes, step_jacobians, step_slopes
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.problem import ChainProblem

__all__ = ["Cell", "RecurrentChain", "recurrent_problem"]

Cell = torch.nn.Module | Callable[[Tensor, Tensor], Tensor]


class RecurrentChain(Chain, HasSlopes, HasJacobians):
    """A chain that runs a recurrent cell over sequences of inputs.

    Its ``slopes`` and ``jacobians`` have closed forms for torch.nn.RNNCell and torch.nn.GRUCell; for other cells they
    are computed by autograd.

    Parameters
    ----------
    cell
        A function ``cell(u, x)`` of inputs of shape ``(P, features)`` and states of shape ``(P, d)`` that returns the
        next states, shape ``(P, d)``: torch.nn.RNNCell, torch.nn.GRUCell or any other. The value for a pair must not
        depend on the other pairs, and must be the same at every call; dropout in training mode is not allowed.
    inputs
        The inputs of every row at every step, shape ``(B, N, features)``, of a floating-point dtype.

    Raises
    ------
    TypeError
        If ``cell`` is not callable, or if ``inputs`` is not of a floating-point dtype.
    ValueError
        If ``inputs`` has another shape.
    """

    def __init__(self, cell: Cell, inputs: Float[Tensor, "B N features"]) -> None:
        if not callable(cell):
            raise TypeError(f"cell must be a function or module cell(u, x), got {type(cell).__name__}")
        if inputs.ndim != 3 or 0 in inputs.shape[:2]:
            raise ValueError(f"inputs must have shape (B, N, features), none empty, got {tuple(inputs.shape)}")
        if not inputs.is_floating_point():
            raise TypeError(f"inputs must be of a floating-point dtype, got {inputs.dtype}")
        self.cell = cell
        self.inputs = inputs
        self.length = inputs.shape[1]

    def step(self, x: Float[Tensor, "P d"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]) -> Float[Tensor, "P d"]:
        """The next state of every pair of state and step."""
        value: Tensor = self.cell(self.inputs[row, index], x)
        return value

    def slopes(self, x: Float[Tensor, "P d"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]) -> Float[Tensor, "P d"]:
        """The diagonals of the Jacobians of the cell with respect to its state."""
        terms = _terms(self.cell, self.inputs[row, index], x)
        if terms is None:
            return step_slopes(self.step, x, index, row)
        return terms[0] + sum(scale * weight.diagonal() for scale, weight in terms[1])

    def jacobians(
        self, x: Float[Tensor, "P d"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P d d"]:
        """The Jacobians of the cell with respect to its state."""
        terms = _terms(self.cell, self.inputs[row, index], x)
        if terms is None:
            return step_jacobians(self.step, x, index, row)
        return torch.diag_embed(terms[0]) + sum(scale.unsqueeze(2) * weight for scale, weight in terms[1])


def recurrent_problem(
    cell: Cell,
    inputs: Float[Tensor, "B N features"],
    x0: Float[Tensor, "B d"] | None = None,
    *,
    max_batch: int | None = None,
) -> ChainProblem:
    """The problem whose solution is the states of a recurrent network over a sequence.

    Parameters
    ----------
    cell, inputs
        As for :class:`RecurrentChain`.
    x0
        The states before the first input, shape ``(B, d)``, with the dtype and device of ``inputs``. Default: zero,
        with ``d`` the cell's ``hidden_size``.
    max_batch
        Largest number of states in one call of the cell. Default: no limit.

    Returns
    -------
    ChainProblem
        For ``fixedpoint.solve``; ``solution.z``, shape ``(B, N, d)``, is what torch.nn.RNN with ``batch_first`` returns
        as its output.

    Raises
    ------
    TypeError
        As for :class:`RecurrentChain`, and if ``x0`` is missing for a cell without a ``hidden_size``.
    ValueError
        As for :class:`RecurrentChain`, and if ``x0`` does not fit ``inputs``.
    """
    chain = RecurrentChain(cell, inputs)
    if x0 is None:
        size = getattr(cell, "hidden_size", None)
        if not isinstance(size, int):
            raise TypeError(f"a cell without a hidden_size requires x0 of shape (B, d), got the cell {cell!r}")
        x0 = inputs.new_zeros(len(inputs), size)
    if x0.ndim != 2 or len(x0) != len(inputs) or x0.dtype != inputs.dtype or x0.device != inputs.device:
        raise ValueError(
            f"x0 must have shape ({len(inputs)}, d), {inputs.dtype} on {inputs.device} to go with the inputs, "
            f"got {tuple(x0.shape)}, {x0.dtype} on {x0.device}"
        )
    return ChainProblem(chain, x0, max_batch=max_batch)


def _terms(cell: Cell, u: Tensor, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]] | None:
    """``a`` and pairs ``(c, W)`` with ``dx'/dx = diag(a) + sum diag(c) W``; None for a cell that is not torch's own."""
    # Exact types only: a subclass may compute something else.
    if type(cell) is torch.nn.RNNCell:
        value = cell(u, x)
        slope = 1 - value.square() if cell.nonlinearity == "tanh" else (value > 0).to(x)
        return torch.zeros_like(x), [(slope, cell.weight_hh)]
    if type(cell) is torch.nn.GRUCell:
        given = linear(u, cell.weight_ih, cell.bias_ih).chunk(3, dim=1)
        kept = linear(x, cell.weight_hh, cell.bias_hh).chunk(3, dim=1)
        r, z = torch.sigmoid(given[0] + kept[0]), torch.sigmoid(given[1] + kept[1])
        n = torch.tanh(given[2] + r * kept[2])
        slope = (1 - z) * (1 - n.square())
        scales = (slope * kept[2] * r * (1 - r), (x - n) * z * (1 - z), slope * r)
        return z, list(zip(scales, cell.weight_hh.chunk(3), strict=True))
    return None
