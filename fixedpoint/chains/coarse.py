"""Optional abilities of chains: coarse chains of fewer steps, one-jump states, and extensions of single steps."""

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
    """A chain that can jump from any of its states to any later one in a single step.

    State 0 is the start ``x_0``, state ``i + 1`` is the result of step ``i``, and state ``N`` is the result of the
    chain.
    """

    @abstractmethod
    def coarse(self, kept: Int[Tensor, " n"]) -> Chain:
        """Return the chain whose step ``j`` jumps from state ``kept[j - 1]`` (state 0 for ``j = 0``) to state
        ``kept[j]``.

        It has the rows of this chain, with the same conditioning, and with this chain's noise summed over every jump,
        so that its states approximate those of this chain. If all states are kept, it is this chain.

        Parameters
        ----------
        kept
            Shape ``(n,)``, int64: the numbers of the kept states, strictly increasing, at least 1, the last one ``N``.

        Raises
        ------
        ValueError
            When ``kept`` is anything else.
        """

    @abstractmethod
    def interpolate(
        self,
        x0: Float[Tensor, "B *event"],
        states: Float[Tensor, "B n *event"],
        kept: Int[Tensor, " n"],
        row: Int[Tensor, " B"],
    ) -> Float[Tensor, "B N *event"]:
        """Return all states, given those that were kept. The kept ones are returned bit for bit; nothing is evaluated.

        Parameters
        ----------
        x0
            Shape ``(B, *event)``: the start.
        states
            Shape ``(B, n, *event)``: the states ``kept``.
        kept
            As for :meth:`coarse`.
        row
            Shape ``(B,)``, int64: the row of the chain's conditioning and noise that each row of ``x0`` uses.
        """


class HasJumps(ABC):
    """A chain that can compute the one jump from the start to every state from a single evaluation."""

    @abstractmethod
    def jumps(self, x0: Float[Tensor, "B *event"], row: Int[Tensor, " B"]) -> Float[Tensor, "B N *event"]:
        """Return states ``1 .. N``, each as one jump from ``x_0``, at one evaluation per row, all in one call.

        The first one equals ``Phi_0(x_0)`` up to rounding.

        Parameters
        ----------
        x0
            Shape ``(B, *event)``: the start.
        row
            Shape ``(B,)``, int64: the row of the chain's conditioning and noise that each row of ``x0`` uses.
        """


class HasExtension(ABC):
    """A chain that can predict later states from one step that was already taken."""

    @abstractmethod
    def extend(
        self,
        x: Float[Tensor, "P *event"],
        value: Float[Tensor, "P *event"],
        index: Int[Tensor, " P"],
        target: Int[Tensor, " P"],
        row: Int[Tensor, " P"],
    ) -> Float[Tensor, "P *event"]:
        """Predict state ``target`` by one jump from state ``index`` in the direction of the step taken there.

        Nothing is evaluated. For ``target = index + 1`` the result equals ``value`` up to rounding.

        Parameters
        ----------
        x
            Shape ``(P, *event)``: states number ``index``.
        value
            ``Phi_index(x)``, of the same shape and dtype.
        index
            Shape ``(P,)``, int64, from 0 (the start ``x_0``) to ``N - 1``.
        target
            Shape ``(P,)``, int64, from ``index + 1`` to ``N``; this is not checked.
        row
            Shape ``(P,)``, int64: the row of the chain's conditioning and noise that each pair belongs to.

        Raises
        ------
        ValueError
            When ``x`` and ``value`` differ in shape or dtype.
        """


def check_kept(kept: Int[Tensor, " n"], length: int) -> Int[Tensor, " n"]:
    """Check ``kept`` and return it as int64 on the CPU.

    Raises
    ------
    ValueError
        Unless ``kept`` increases strictly from at least 1 to ``length``.
    """
    listed = kept.tolist()
    increasing = all(before < after for before, after in pairwise([0, *listed]))
    if not listed or not increasing or listed[-1] != length:
        raise ValueError(f"kept must increase strictly from at least 1 to the chain's length {length}, got {listed}")
    return kept.to("cpu", torch.int64).contiguous()


def evenly_kept(length: int, count: int) -> Int[Tensor, " n"]:
    """Return ``count`` of the state numbers ``1 .. length``, as evenly spaced as possible, including the last; int64.

    Raises
    ------
    ValueError
        When ``count`` is less than 1 or greater than ``length``.
    """
    if not 1 <= count <= length:
        raise ValueError(f"from 1 to {length} states of a chain of {length} steps can be kept, got {count}")
    return -(-torch.arange(1, count + 1, device="cpu") * length // count)
