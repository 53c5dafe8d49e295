r"""Roots: ``g(z) = 0`` as the fixed point of ``z + c g(z)``, and the test by which a point is called a root.

The test of fixed points, a residual relative to ``||z||``, would compare quantities of different units here:
``1e-9 (x^3 - 5)`` is small relative to ``x`` everywhere. A row is a root where

    ||g(z_k)|| <= atol + rtol G,    G = max(||g(z_0)||, c ||g(z_1) - g(z_0)|| / ||z_1 - z_0|| ||z_0||)

and where the step that the last slope implies is small relative to the point, and that slope is a local one:

    p_k = ||g(z_k)|| ||z_k - z_{k-1}|| / ||g(z_k) - g(z_{k-1})|| <= rtol ||z_k||,
    ||z_k - z_{k-1}|| <= max(rtol, 1e-3) ||z_k||

The first bound alone also holds far out on ``exp(-x)``. The second alone also holds next to a jump of ``g``. The third
prevents the slope over one long step from being taken for the slope at ``z_k``. (Dennis & Schnabel 1983, "Numerical
methods for unconstrained optimization and nonlinear equations", section 7.2, requires small values and small steps in
turn.)

``G`` is usually ``||g||`` at the start. From a start that is nearly a root, rounding may prevent ``g`` from falling
that far below it. If the first slope puts the start within ``rtol``, and within the square root of the precision, of a
root, ``G`` is therefore the second term with ``c = 1``; elsewhere ``c`` is 16 units of rounding over ``rtol``. If one
unknown is far stiffer than the others (Powell's badly scaled function), the first slope is that of this unknown and
says nothing about the others.

A ``g`` that is exactly zero is a root too, unless it only underflows. There are two signs of underflow: the steps that
``g`` implied did not fall while ``g`` did (:class:`RootMeasure`), or ``g`` is also zero a little nearer to the start
(:func:`is_flat`). The first sign is used for a nonzero ``g`` as well: far enough out, any step is within a loose
tolerance of ``||z||``.
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

# The longest last move, relative to the size of the point, whose slope counts as that of g there.
_LOCAL = 1e-3
# g need not distinguish points that differ by fewer units in the last place of z, whatever its value at the start.
_ROUNDING = 16.0
# Above this multiplicity of a root, a g that has become zero is taken to vanish far out: at a root of multiplicity m
# the implied steps fall like |g|^(1/m). The test compares points between which g has fallen by _SAMPLE_RATIO.
_MULTIPLICITY, _SAMPLE_RATIO = 10.0, 1e-3
# A slope over a far longer way than the step that it implies, such as the way back from a trial that exploded, is not
# that of g at the point: it enters no sample. Where g vanishes far out, both are of one size.
_NONLOCAL = 1e-3
# Where no two points are that far apart, the test still applies if g has fallen by this factor.
_TENFOLD_FALL = 0.1
# The fraction of the way back to the start at which `is_flat` evaluates g: not a simple one, where a root may lie.
_RECHECK_FRACTION = 1.0903e-3


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
        ``c``. None: 1, but smaller in a row whose first step would be longer than the start (than 1 per entry from a
        start at zero), and larger in one whose first step would be shorter than the fourth root of the dtype's
        precision times the start, since a slope is computed from that step.
    termination
        The stopping rule, whose tolerance and norm the measure uses.
    has_aux
        Whether ``g`` returns a pair: its value, and anything else.
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
        """Return ``z + c g(z)``, and the second item of ``g``; store ``g`` and ``c g`` for the measure."""
        g, aux = super().with_aux(z)
        step = self._factor_at(z, g) * g
        if torch._C._functorch.peek_interpreter_stack() is None:  # not within forward mode
            self._value, self._step = g.detach(), step
        return z + step, aux

    @property
    def value(self) -> Float[Tensor, "B D"]:
        """``g`` at the point evaluated last, which ``f(z) - z`` may lose to rounding where ``z`` is much larger."""
        assert self._value is not None  # a point that is measured has been evaluated
        return self._value

    def exact_residual(self) -> Float[Tensor, "B D"]:
        """Return ``c g`` at the point evaluated last."""
        assert self._step is not None  # a point that is judged has been evaluated
        return self._step

    def residual(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return ``c g(z)``."""
        g = super().with_aux(z)[0]
        return self._factor_at(z, g) * g

    def measure(self, z: Float[Tensor, "B D"], fz: Float[Tensor, "B D"], residual: Float[Tensor, "B D"]) -> Measure:
        """Return ``||g||`` as error, ``G`` as scale, and whether the last slope allows the point to be a root."""
        return self._measure(z)

    def measure_of(self, rows: Int[Tensor, " k"]) -> RootMeasure:
        """Return the measure of some of the rows, with what it stores of them."""
        return self._measure.take(rows)

    def _factor_at(self, z: Float[Tensor, "B D"], g: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
        """Return ``c`` of every row, chosen at the first evaluation."""
        if self._factor is None:
            sign = 1.0 if self._sign is None else self._sign
            factor = torch.full((z.shape[0], 1), sign, dtype=torch.float64, device=z.device)
            if self._sign is None:
                factor = _first_factor(z.detach(), g.detach())
            self._factor = factor.to(z.dtype)
        return self._factor


@dataclass(frozen=True)
class _Seen:
    """What a measure stores of every row: the last point and ``g`` there, ``(B, D)``; all else ``(B, 1)``.

    ``scale`` is ``G``, ``sloped`` says whether a slope has entered it, and ``settled`` whether the last point may be a
    root. A sample is ``|g|`` and the step that it implied: ``last`` at the last point, ``recent`` and ``old`` at two
    earlier points whose ``g`` was larger by some orders of magnitude each.
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
    """The measure of roots. It stores the last point of every row, and ``g`` there, to compute the last slope."""

    def __init__(self, problem: RootProblem, termination: Termination) -> None:
        self._problem = problem
        self._rows: Tensor | None = None
        self._seen: _Seen | None = None
        self._yardstick = replace(termination, per="row").yardstick
        eps = torch.finfo(problem.layout.dtype).eps
        self._rtol = max(termination.rtol, 4 * eps)  # a step of z cannot be smaller than its rounding
        self._near = min(self._rtol, math.sqrt(eps))
        self._least = min(_ROUNDING * eps / self._rtol, 1.0)

    def __call__(self, z: Float[Tensor, "B D"]) -> Measure:
        g = self._problem.value if self._rows is None else self._problem.value[self._rows]
        there = z.isfinite().all(dim=1, keepdim=True)  # infinity is no root, though g may vanish there
        size = torch.where(there, self._yardstick.norms(g, self._problem.layout, careful=True), torch.nan)
        self._seen = self._begun(z, g, size) if self._seen is None else self._compared(self._seen, z, g, size)
        return Measure(size, self._seen.scale, self._seen.settled.squeeze(1))

    def take(self, rows: Int[Tensor, " k"]) -> RootMeasure:
        """Return the measure of some of the rows, which still compares ``g`` with its value at their own start."""
        part = copy.copy(self)
        part._rows = rows if self._rows is None else self._rows[rows]
        part._seen = None if self._seen is None else select_rows(self._seen, rows)
        return part

    def _begun(self, z: Tensor, g: Tensor, size: Tensor) -> _Seen:
        """Return what is stored after the first point."""
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
        """Return what is stored after a further point: apply the bounds of this module to the last slope."""
        moved = row_norms(z - seen.z).unsqueeze(1)
        changed = row_norms(g - seen.g).unsqueeze(1)
        length = row_norms(z).unsqueeze(1)
        told = (moved > 0) & moved.isfinite() & changed.isfinite()
        slope = changed / torch.where(told, moved, 1.0)
        linear = slope * row_norms(seen.z).unsqueeze(1)
        first = torch.maximum(seen.scale, torch.where(seen.scale <= self._near * linear, 1.0, self._least) * linear)
        implied = row_norms(g).unsqueeze(1) / slope  # a length of z, hence Euclidean, whatever the norm of the error
        local = (implied <= self._rtol * length) & (moved <= max(self._rtol, _LOCAL) * length)
        zero, sample = size == 0, (size, implied)
        sampled = told & ~zero & (implied >= _NONLOCAL * moved)
        apart = sampled & (size <= _SAMPLE_RATIO * seen.recent[0])
        last, old = _kept(sampled, sample, seen.last), _kept(apart, seen.recent, seen.old)
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
    """Whether ``g`` fell further while the steps it implied fell more slowly than at a root of multiplicity 10."""
    (size, step), (last, final) = before, now
    return size.isfinite() & (last <= _TENFOLD_FALL * size) & (final > step * (last / size).pow(1 / _MULTIPLICITY))


def is_flat(problem: RootProblem, z: Float[Tensor, "B D"], rows: Bool[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """Return which of ``rows``, where ``g`` is exactly zero at ``z``, have ``g = 0`` a little nearer to the start too.

    Costs one evaluation of all rows; rows not in ``rows`` are evaluated at ``z``.
    """
    start = problem.initial()
    back = torch.where(rows.unsqueeze(1), z + _RECHECK_FRACTION * (start - z), z)
    problem(back)
    moved = (z != start).any(dim=1)
    return rows & moved & (problem.value == 0).all(dim=1)


def _kept(mask: Tensor, new: Sample, old: Sample) -> Sample:
    """Return the new sample in the rows of ``mask``, the old one elsewhere."""
    return torch.where(mask, new[0], old[0]), torch.where(mask, new[1], old[1])


def _first_factor(z: Float[Tensor, "B D"], g: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
    """Return the factors that keep the first step between the fourth root of the precision and 1 times the start."""
    size, step = row_norms(z), row_norms(g)
    size = torch.where(size > 0, size, math.sqrt(z.shape[1]))
    least = torch.finfo(z.dtype).eps ** 0.25 * size
    sound = (step > 0) & step.isfinite()
    length = torch.minimum(torch.maximum(step, least), size)
    factor = length / torch.where(sound, step, 1.0)
    return torch.where(sound & factor.isfinite(), factor, 1.0).unsqueeze(1)
