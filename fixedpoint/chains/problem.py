r"""Defines ``ChainProblem``, the joint fixed point of all states of a chain.

A chain is ``x_{i+1} = Phi_i(x_i)``, ``i = 0 .. N-1``, with ``x_0`` given. The stacked states ``X = (x_1 .. x_N)`` solve
``X = F(X)`` with ``F(X)_{i+1} = Phi_i(x_i)``. This is one problem, and all its steps can be evaluated in one batch. The
Jacobian of its residual is block lower bidiagonal. The fixed point therefore exists, is unique, and equals the
sequential trajectory. A plain round makes at least one more state exact, so ``N`` rounds always suffice.
(Pokle, Geng & Kolter 2022, "Deep Equilibrium Approaches to Diffusion Models", section 3, for DDIM; Shih et al.
2023; Tang et al. 2024.)
"""

from __future__ import annotations

import copy
import functools
from abc import ABC
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fixedpoint.chains.capabilities import HasCoefficients, HasGaussianSlopes, HasJacobians, HasSlopes, undeclared
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.coarse import HasCoarse, HasExtension, HasJumps
from fixedpoint.chains.faults import place_of
from fixedpoint.chains.measure import implied, state_norms
from fixedpoint.core.layout import Layout
from fixedpoint.core.memory import Receiver
from fixedpoint.core.problem import (
    AbilityError,
    Cost,
    HasCost,
    HasMeasure,
    HasTake,
    Measure,
    Problem,
)

__all__ = ["ChainProblem", "chain_of"]


class ChainProblem(Problem, HasTake, HasMeasure, HasCost):
    """The joint fixed point of a chain's states.

    Inside a solve a state has shape ``(B, N d)``. ``solution.z`` has shape ``(B, N, *event)``, and
    ``solution.z[:, -1]`` is the result of the chain.

    Parameters
    ----------
    chain
        The chain.
    x0
        The start ``x_0``, shape ``(B, *event)``, floating-point dtype, finite.
    max_batch
        Largest number of (state, step) pairs in one call of ``chain.step``, at least 1; default: no limit.
    rows
        Shape ``(B,)``, int64: the rows of the chain's conditioning and noise that the rows of ``x0`` use; default
        ``0 .. B-1``. If it is given, ``x0`` is not checked for NaN and Inf.
    start
        A trajectory to start from, shape ``(B, N, *event)``, with the dtype and device of ``x0``: for example that of a
        similar prompt, or of the previous optimiser step. Default: every state equals ``x0``.
    keep
        ``"all"`` returns all states. ``"last"`` returns only the last one: ``solution.z`` then has shape
        ``(B, 1, *event)``, and a chain solver with a window stores no other states outside the window.

    Raises
    ------
    TypeError, ValueError
        When an argument is not as described; the message names the argument. Also for ``start`` together with
        ``keep="last"``.
    """

    def __init__(
        self,
        chain: Chain,
        x0: Shaped[Tensor, "B *event"],
        *,
        max_batch: int | None = None,
        rows: Int[Tensor, " B"] | None = None,
        start: Shaped[Tensor, "B N *event"] | None = None,
        keep: Literal["all", "last"] = "all",
    ) -> None:
        if not isinstance(chain, Chain):
            raise TypeError(f"chain must be a Chain, got {type(chain).__name__}")
        if x0.ndim < 2:
            raise ValueError(f"x0 must have a batch dimension and at least one more, got shape {tuple(x0.shape)}")
        if not x0.is_floating_point():
            raise TypeError(f"x0 must be of a floating-point dtype, got {x0.dtype}")
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}")
        if chain.length < 1:
            raise ValueError(f"a chain must have at least one step, got length {chain.length}")
        if rows is None and not bool(x0.isfinite().all()):  # ``take`` passes rows that are already checked
            raise ValueError(f"x0 must be finite, got {int((~x0.isfinite()).sum())} entries that are NaN or Inf")
        self.chain = chain
        self.x0 = x0
        self.max_batch = max_batch
        if keep not in ("all", "last"):
            raise ValueError(f"keep must be 'all' or 'last', got {keep!r}")
        wanted = (len(x0), chain.length, *x0.shape[1:])
        if start is not None and (start.shape != wanted or start.dtype != x0.dtype or start.device != x0.device):
            raise ValueError(
                f"start must have shape {wanted}, {x0.dtype} on {x0.device}, to go with x0, "
                f"got {tuple(start.shape)}, {start.dtype} on {start.device}"
            )
        if start is not None and keep == "last":
            raise ValueError("keep='last' is for chains too long to be held as a whole; it goes with no start")
        self.rows = torch.arange(x0.shape[0], device=x0.device) if rows is None else rows
        self.start = start
        self.keep = keep
        blocks = chain.length if keep == "all" else 1
        steps = x0.unsqueeze(1).expand(-1, blocks, *x0.shape[1:])
        self.layout = Layout.of(steps, rows="independent", blocks=blocks)

    @property
    def length(self) -> int:
        """``N``, the number of steps."""
        return self.chain.length

    def initial(self) -> Float[Tensor, "B D"]:
        """Return the given trajectory, or every state equal to ``x_0`` if none was given."""
        if self.start is not None:
            return self.start.flatten(1)
        return self.x0.flatten(1).repeat(1, self.layout.blocks)

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        if self.keep == "last":
            raise TypeError("a chain that keeps its last state alone cannot be evaluated as a joint problem")
        states = torch.cat([self.x0.flatten(1), z], dim=1)[:, : z.shape[1]]
        index = torch.arange(self.length, device=z.device).repeat(len(z))
        row = torch.arange(len(z), device=z.device).repeat_interleave(self.length)
        return self.pairs(states.reshape(-1, *self.x0.shape[1:]), index, row).view(z.shape)

    def derivatives(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"], full_jacobian: bool
    ) -> Float[Tensor, "P d"] | Float[Tensor, "P d d"]:
        """Return the diagonals of the steps' Jacobians, or with ``full_jacobian`` the Jacobians, at given pairs.

        Parameters
        ----------
        x
            Shape ``(P, *event)``: the states.
        index
            Shape ``(P,)``, int64: the step of each pair, from 0 to ``N - 1``.
        row
            Shape ``(P,)``, int64: the row of this problem that each pair belongs to, from 0 to ``B - 1``.
        full_jacobian
            Whether to return Jacobians, shape ``(P, d, d)``, instead of diagonals, shape ``(P, d)``.

        Raises
        ------
        AbilityError
            When the chain provides no such derivatives.
        ValueError
            When the chain returns derivatives of another shape or dtype.
        """
        chain, name = self.chain, "jacobians" if full_jacobian else "slopes"
        if full_jacobian and isinstance(chain, HasJacobians):
            derive = chain.jacobians
        elif not full_jacobian and isinstance(chain, HasSlopes):
            derive = chain.slopes
        else:
            lacks = undeclared(chain, HasJacobians if full_jacobian else HasSlopes, "has none")
            raise AbilityError(
                f"preconditioner={'jacobian' if full_jacobian else 'diagonal'!r} requires a chain with a method "
                f"{name}(x, index, row), and {type(chain).__name__} {lacks}; write it with "
                f"fixedpoint.chains.capabilities.step_{name}, or take 'identity' or 'zero'"
            )
        shape = (x[0].numel(), x[0].numel()) if full_jacobian else x.shape[1:]
        size = self.max_batch or max(len(x), 1)
        receive, found = Receiver(), []
        for pairs in zip(x.split(size), index.split(size), self.rows[row].split(size), strict=True):
            part = receive(functools.partial(derive, *pairs))
            if part.shape != (len(pairs[0]), *shape) or part.dtype != x.dtype:
                raise ValueError(
                    f"{name} must return shape {(len(pairs[0]), *shape)}, {x.dtype}, "
                    f"got {tuple(part.shape)}, {part.dtype}"
                )
            found.append(part if full_jacobian else part.flatten(1))
        return torch.cat(found)

    def pairs(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """Evaluate ``Phi_index(x)`` for any (state, step) pairs of rows ``0 .. B-1`` of this problem."""
        return self._in_batches(x, index, self.rows[row])

    def calls(self, pairs: int) -> int:
        """Return the number of calls of ``chain.step`` that ``pairs`` (state, step) pairs take."""
        return -(-pairs // (self.max_batch or max(pairs, 1)))

    def in_batches(self, size: int) -> ChainProblem:
        """Return a copy of the problem with ``max_batch = size``."""
        same = copy.copy(self)
        same.max_batch = size
        return same

    def coarse(self, kept: Int[Tensor, " n"]) -> ChainProblem:
        """Return the chain of jumps between the states ``kept``, from the same start; see :class:`HasCoarse`.

        Raises
        ------
        AbilityError
            When the chain provides no coarse chains.
        """
        if not isinstance(self.chain, HasCoarse):
            raise self._lacks(HasCoarse, "has no coarser chains (no methods coarse and interpolate)")
        return ChainProblem(self.chain.coarse(kept), self.x0, max_batch=self.max_batch, rows=self.rows)

    def interpolate(self, states: Float[Tensor, "B n *event"], kept: Int[Tensor, " n"]) -> Float[Tensor, "B D"]:
        """Return all states, given those that were kept; see :class:`HasCoarse`."""
        if not isinstance(self.chain, HasCoarse):
            raise self._lacks(HasCoarse, "has no coarser chains (no methods coarse and interpolate)")
        return self.chain.interpolate(self.x0, states, kept, self.rows).flatten(1)

    def jumps(self) -> Float[Tensor, "B D"]:
        """Return every state as one jump from the start, at one evaluation per row; see :class:`HasJumps`.

        Raises
        ------
        AbilityError
            When the chain provides no jumps.
        """
        if not isinstance(self.chain, HasJumps):
            raise self._lacks(HasJumps, "does not know its states' jumps from x0 (no method jumps)")
        size = self.max_batch or len(self.x0)
        batches = zip(self.x0.split(size), self.rows.split(size), strict=True)
        receive = Receiver()
        return torch.cat([receive(functools.partial(self.chain.jumps, *batch)) for batch in batches]).flatten(1)

    def extend(
        self,
        x: Float[Tensor, "P *event"],
        value: Float[Tensor, "P *event"],
        index: Int[Tensor, " P"],
        target: Int[Tensor, " P"],
        row: Int[Tensor, " P"],
    ) -> Float[Tensor, "P *event"]:
        """Predict later states of this problem from steps already taken; see :class:`HasExtension`.

        Raises
        ------
        AbilityError
            When the chain provides no extension.
        """
        if not isinstance(self.chain, HasExtension):
            raise self._lacks(HasExtension, "does not know what a step says of later states (no extend)")
        return self.chain.extend(x, value, index, target, self.rows[row])

    def coefficients(self) -> Float[Tensor, " N"] | None:
        """Return the chain's coefficients, shape ``(N,)``, or None if it provides none."""
        return self.chain.coefficients() if isinstance(self.chain, HasCoefficients) else None

    def gaussian_slopes(self, variance: float) -> Float[Tensor, " N"]:
        """Return the slopes of the steps for Gaussian data, shape ``(N,)``; see :class:`HasGaussianSlopes`.

        Raises
        ------
        AbilityError
            When the chain does not provide them.
        """
        if not isinstance(self.chain, HasGaussianSlopes):
            raise AbilityError(
                f"preconditioner='gaussian' requires a chain with a method gaussian_slopes(variance), and "
                f"{type(self.chain).__name__} {undeclared(self.chain, HasGaussianSlopes, 'has none')}; "
                "take 'identity' or 'zero'"
            )
        return self.chain.gaussian_slopes(variance)

    def _lacks(self, ability: type[ABC], otherwise: str) -> AbilityError:
        known = ", ".join(sorted(ability.__abstractmethods__))
        kind, lacks = type(self.chain).__name__, undeclared(self.chain, ability, "")
        return AbilityError(f"{kind} {otherwise}" if not lacks else f"{kind}, asked for {known}, {lacks}")

    def _in_batches(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
        size = self.max_batch or max(len(x), 1)
        receive, pieces = Receiver(), []
        for pairs in zip(x.split(size), index.split(size), row.split(size), strict=True):
            try:
                pieces.append(receive(functools.partial(self._step, *pairs)))
            except Exception as error:  # a denoiser may raise anything; a note says where
                error.add_note(place_of(error, self._step, self.length, *pairs))
                raise
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def _step(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
        value = self.chain.step(x, index, row)
        if not isinstance(value, Tensor):
            raise TypeError(f"a step must return a tensor, got {type(value).__name__}")
        if value.shape != x.shape or value.dtype != x.dtype or value.device != x.device:
            raise ValueError(
                f"a step must return shape {tuple(x.shape)}, {x.dtype} on {x.device}, "
                f"got {tuple(value.shape)}, {value.dtype} on {value.device}"
            )
        return value

    def cost(self, rows: int) -> Cost:
        """One evaluation of the joint problem is ``N`` evaluations of steps per row."""
        return Cost(calls=self.calls(rows * self.length), evaluations=self.length)

    def measure(self, z: Float[Tensor, "B D"], fz: Float[Tensor, "B D"], residual: Float[Tensor, "B D"]) -> Measure:
        """Measure the largest relative change of any state that the defects imply.

        The error is that change times the norm of the last state; the scale is the norm of the last state. The defects
        of single steps shrink like ``1/N`` and are no measure of the error: a trajectory of states that all equal
        ``x_0`` has small defects. Carried along the chain unchanged (with identity slopes), they add up to the change
        that is still to come; see :func:`implied`.
        """
        defects, states = (part.unflatten(1, (self.length, -1)) for part in (residual, z))
        sizes = state_norms(states)
        change = implied(defects, sizes).amax(dim=1, keepdim=True)
        return Measure(change * sizes[:, -1:], sizes[:, -1:])

    def take(self, rows: Int[Tensor, " k"]) -> ChainProblem:
        """Return the problem of some of the rows, with their conditioning and noise."""
        start = None if self.start is None else self.start[rows]
        return ChainProblem(
            self.chain, self.x0[rows], max_batch=self.max_batch, rows=self.rows[rows], start=start, keep=self.keep
        )


def chain_of(problem: Problem, solver: str) -> ChainProblem:
    """Return ``problem`` as a ``ChainProblem``.

    Raises
    ------
    AbilityError
        When it is not a chain; the message names the solver.
    """
    if not isinstance(problem, ChainProblem):
        raise AbilityError(f"{solver} requires a chain (ChainProblem), got {type(problem).__name__}")
    return problem
