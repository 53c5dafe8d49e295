"""What a joint problem can do where its chain has the ability: derivatives, jumps, interpolation and others."""

from __future__ import annotations

import functools
from abc import ABC
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.capabilities import (
    HasCoefficients,
    HasGaussianSlopes,
    HasJacobians,
    HasSampleFactors,
    HasSlopes,
    undeclared,
)
from fixedpoint.chains.chain import Chain, PredictionChain
from fixedpoint.chains.coarse import HasCoarse, HasExtension, HasJumps
from fixedpoint.core.memory import Receiver
from fixedpoint.core.problem import AbilityError, HasSamples

__all__ = ["OptionalAbilities"]


class OptionalAbilities(HasSamples):
    """The abilities of a chain, for the rows of a joint problem. Each raises an ``AbilityError`` where it is missing.

    Attributes
    ----------
    chain
        The chain.
    x0
        The start, shape ``(B, *event)``.
    rows
        Shape ``(B,)``, int64: the row of the chain's conditioning and noise that each row uses.
    max_batch
        Largest number of pairs in one call of the chain; None: no limit.
    """

    chain: Chain | PredictionChain
    x0: Tensor
    rows: Tensor
    max_batch: int | None

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
                f"fixedpoint.chains.step_{name}, or take 'identity'"
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

    def interpolate(self, states: Float[Tensor, "B n *event"], kept: Int[Tensor, " n"]) -> Float[Tensor, "B D"]:
        """Return all states, given those that were kept; see :class:`HasCoarse`."""
        if not isinstance(self.chain, HasCoarse):
            raise self.lacks(HasCoarse, "has no coarser chains (no methods coarse and interpolate)")
        return self.chain.interpolate(self.x0, states, kept, self.rows).flatten(1)

    def jumps(self) -> Float[Tensor, "B D"]:
        """Return every state as one jump from the start, at one evaluation per row; see :class:`HasJumps`.

        Raises
        ------
        AbilityError
            When the chain provides no jumps.
        """
        if not isinstance(self.chain, HasJumps):
            raise self.lacks(HasJumps, "does not know its states' jumps from x0 (no method jumps)")
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
            raise self.lacks(HasExtension, "does not know what a step says of later states (no extend)")
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
                "take 'identity'"
            )
        return self.chain.gaussian_slopes(variance)

    def sample_map(self) -> Callable[[Float[Tensor, "B D"]], Float[Tensor, "B N *event"]] | None:
        """Return the function that scales states to those of the sampler; see :class:`HasSampleFactors`."""
        factors = self.chain.sample_factors() if isinstance(self.chain, HasSampleFactors) else None
        return None if factors is None else functools.partial(_scaled, factors, self.x0.shape[1:])

    def lacks(self, ability: type[ABC], otherwise: str) -> AbilityError:
        """Return the error that says which ability the chain lacks, and why."""
        known = ", ".join(sorted(ability.__abstractmethods__))
        kind, lacks = type(self.chain).__name__, undeclared(self.chain, ability, "")
        return AbilityError(f"{kind} {otherwise}" if not lacks else f"{kind}, asked for {known}, {lacks}")


def _scaled(factors: Float[Tensor, " N"], event: torch.Size, z: Float[Tensor, "B D"]) -> Float[Tensor, "B n *event"]:
    """Return states times their factors; those of the last state where the problem keeps it alone."""
    states: Tensor = z.unflatten(1, (-1, *event))
    own = factors[-states.shape[1] :].to(states)
    return states * own.view(1, -1, *[1] * len(event))
