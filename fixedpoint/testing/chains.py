"""Chains and wrappers of chains to test chain solvers on."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.capabilities import HasCoefficients, HasJacobians, HasSlopes, step_jacobians
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.coarse import HasCoarse, check_kept
from fixedpoint.testing.wrappers import Tally

__all__ = [
    "CoefficientChain",
    "CountedChain",
    "JumpChain",
    "LinearChain",
    "PoisonedChain",
    "RaisingChain",
    "ScaledChain",
    "WaveChain",
    "linear_chain",
    "trajectory",
    "wave_chain",
]


class CoefficientChain(Chain, HasCoefficients, HasJacobians, HasSlopes, HasCoarse):
    """A chain with coefficients, derivatives and coarse chains, so that all preconditioners but ``gaussian`` apply."""

    @abstractmethod
    def coefficients(self) -> Float[Tensor, " N"]:
        """Return the slopes ``A_0 .. A_{N-1}``, shape ``(N,)``, float64."""

    def jacobians(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P d d"]:
        """Return the Jacobians of the steps, computed by autograd."""
        return step_jacobians(self.step, x, index, row)

    def slopes(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """Return the diagonals of the Jacobians."""
        return self.jacobians(x, index, row).diagonal(dim1=1, dim2=2).reshape(x.shape)

    def coarse(self, kept: Int[Tensor, " n"]) -> Chain:
        """Return the chain of jumps that repeat the change of their first step."""
        return JumpChain(self, check_kept(kept, self.length))

    def interpolate(
        self,
        x0: Float[Tensor, "B *event"],
        states: Float[Tensor, "B n *event"],
        kept: Int[Tensor, " n"],
        row: Int[Tensor, " B"],
    ) -> Float[Tensor, "B N *event"]:
        """Interpolate linearly in the number of the state."""
        known = torch.cat([kept.new_zeros(1), kept])
        state = torch.arange(1, self.length + 1, device="cpu")
        place = torch.searchsorted(kept, state)
        share = ((state - known[place]) / (kept - known[:-1])[place]).to(x0).view(1, -1, *[1] * (x0.ndim - 1))
        before = torch.cat([x0.unsqueeze(1), states], dim=1)[:, place]
        filled = before + share * (states[:, place] - before)
        filled[:, kept - 1] = states
        return filled


@dataclass(eq=False)
class LinearChain(CoefficientChain):
    """``Phi_i(x) = a_i x + b_i`` with the same slopes for all rows and different shifts.

    Attributes
    ----------
    slope
        ``a``, shape ``(N,)``, float64.
    shift
        ``b``, shape ``(B, N, d)``.
    """

    slope: Float[Tensor, " N"]
    shift: Float[Tensor, "B N d"]

    def __post_init__(self) -> None:
        self.length = len(self.slope)

    def coefficients(self) -> Float[Tensor, " N"]:
        return self.slope

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        return self.slope[index].unsqueeze(1).to(x.dtype) * x + self.shift[row, index].to(x.dtype)


@dataclass(eq=False)
class WaveChain(CoefficientChain):
    """``Phi_i(x) = x + h sin(S x + b)``, where ``S`` rotates the unknowns by one place and ``b`` differs between rows.

    Attributes
    ----------
    length
        ``N``, the number of steps.
    size
        ``h``, the length of a step.
    phase
        ``b``, shape ``(B, d)``.
    """

    length: int
    size: float
    phase: Float[Tensor, "B d"]

    def coefficients(self) -> Float[Tensor, " N"]:
        return torch.ones(self.length, dtype=torch.float64, device="cpu")

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        return x + self.size * torch.sin(x.roll(1, dims=1) + self.phase[row].to(x.dtype))


@dataclass(eq=False)
class _Wrapper(CoefficientChain):
    inner: CoefficientChain

    def __post_init__(self) -> None:
        self.length = self.inner.length

    def coefficients(self) -> Float[Tensor, " N"]:
        return self.inner.coefficients()

    def jacobians(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P d d"]:
        return self.inner.jacobians(x, index, row)


@dataclass(eq=False)
class JumpChain(CoefficientChain):
    """Jumps of a chain between the states ``kept``: the change of the first step times the number of steps jumped."""

    inner: CoefficientChain
    kept: Int[Tensor, " n"]

    def __post_init__(self) -> None:
        self.length = len(self.kept)
        self.starts = torch.cat([self.kept.new_zeros(1), self.kept[:-1]])
        self.spans = (self.kept - self.starts).double()

    def coefficients(self) -> Float[Tensor, " N"]:
        return 1 + self.spans * (self.inner.coefficients()[self.starts] - 1)

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        span = self.spans[index].to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        return x + span * (self.inner.step(x, self.starts[index], row) - x)


@dataclass(eq=False)
class ScaledChain(_Wrapper):
    """``s Phi_i(x / s)`` with ``s = factor``: the same chain in other units."""

    factor: float

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        return self.factor * self.inner.step(x / self.factor, index, row)

    def jacobians(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P d d"]:
        return self.inner.jacobians(x / self.factor, index, row)


@dataclass(eq=False)
class PoisonedChain(_Wrapper):
    """Step ``at`` of the rows in ``rows`` returns ``value`` (NaN or Inf) at any state."""

    rows: Int[Tensor, " k"]
    at: int
    value: float = float("nan")

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        bad = torch.isin(row, self.rows) & (index == self.at)
        return self.inner.step(x, index, row).masked_fill(bad.view(-1, *[1] * (x.ndim - 1)), self.value)


@dataclass(eq=False)
class CountedChain(_Wrapper):
    """Counts its calls, their rows and dtypes in ``tally``; derivatives count as calls."""

    tally: Tally = field(default_factory=Tally)

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        self.tally.note(row, x.dtype)
        return self.inner.step(x, index, row)

    def jacobians(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P d d"]:
        self.tally.note(row, x.dtype)
        return self.inner.jacobians(x, index, row)


@dataclass(eq=False)
class RaisingChain(_Wrapper):
    """Raises ``error`` after ``grace`` calls."""

    error: Exception
    grace: int = 0
    tally: Tally = field(default_factory=Tally)

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        self.tally.calls += 1
        if self.tally.calls > self.grace:
            raise self.error
        return self.inner.step(x, index, row)


def linear_chain(length: int = 12, rows: int = 4, size: int = 3, *, seed: int = 0) -> LinearChain:
    """Make a linear chain with random slopes in ``[.7, 1.1]``, float64."""
    generator = torch.Generator().manual_seed(seed)
    slope = torch.empty(length, dtype=torch.float64, device="cpu").uniform_(0.7, 1.1, generator=generator)
    shift = 0.3 * torch.randn(rows, length, size, generator=generator, dtype=torch.float64, device="cpu")
    return LinearChain(slope, shift)


def wave_chain(length: int = 12, rows: int = 4, size: int = 3, *, seed: int = 0) -> WaveChain:
    """Make a nonlinear chain that covers a time of 3 in ``length`` steps, float64."""
    generator = torch.Generator().manual_seed(seed)
    return WaveChain(
        length, 3.0 / length, torch.randn(rows, size, generator=generator, dtype=torch.float64, device="cpu")
    )


def trajectory(chain: Chain, x0: Float[Tensor, "B *event"]) -> Float[Tensor, "B N *event"]:
    """Return the states of a chain, computed one step after another."""
    rows = torch.arange(len(x0), device="cpu")
    states = [x0]
    for i in range(chain.length):
        states.append(chain.step(states[-1], torch.full_like(rows, i), rows))
    return torch.stack(states[1:], dim=1)
