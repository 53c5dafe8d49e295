"""What a chain may know of itself beyond its steps: coarser chains of fewer steps, and its states in one jump."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from fixedpoint.chains.chain import Chain

__all__ = ["HasCoarse", "HasExtension", "HasJumps", "check_kept", "evenly_kept"]


class HasCoarse(ABC):
    """A chain that can go from any of its states to any later one in a single step.

    States are numbered as everywhere: 0 is the start ``x_0``, ``i + 1`` is where step ``i`` leads, ``N`` the result.
    """

    @abstractmethod
    def coarse(self, kept: Int[Tensor, " n"]) -> Chain:
        """The chain whose step ``j`` goes in one jump from state ``kept[j - 1]`` (0 for ``j = 0``) to ``kept[j]``.

        Its rows are those of this chain: same conditioning, and the noise of this chain added up over every jump, so
        that its states approximate those of this chain. With all states kept it is this chain.

        Parameters
        ----------
        kept
            Strictly increasing, from 1 to ``N``, the last one ``N``.

        Raises
        ------
        ValueError
            For any other ``kept``.
        """

    @abstractmethod
    def interpolate(
        self,
        x0: Float[Tensor, "B *event"],
        states: Float[Tensor, "B n *event"],
        kept: Int[Tensor, " n"],
        row: Int[Tensor, " B"],
    ) -> Float[Tensor, "B N *event"]:
        """All states from those that were kept, which come back bit for bit; evaluates nothing.

        Parameters
        ----------
        x0
            The start.
        states
            The states ``kept``.
        kept
            As for :meth:`coarse`.
        row
            Which row of the chain's conditioning and noise each one is.
        """


class HasJumps(ABC):
    """A chain that knows every state's one jump from the start by a single evaluation."""

    @abstractmethod
    def jumps(self, x0: Float[Tensor, "B *event"], row: Int[Tensor, " B"]) -> Float[Tensor, "B N *event"]:
        """State ``i`` as the one jump from ``x_0`` to it: one evaluation per row, all in one call.

        The first is ``Phi_0(x_0)``, to rounding.

        Parameters
        ----------
        x0
            The start.
        row
            Which row of the chain's conditioning and noise each one is.
        """


class HasExtension(ABC):
    """A chain of which one step that was taken says where later states are to be expected."""

    @abstractmethod
    def extend(
        self,
        x: Float[Tensor, "P *event"],
        value: Float[Tensor, "P *event"],
        index: Int[Tensor, " P"],
        target: Int[Tensor, " P"],
        row: Int[Tensor, " P"],
    ) -> Float[Tensor, "P *event"]:
        """State ``target`` as the one jump from state ``index``, going on as the step from there does.

        Evaluates nothing. For ``target = index + 1`` it is ``value``, to rounding.

        Parameters
        ----------
        x
            States number ``index``.
        value
            ``Phi_index(x)``, of the same shape and dtype.
        index
            From 0 (the start ``x_0``) to ``N - 1``.
        target
            From ``index + 1`` to ``N``; this is not checked.
        row
            Which row of the chain's conditioning and noise each pair belongs to.

        Raises
        ------
        ValueError
            When ``x`` and ``value`` do not go together.
        """


def check_kept(kept: Int[Tensor, " n"], length: int) -> Int[Tensor, " n"]:
    """``kept`` as int64 on the CPU.

    Raises
    ------
    ValueError
        Unless it runs strictly increasing from at least 1 to ``length``.
    """
    listed = kept.tolist()
    increasing = all(before < after for before, after in pairwise([0, *listed]))
    if not listed or not increasing or listed[-1] != length:
        raise ValueError(f"kept must increase strictly from at least 1 to the chain's length {length}, got {listed}")
    return kept.to("cpu", torch.int64)


def evenly_kept(length: int, count: int) -> Int[Tensor, " n"]:
    """``count`` of ``length`` states, as evenly spaced as can be, the last one among them; int64.

    Raises
    ------
    ValueError
        For a count that is not from 1 to ``length``.
    """
    if not 1 <= count <= length:
        raise ValueError(f"from 1 to {length} states of a chain of {length} steps can be kept, got {count}")
    return -(-torch.arange(1, count + 1) * length // count)
