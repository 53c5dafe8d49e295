r"""Roots: ``g(z) = 0`` as the fixed point of ``z + c g(z)``, and what it takes to call a point a root.

A residual relative to ``||z||``, as fixed points are judged by, compares two quantities of different units here:
``1e-9 (x^3 - 5)`` is small beside ``x`` everywhere. A row is a root where

    ||g(z_k)|| <= atol + rtol G,    G = max(||g(z_0)||, c ||g(z_1) - g(z_0)|| / ||z_1 - z_0|| ||z_0||)

and where the step that the last slope implies is small beside the point, and that slope is a local one:

    p_k = ||g(z_k)|| ||z_k - z_{k-1}|| / ||g(z_k) - g(z_{k-1})|| <= rtol ||z_k||,
    ||z_k - z_{k-1}|| <= max(rtol, 1e-3) ||z_k||

The first bound alone holds far out on ``exp(-x)``; the second alone holds beside a jump of ``g``; the third keeps a
slope from being taken for that at ``z_k`` after one long step. (Dennis & Schnabel 1983, "Numerical methods for
unconstrained optimization and nonlinear equations", section 7.2, asks for small values and small steps in turn.) ``G``
is the start's ``||g||``. Rounding may not let ``g`` fall that far from a start that is nearly a root, so it is what the
first slope makes of the start (``c = 1``) where that is within ``rtol``, and within the square root of the precision,
of a root by that slope; elsewhere ``c`` is 16 units of rounding over ``rtol``. Where one unknown is far stiffer than
the others (Powell's badly scaled function) the first slope is that one's, and says nothing of them.

A ``g`` that is exactly zero is a root as well, unless it only underflows. Two things tell: while it fell, the steps
that it implied did not (:class:`RootMeasure`); or it is zero a little nearer to the start, too (:func:`is_flat`). The
first tells as much of a ``g`` that is not zero: far enough out, any step is within a loose tolerance of ``||z||``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fixedpoint.core.layout import Rows
from fixedpoint.core.problem import FunctionProblem, HasExactResidual, HasMeasure, Measure
from fixedpoint.core.reduce import row_norms
from fixedpoint.core.subset import select_rows
from fixedpoint.core.termination import Termination

__all__ = ["RootMeasure", "RootProblem", "is_flat"]

# The longest last move, of the size of the point, whose slope is that of g there.
_LOCAL = 1e-3
# Units in the last place of z that g is not asked to tell apart, whatever its value at the start.
_ROUNDING = 16.0
# Multiplicity of a root, beyond which a g that has become zero is said to vanish far out: at a root of multiplicity m
# the implied steps fall like |g|^(1/m). It is told from points between which g has fallen by this factor.
_MULTIPLICITY, _APART = 10.0, 1e-3
# The least such factor from which it is told at all, where no two points lie further apart.
_FALLEN = 0.1
# How far back towards the start a row is looked at once more: no simple fraction, where another root may lie.
_BACK = 1.0903e-3


Sample = tuple[Tensor, Tensor]


class RootProblem(FunctionProblem, HasExactResidual, HasMeasure):
    """``g(z) = 0`` as the fixed point of ``z + c g(z)``, judged as a root.

    Parameters
    ----------
    function
        ``g``: takes a value like ``z0`` and returns one of the same structure, shapes, dtype and device.
    z0
        The start.
    rows
        ``"independent"`` or ``"joint"``; see :meth:`Layout.of`.
    sign
        ``c``. None: 1, but made smaller or larger, row by row, where the first step would be longer than the start
        (than 1 an entry where that is zero), or shorter than the fourth root of the dtype's precision of it: slopes are
        taken from it.
    termination
        The stopping rule the measure is for.
    has_aux
        ``g`` returns a pair: its value, and anything else.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        z0: Any,
        rows: Rows | None,
        sign: float | None,
        termination: Termination,
        has_aux: bool = False,
    ) -> None:
        super().__init__(function, z0, rows, has_aux=has_aux, called="g")
        self._sign = sign
        self._factor: Tensor | None = None
        self._value: Tensor | None = None
        self._step: Tensor | None = None
        self._measure = RootMeasure(self, termination)

    def with_aux(self, z: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B D"], Any]:
        g, aux = super().with_aux(z)
        step = self._factor_at(z, g) * g
        if torch._C._functorch.peek_interpreter_stack() is None:  # not within forward mode
            self._value, self._step = g.detach(), step
        return z + step, aux

    @property
    def value(self) -> Float[Tensor, "B D"]:
        """``g`` as it was evaluated last: in ``f(z) - z`` it may be lost beside ``z``."""
        assert self._value is not None  # a point that is measured has been evaluated
        return self._value

    def exact_residual(self) -> Float[Tensor, "B D"]:
        """``c g`` as it was evaluated last."""
        assert self._step is not None  # a point that is judged has been evaluated
        return self._step

    def measure(self, z: Float[Tensor, "B D"], fz: Float[Tensor, "B D"], residual: Float[Tensor, "B D"]) -> Measure:
        """``||g||`` beside ``G``, and whether the last slope lets the point be a root."""
        return self._measure(z)

    def measure_of(self, rows: Int[Tensor, " k"]) -> RootMeasure:
        """The measure of some of the rows, with what is known of them."""
        return self._measure.take(rows)

    def _factor_at(self, z: Float[Tensor, "B D"], g: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
        if self._factor is None:
            sign = 1.0 if self._sign is None else self._sign
            factor = torch.full((z.shape[0], 1), sign, dtype=torch.float64, device=z.device)
            if self._sign is None:
                factor = _first_factor(z.detach(), g.detach())
            self._factor = factor.to(z.dtype)
        return self._factor


@dataclass(frozen=True)
class _Seen:
    """What a measure remembers of every row: the last point and ``g`` there, ``(B, D)``; all else ``(B, 1)``.

    ``scale`` is ``G``; ``sloped``, whether a slope is in it; ``settled``, whether the last point may be a root. Samples
    are ``|g|`` and the step it implied: at the last point, and at two before it with a ``g`` some orders larger each
    time.
    """

    z: Float[Tensor, "B D"]
    g: Float[Tensor, "B D"]
    scale: Float[Tensor, "B 1"]
    sloped: Bool[Tensor, "B 1"]
    settled: Bool[Tensor, "B 1"]
    last: Sample
    recent: Sample
    old: Sample


class RootMeasure:
    """The measure of roots: it remembers the last point of every row, and ``g`` there, for the last slope."""

    def __init__(self, problem: RootProblem, termination: Termination) -> None:
        self._problem = problem
        self._rows: Tensor | None = None
        self._seen: _Seen | None = None
        self._yardstick = replace(termination, per="row").yardstick
        eps = torch.finfo(problem.layout.dtype).eps
        self._rtol = max(termination.rtol, 4 * eps)
        self._near = min(self._rtol, math.sqrt(eps))
        self._least = min(_ROUNDING * eps / self._rtol, 1.0)

    def __call__(self, z: Float[Tensor, "B D"]) -> Measure:
        g = self._problem.value if self._rows is None else self._problem.value[self._rows]
        there = z.isfinite().all(dim=1, keepdim=True)  # infinity is no point, though g may vanish there
        size = torch.where(there, self._yardstick.norms(g, self._problem.layout), torch.nan)
        self._seen = self._begun(z, g, size) if self._seen is None else self._compared(self._seen, z, g, size)
        return Measure(size, self._seen.scale, self._seen.settled.squeeze(1))

    def take(self, rows: Int[Tensor, " k"]) -> RootMeasure:
        """That of some of the rows: their own first ``g`` stays what it is held against."""
        part = copy.copy(self)
        part._rows = rows if self._rows is None else self._rows[rows]
        part._seen = None if self._seen is None else select_rows(self._seen, rows)
        return part

    def _begun(self, z: Tensor, g: Tensor, size: Tensor) -> _Seen:
        unknown = torch.full_like(size, torch.nan)
        return _Seen(
            z=z.clone(),
            g=g.clone(),
            scale=size,
            sloped=torch.zeros_like(size, dtype=torch.bool),
            settled=size == 0,
            last=(unknown, unknown),
            recent=(torch.full_like(size, torch.inf), unknown),
            old=(unknown, unknown),
        )

    def _compared(self, seen: _Seen, z: Tensor, g: Tensor, size: Tensor) -> _Seen:
        moved = row_norms(z - seen.z).unsqueeze(1)
        changed = row_norms(g - seen.g).unsqueeze(1)
        length = row_norms(z).unsqueeze(1)
        told = (moved > 0) & moved.isfinite() & changed.isfinite()
        slope = changed / torch.where(told, moved, 1.0)
        linear = slope * row_norms(seen.z).unsqueeze(1)
        first = torch.maximum(seen.scale, torch.where(seen.scale <= self._near * linear, 1.0, self._least) * linear)
        implied = row_norms(g).unsqueeze(1) / slope  # a length of z: all Euclidean, whatever the norm of the error
        local = (implied <= self._rtol * length) & (moved <= max(self._rtol, _LOCAL) * length)
        zero, sample = size == 0, (size, implied)
        apart = told & ~zero & (size <= _APART * seen.recent[0])
        last, old = _kept(told & ~zero, sample, seen.last), _kept(apart, seen.recent, seen.old)
        settled = (zero | local) & ~_vanishes(_kept(old[0].isfinite(), old, seen.recent), last)
        return _Seen(
            z=torch.where(told, z, seen.z),
            g=torch.where(told, g, seen.g),
            scale=torch.where(told & ~seen.sloped, first, seen.scale),
            sloped=seen.sloped | told,
            settled=torch.where(told | zero, settled, seen.settled),
            last=last,
            recent=_kept(apart, sample, seen.recent),
            old=old,
        )


def _vanishes(before: Sample, now: Sample) -> Bool[Tensor, "B 1"]:
    """Whether ``g`` went on falling while the steps that it implied did not: like no root of any multiplicity."""
    (size, step), (last, final) = before, now
    return size.isfinite() & (last <= _FALLEN * size) & (final > step * (last / size).pow(1 / _MULTIPLICITY))


def is_flat(problem: RootProblem, z: Float[Tensor, "B D"], rows: Bool[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """Which of ``rows``, where ``g`` is exactly zero at ``z``, have a ``g`` of zero a little nearer to the start, too.

    Costs an evaluation. The other rows are evaluated where they are.
    """
    start = problem.initial()
    back = torch.where(rows.unsqueeze(1), z + _BACK * (start - z), z)
    problem(back)
    moved = (z != start).any(dim=1)
    return rows & moved & (problem.value == 0).all(dim=1)


def _kept(mask: Tensor, new: Sample, old: Sample) -> Sample:
    return torch.where(mask, new[0], old[0]), torch.where(mask, new[1], old[1])


def _first_factor(z: Float[Tensor, "B D"], g: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
    """What keeps the first step between a fourth root of the precision and once the size of the start."""
    size, step = row_norms(z), row_norms(g)
    size = torch.where(size > 0, size, math.sqrt(z.shape[1]))
    least = torch.finfo(z.dtype).eps ** 0.25 * size
    sound = (step > 0) & step.isfinite()
    length = torch.minimum(torch.maximum(step, least), size)
    factor = length / torch.where(sound, step, 1.0)
    return torch.where(sound & factor.isfinite(), factor, 1.0).unsqueeze(1)
