r"""Broyden's method with limited memory.

For ``g(z) = f(z) - z``, with an estimate ``H`` of the inverse Jacobian of ``g`` that begins as ``H_0 = -I`` (a Picard
step):

    z_{k+1} = z_k - H_k g_k
    dz      = z_{k+1} - z_k,   dg = g_{k+1} - g_k
    v       = H_k^T dz  ("good")  or  dg  ("bad")
    H_{k+1} = H_k + (dz - H_k dg) v^T / (v^T dg)

(Broyden 1965, "A class of methods for solving nonlinear simultaneous equations", eq. 4.12, and the second method
there.) The good update makes the smallest change to the estimate of the Jacobian, the bad update the smallest change to
the estimate of its inverse. ``H`` is stored as ``-I + sum_i c_i d_i^T`` with at most ``m`` pairs.

Where we differ: the oldest pair is dropped before the update, so that the newest secant equation ``H dg = dz`` always
holds. An update whose denominator is only rounding is skipped. A row whose residual has grown to more than
``restart_growth`` times its smallest drops all its pairs, unless a plain step made it grow: then it keeps that secant.
With fewer pairs than unknowns, the residual can stop falling even where ``f`` is an affine contraction, because every
new pair takes the place of one that is needed. A row whose residual has had no new minimum for ``2 m`` rounds, and for
20, therefore drops all its pairs, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.combine import add_combination
from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.history import History
from fixedpoint.core.inverse_jacobian import InverseEstimate, LowRankInverse
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import option
from fixedpoint.core.reduce import row_dots, row_norms, vecdot
from fixedpoint.core.small import where
from fixedpoint.core.transfer import to_device, to_host
from fixedpoint.solvers.row_numbers import as_tensor
from fixedpoint.solvers.safeguard import Growth, Idleness

__all__ = ["Broyden", "BroydenState"]


# Rounds without a smaller residual after which a row of few pairs may drop them.
_LEAST_PATIENCE = 20


@dataclass(frozen=True)
class BroydenState:
    """What Broyden's method keeps between steps.

    ``history`` holds the pairs ``(c, d)``; ``point`` and ``residual`` are the last point and its residual, and
    ``products`` the inner products ``d_i . residual`` for every slot of the history. ``proposal`` is the last point
    proposed, ``linked`` marks the rows that may take a secant, ``growth`` holds the smallest residual norms, and
    ``idle`` the rounds without a smaller one.

    The numbers of rows are arrays on a CPU, and tensors elsewhere and while autograd records.
    """

    history: History
    point: Float[Tensor, "B D"] | None
    residual: Float[Tensor, "B D"] | None
    products: Any
    proposal: Float[Tensor, "B D"] | None
    linked: Any
    growth: Growth
    idle: Idleness


@dataclass(frozen=True)
class Broyden(StepSolver[BroydenState]):
    """Broyden's method with limited memory: a quasi-Newton method that estimates the inverse Jacobian."""

    memory: int = option(20, ge=1, help="m: number of rank-one updates kept")
    update: Literal["good", "bad"] = option(
        "good", help="the estimate that each update changes least: of the Jacobian (good) or of its inverse (bad)"
    )
    restart_growth: float = option(
        1e3, gt=1.0, help="ratio of the residual to the smallest one above which a row forgets its updates"
    )

    provides = StepSolver.provides | {"inverse"}

    @property
    def supports_row_selection(self) -> bool:
        return True

    def init(self, f: Evaluator, at: Evaluated) -> BroydenState:
        rows, on_host = at.z.shape[0], at.z.device.type == "cpu" and f.has_numbers
        none: Any = np.zeros((rows, self.memory)) if on_host else at.error.new_zeros(rows, self.memory)
        norm = _number(at.residual_norm, on_host)
        return BroydenState(
            history=History.empty(at.z, self.memory, groups=2, on_host=on_host),
            point=None,
            residual=None,
            products=none,
            proposal=None,
            linked=none[:, 0] > 0,
            growth=Growth.begin(norm),
            idle=Idleness.begin(norm),
        )

    def reset(self, state: BroydenState, rows: Any) -> BroydenState:
        rows = _number(rows, on_host=not isinstance(state.products, Tensor))
        return replace(state, history=state.history.forget(rows), linked=state.linked & ~rows)

    @np.errstate(all="ignore")
    def step(
        self, f: Evaluator, at: Evaluated, state: BroydenState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, BroydenState]:
        on_host = not isinstance(state.products, Tensor)
        size = _number(at.residual_norm, on_host)
        grown, growth = state.growth.watch(size, self.restart_growth)
        if not on_host or grown.any():
            grown = grown & state.history.valid.any(1)
        idle = state.idle
        if self.memory < at.z.shape[1]:
            patience = max(2 * self.memory, _LEAST_PATIENCE)
            stuck, idle = idle.watch(size, state.growth.best, patience)
            grown = grown | stuck
        if not on_host or grown.any():
            state = self.reset(state, grown)
        history, products = state.history, state.products
        # This is the memory of the previous point. It is read for the last time while dz is written over it.
        memory = f.empty()
        if state.point is None or state.residual is None:
            proposal = torch.add(at.z, at.residual, out=memory)
        else:
            dz = torch.sub(at.z, state.point, out=memory)
            dg = torch.sub(at.residual, state.residual, out=f.spare())
            ended = None if "inverse" not in f.wanted else to_device(~f.running, at.z.device)
            aside = () if ended is None else history.set_aside()
            step, history, products = self._updated(at, dz, dg, state)
            if ended is not None:  # the estimate of a row that has ended must belong to its answer
                history = history.put_back(ended, aside)
            proposal = torch.add(at.z, step, out=memory)
        linked = (state.linked | True) if on_host else torch.ones_like(state.linked)
        return proposal, BroydenState(history, at.z, at.residual, products, proposal, linked, growth, idle)

    def inverse(self, state: BroydenState) -> InverseEstimate:
        left, right = state.history.columns
        valid = state.history.valid
        return LowRankInverse(left, right, lambda products: torch.where(valid, products, 0.0))

    def _updated(
        self, at: Evaluated, dz: Float[Tensor, "B D"], dg: Float[Tensor, "B D"], state: BroydenState
    ) -> tuple[Float[Tensor, "B D"], History, Any]:
        """Return the step ``-H g``, and history and products with the newest pair in place of the oldest.

        It overwrites ``dz``.

        Each pair is read only twice. The inner products ``d_i . dg`` are differences of the stored ``d_i . g``. Where
        the present point is the one that was proposed, ``dz`` is ``-H g`` of the previous point, so ``dz - H dg`` is
        the step with the old ``H``, without the oldest pair. At any other point, such as a damped one, ``dz - H dg`` is
        computed by a separate sum.
        """
        history, on_host = state.history, not isinstance(state.products, Tensor)
        along, products = _products(history, dz if self.update == "good" else None, at.residual, on_host)
        secant = None
        if at.z is not state.proposal:
            change = _masked(products - state.products[:, history.start :], history.surviving)
            secant = add_combination(dz + dg, history.columns[0], _weights(-change, dz))
        along = None if along is None else _masked(along, history.surviving)
        step, v = _combined(history, at.residual, dz, _masked(-products, history.surviving), along)
        v = dg if v is None else v
        missed = _without_oldest(step, state)  # dz - H dg
        if secant is not None:
            assert state.proposal is not None  # there is a point before
            missed = torch.where((at.z == state.proposal).all(dim=1, keepdim=True), missed, secant)
        length, size = (_number(row_norms(each.detach()), on_host) for each in (v, dg))
        denominator, onto = (_number(vecdot(v, each), on_host) for each in (dg, at.residual))
        sound = state.linked & (abs(denominator) > torch.finfo(dg.dtype).eps * length * size)
        # Stored as (dz - H dg) |v| / (v^T dg) and v / |v|: both are of moderate size in any dtype.
        length = where(sound, length, 1.0)
        scale, unit = length / where(sound, denominator, 1.0), 1.0 / length
        newest = where(sound, onto * unit, 0.0)
        scaled = (missed, as_tensor(scale, v)), (v, as_tensor(unit, v))
        pushed = history.push_scaled(*scaled, valid=sound)
        step = _plus(step, pushed.columns[0].select(1, pushed.newest), -newest, _own(step))
        kept = state.products.copy() if on_host else state.products.clone()
        kept[:, history.start :] = products
        kept[:, pushed.start + pushed.newest] = newest
        return step, pushed, kept


def _products(
    history: History, dz: Float[Tensor, "B D"] | None, residual: Float[Tensor, "B D"], on_host: bool
) -> tuple[Any, Any]:
    """Return ``c_i . dz``, if wanted, and ``d_i . residual``, shape ``(B, m)``."""
    left, right = history.columns
    along = None if dz is None else _number(row_dots(left, dz), on_host)
    return along, _number(row_dots(right, residual), on_host)


def _combined(
    history: History, residual: Float[Tensor, "B D"], dz: Float[Tensor, "B D"], products: Any, along: Any
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"] | None]:
    """Return ``residual + sum_i c_i products_i`` and ``-dz + sum_i d_i along_i``; None where there is no ``along``.

    They are written into the memory of ``dz`` and of the oldest ``d``.
    """
    left, right = history.columns
    v = None
    if along is not None:
        v = torch.neg(dz, out=history.room(1))
        v = add_combination(v, right, _weights(along, dz), out=_own(v))
    return add_combination(residual, left, _weights(products, dz), out=_own(dz)), v


def _without_oldest(step: Float[Tensor, "B D"], state: BroydenState) -> Float[Tensor, "B D"]:
    """``step - c (d . g)`` for the pair that is dropped, in the memory of its ``c``; ``step`` if none is dropped."""
    history = state.history
    if history.oldest is None:
        return step
    along = _masked(state.products[:, history.oldest], history.valid[:, history.oldest])
    return _plus(step, history.columns[0].select(1, history.oldest), -along, history.room(0))


def _plus(
    base: Float[Tensor, "B D"], column: Float[Tensor, "B D"], factor: Any, out: Float[Tensor, "B D"] | None
) -> Float[Tensor, "B D"]:
    """Return ``base + factor column``, summed in single precision at least."""
    factor = as_tensor(factor, base).unsqueeze(1)
    if base.dtype in (torch.float64, torch.float32):
        return torch.addcmul(base, column, factor.to(base.dtype), out=out)
    return add_combination(base, column.unsqueeze(1), factor.unsqueeze(1), out=out)


def _own(tensor: Tensor) -> Tensor | None:
    """The tensor itself as memory to write into; None while autograd records, when nothing may be overwritten."""
    return None if torch.is_grad_enabled() else tensor


def _number(tensor: Any, on_host: bool) -> Any:
    """Return numbers of rows as an array, if they are wanted on the host."""
    return to_host(tensor)[0] if on_host and isinstance(tensor, Tensor) else tensor


def _weights(numbers: Any, like: Tensor) -> Float[Tensor, "B 1 m"]:
    """Return weights ``(B, m)`` of whole rows as a tensor."""
    return as_tensor(numbers, like).unsqueeze(1)


def _masked(weights: Any, valid: Any) -> Any:
    """Return weights that are zero where a column is not valid."""
    return weights if isinstance(valid, np.ndarray) and valid.all() else where(valid, weights, 0.0)
