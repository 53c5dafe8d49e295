r"""Defines ``ChainProblem``, the joint fixed point of all states of a chain.

A chain of opaque steps is ``x_{i+1} = Phi_i(x_i)``, ``i = 0 .. N-1``, with ``x_0`` given. The stacked states
``X = (x_1 .. x_N)`` solve ``X = F(X)`` with ``F(X)_{i+1} = Phi_i(x_i)``. This is one problem, and all its steps can be
evaluated in one batch. The Jacobian of its residual is block lower bidiagonal. The fixed point therefore exists, is
unique, and equals the sequential trajectory. A plain round makes at least one more state exact, so ``N`` rounds always
suffice. (Pokle, Geng & Kolter 2022, "Deep Equilibrium Approaches to Diffusion Models", section 3, for DDIM; Shih et al.
2023; Tang et al. 2024.)

With a memory (``PredictionChain``), the states are the inputs ``u_1 .. u_K`` of the predictions and the result, and
``F(U)_{j+1}`` is what the recurrence makes of the inputs and of their predictions. All of the above holds for it, too.
"""

from __future__ import annotations

import copy
import functools
import numbers
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fixedpoint.chains.abilities import OptionalAbilities
from fixedpoint.chains.capabilities import HasReferenceSlopes
from fixedpoint.chains.chain import Chain, PredictionChain
from fixedpoint.chains.coarse import HasCoarse
from fixedpoint.chains.faults import place_of
from fixedpoint.chains.measure import implied, state_norms
from fixedpoint.chains.recurrence.affine import Affine
from fixedpoint.chains.recurrence.linear import LinearPart
from fixedpoint.chains.recurrence.recurrence import Held, Recurrence, Shift
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

__all__ = ["ChainProblem", "chain_of", "require_memoryless"]


class ChainProblem(OptionalAbilities, Problem, HasTake, HasMeasure, HasCost):
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
        Largest number of (state, step) pairs in one call of ``chain.step`` (of ``chain.predict`` for a chain with a
        memory), at least 1; default: no limit.
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
        chain: Chain | PredictionChain,
        x0: Shaped[Tensor, "B *event"],
        *,
        max_batch: int | None = None,
        rows: Int[Tensor, " B"] | None = None,
        start: Shaped[Tensor, "B N *event"] | None = None,
        keep: Literal["all", "last"] = "all",
    ) -> None:
        if not isinstance(chain, (Chain, PredictionChain)):
            raise TypeError(f"chain must be a Chain, got {type(chain).__name__}")
        for name in ("length",) if isinstance(chain, Chain) else ("length", "recurrence"):
            if not hasattr(chain, name):
                raise TypeError(f"{type(chain).__name__} has no {name}; set it in __init__")
        if x0.ndim < 2:
            raise ValueError(f"x0 must have a batch dimension and at least one more, got shape {tuple(x0.shape)}")
        if not x0.is_floating_point():
            raise TypeError(f"x0 must be of a floating-point dtype, got {x0.dtype}")
        _check_max_batch(max_batch)
        if chain.length < 1:
            raise ValueError(f"a chain must have at least one step, got length {chain.length}")
        if rows is None and not bool(x0.isfinite().all()):  # ``take`` passes rows that are already checked
            raise ValueError(f"x0 must be finite, got {int((~x0.isfinite()).sum())} entries that are NaN or Inf")
        self.chain = chain
        self.recurrence: Recurrence = Shift() if isinstance(chain, Chain) else chain.recurrence
        if isinstance(self.recurrence, Affine) and len(self.recurrence.inputs) != chain.length:
            raise ValueError(
                f"the recurrence of a chain of length {chain.length} must have as many rows in its tables, "
                f"got {len(self.recurrence.inputs)}"
            )
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
        self._has_all_rows = rows is None
        self.start = start
        self.keep = keep
        blocks = chain.length if keep == "all" else 1
        steps = x0.unsqueeze(1).expand(-1, blocks, *x0.shape[1:])
        self.layout = Layout.of(steps, rows="independent", blocks=blocks)

    @property
    def length(self) -> int:
        """``N``, the number of steps; ``K``, the number of predictions, for a chain with a memory."""
        return self.chain.length

    @property
    def memoryless(self) -> bool:
        """Whether every state depends on the state before it alone."""
        return isinstance(self.recurrence, Shift)

    @functools.cached_property
    def reference(self) -> LinearPart:
        """The linear part that measures the error; the preconditioner ``identity`` uses it, too.

        Raises
        ------
        ValueError
            When the chain returns reference slopes of another shape, or slopes that are not finite.
        """
        if not isinstance(self.chain, (HasReferenceSlopes, PredictionChain)):
            return LinearPart(torch.ones(self.length, dtype=torch.float64, device=self.x0.device))
        slopes = self.chain.reference_slopes().double().to(self.x0.device)
        if slopes.shape != (self.length,) or not bool(slopes[1:].isfinite().all()):
            raise ValueError(
                f"reference_slopes must return {self.length} finite numbers, got {slopes.tolist()}, "
                f"shape {tuple(slopes.shape)}"
            )
        return LinearPart(slopes, self.recurrence)

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
        found = self.pairs(states.reshape(-1, *self.x0.shape[1:]), index, row).view(z.shape)
        if self.memoryless:
            return found
        values = self.recurrence.values(self._held(z, found)).flatten(1)
        constants = self.constants(index, row)
        return values if constants is None else values + constants.view(z.shape)

    def pairs(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """Evaluate ``Phi_index(x)`` for any (state, step) pairs of rows ``0 .. B-1`` of this problem."""
        return self._in_batches(x, index, row if self._has_all_rows else self.rows[row])

    def constants(self, index: Int[Tensor, " P"], row: Int[Tensor, " P"]) -> Float[Tensor, "P *event"] | None:
        """Return what the recurrence adds to the states after these predictions; None if it adds nothing.

        Raises
        ------
        ValueError
            When the chain returns constants of another shape.
        """
        found = self.chain.constants(index, self.rows[row]) if isinstance(self.chain, PredictionChain) else None
        if found is not None and found.shape != (len(index), *self.x0.shape[1:]):
            raise ValueError(
                f"constants must return shape {(len(index), *self.x0.shape[1:])}, got {tuple(found.shape)}"
            )
        return None if found is None else found.to(self.x0)

    def next_state(
        self,
        index: int,
        inputs: Sequence[Float[Tensor, "P *event"]],
        predictions: Sequence[Float[Tensor, "P *event"]],
        row: Int[Tensor, " P"],
    ) -> Float[Tensor, "P *event"]:
        """Return the state after prediction ``index``, from the last pairs of each row, the newest first."""
        flat = ([part.flatten(1) for part in parts] for parts in (inputs, predictions))
        state = self.recurrence.next_input(index, *flat).view(inputs[0].shape)
        constants = self.constants(torch.full_like(row, index), row)
        return state if constants is None else state + constants

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
            raise self.lacks(HasCoarse, "has no coarser chains (no methods coarse and interpolate)")
        return ChainProblem(self.chain.coarse(kept), self.x0, max_batch=self.max_batch, rows=self.rows)

    def _in_batches(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
        size, receive, pieces = self.max_batch, Receiver(), []
        split = ((part,) if size is None or size >= len(x) else part.split(size) for part in (x, index, row))
        for pairs in zip(*split, strict=True):
            try:
                pieces.append(receive(functools.partial(self._predict, *pairs)))
            except Exception as error:  # a denoiser may raise anything; a note says where
                error.add_note(place_of(error, self._predict, self.length, *pairs))
                raise
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def _predict(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
        is_step = isinstance(self.chain, Chain)
        value = self.chain.step(x, index, row) if is_step else self.chain.predict(x, index, row)  # type: ignore[union-attr]
        called = "a step" if is_step else "a prediction"
        if not isinstance(value, Tensor):
            raise TypeError(f"{called} must return a tensor, got {type(value).__name__}")
        if value.shape != x.shape or value.dtype != x.dtype or value.device != x.device:
            raise ValueError(
                f"{called} must return shape {tuple(x.shape)}, {x.dtype} on {x.device}, "
                f"got {tuple(value.shape)}, {value.dtype} on {value.device}"
            )
        return value

    def _held(self, z: Float[Tensor, "B D"], predictions: Float[Tensor, "B D"]) -> Held:
        """Return all pairs of the chain as a window that holds the whole of it."""
        base = self.x0.flatten(1).unsqueeze(1)
        states, found = (part.unflatten(1, (self.length, -1)) for part in (z, predictions))
        return Held(base, states, base[:, :0], found)

    def cost(self, rows: int) -> Cost:
        """One evaluation of the joint problem is ``N`` evaluations of steps per row."""
        return Cost(calls=self.calls(rows * self.length), evaluations=self.length)

    def measure(self, z: Float[Tensor, "B D"], fz: Float[Tensor, "B D"], residual: Float[Tensor, "B D"]) -> Measure:
        """Measure the largest relative change of any state that the defects imply.

        The error is that change times the norm of the last state; the scale is the norm of the last state. The defects
        of single steps shrink like ``1/N`` and are no measure of the error: a trajectory of states that all equal
        ``x_0`` has small defects. Carried along the chain by :attr:`reference`, they add up to the change that is still
        to come; see :func:`implied`.
        """
        defects, states = (part.unflatten(1, (self.length, -1)) for part in (residual, z))
        sizes = state_norms(states)
        change = implied(defects, sizes, self.reference, self._held(z, fz)).amax(dim=1, keepdim=True)
        return Measure(change * sizes[:, -1:], sizes[:, -1:])

    def take(self, rows: Int[Tensor, " k"]) -> ChainProblem:
        """Return the problem of some of the rows, with their conditioning and noise."""
        start = None if self.start is None else self.start[rows]
        return ChainProblem(
            self.chain, self.x0[rows], max_batch=self.max_batch, rows=self.rows[rows], start=start, keep=self.keep
        )


def _check_max_batch(size: Any) -> None:
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, numbers.Integral):
        raise TypeError(f"max_batch must be an integer, got {size!r}")
    if size < 1:
        raise ValueError(f"max_batch must be at least 1, got {size}")


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


def require_memoryless(problem: ChainProblem, what: str) -> None:
    """Check that every state of a chain depends on the state before it alone.

    Raises
    ------
    AbilityError
        When the chain has a memory; the message says that ``what`` requires one without.
    """
    if not problem.memoryless:
        raise AbilityError(
            f"{what} requires steps without memory, and {type(problem.chain).__name__} makes its states of the last "
            f"{problem.recurrence.history} inputs and predictions; ChainSolver and serial solve it"
        )
