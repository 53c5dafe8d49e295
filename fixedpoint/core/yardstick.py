"""Yardstick: what the error of a point is measured in, and what it is held against."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.core.layout import Layout
from fixedpoint.core.reduce import block_norms
from fixedpoint.core.structure import leaves, outline

__all__ = ["Per", "Yardstick"]

Per = Literal["row", "leaf", "entry"]
_FINER: tuple[Per, ...] = ("row", "leaf", "entry")


@dataclass(frozen=True, eq=False)
class Yardstick:
    """Norms of the residual and of the value, for the whole row, for each of its tensors, or for each entry.

    Attributes
    ----------
    norm
        ``"l2"``, ``"rms"`` or ``"max"``; of an entry, its modulus. A complex number is one entry.
    per
        What a norm is taken of: one error and one scale for each.
    rtol, atol
        The tolerances, numbers or of shape ``(1, m)`` or ``(B, m)``, float64: used where ``per`` is not ``"row"``.
    """

    norm: str = "l2"
    per: Per = "row"
    rtol: float | Tensor = 0.0
    atol: float | Tensor = 0.0

    @property
    def fine(self) -> bool:
        """Whether a row has several errors, each held against a tolerance of its own."""
        return self.per != "row"

    def norms(self, vector: Float[Tensor, "B D"], layout: Layout) -> Float[Tensor, "B m"]:
        """What is measured of a state, float64: ``m`` is the number of blocks, tensors or entries."""
        if self.per == "entry":
            return vector.abs().double() if layout.width == 1 else block_norms(vector, vector.shape[1] // 2, "l2")
        if self.per == "leaf":
            return torch.cat([self._norms(vector[:, part], 1, layout.width) for part in layout.slices], dim=1)
        return self._norms(vector, layout.blocks, layout.width)

    def tolerance(self, scale: Float[Tensor, "B m"]) -> Float[Tensor, "B m"]:
        """The errors that are small enough."""
        return self.atol + self.rtol * scale

    def merit(self, error: Float[Tensor, "B m"], scale: Float[Tensor, "B m"]) -> Float[Tensor, " B"]:
        """The number by which points of a row are compared: the largest error, in units of its tolerance if fine."""
        if not self.fine:
            return error.amax(dim=1)
        least = torch.finfo(torch.float64).eps
        wanted = self.rtol.clamp(min=least) if isinstance(self.rtol, Tensor) else max(self.rtol, least)
        units = error / (self.atol + wanted * scale)
        return torch.where(error == 0, 0.0, units).amax(dim=1)

    def progress(self, error: Float[Tensor, "B m"], scale: Float[Tensor, "B m"]) -> Float[Tensor, "B k"]:
        """Numbers one of which falls as a row goes on: its largest error; if fine, logarithms of three.

        They are the largest error in units of its tolerance, and the products of all errors and of all in such units.
        An entry on its way to a small value stays as far off, relative to itself, for long; one on
        its way to a large value has errors that grow. Errors within their tolerance count as that.
        """
        if not self.fine:
            return error.amax(dim=1, keepdim=True)
        least, allowed = torch.finfo(torch.float64).tiny, self.tolerance(scale)
        logs = torch.maximum(error, allowed).clamp(min=least).log()
        units = logs - allowed.clamp(min=least).log()
        return torch.stack([self.merit(error, scale).clamp(min=least).log(), logs.sum(dim=1), units.sum(dim=1)], dim=1)

    def take(self, rows: Int[Tensor, " k"]) -> Yardstick:
        """That of some of the rows."""
        parts: dict[str, Any] = {
            name: kept[rows]
            for name in ("rtol", "atol")
            if isinstance(kept := getattr(self, name), Tensor) and len(kept) > 1
        }
        return replace(self, **parts) if parts else self

    def with_tolerances(self, layout: Layout, rtol: Any = None, atol: Any = None) -> Yardstick:
        """With tolerances in the structure of the start: a number for a tensor, or one for each of its entries.

        ``per`` becomes ``"leaf"`` or ``"entry"``, where it is not already.

        Raises
        ------
        TypeError, ValueError
            For another structure, other shapes, or numbers out of range.
        """
        given = {name: value for name, value in (("rtol", rtol), ("atol", atol)) if value is not None}
        read = {name: _read(name, value, layout) for name, value in given.items()}
        several = any(isinstance(part, Tensor) for parts in read.values() for part in parts)
        per: Per = "entry" if several else "leaf"
        per = max(self.per, per, key=_FINER.index)
        made: dict[str, Any] = {name: _laid_out(parts, layout, per) for name, parts in read.items()}
        return replace(self, per=per, **made)

    def _norms(self, vector: Float[Tensor, "B n"], blocks: int, width: int) -> Float[Tensor, "B blocks"]:
        if width == 1 or self.norm == "l2":
            return block_norms(vector, blocks, self.norm)
        if self.norm == "rms":
            return block_norms(vector, blocks, self.norm) * math.sqrt(width)
        moduli = block_norms(vector, vector.shape[1] // width, "l2")
        largest: Tensor = moduli.unflatten(1, (blocks, -1)).amax(dim=-1)
        return largest


def _read(name: str, given: Any, layout: Layout) -> list[float | Tensor]:
    """A number for every leaf, or one for every entry of it."""
    found = dict(leaves(given, "z0"))
    if set(found) != {leaf.path for leaf in layout.leaves}:
        wanted = ", ".join(f"{leaf.path}" for leaf in layout.leaves)
        raise TypeError(f"{name} must be a number or have the structure of z0, {wanted}, got {outline(given, name)}")
    return [
        _checked(name, name + leaf.path.removeprefix("z0"), found[leaf.path], layout.shape_of(leaf))
        for leaf in layout.leaves
    ]


def _checked(name: str, where: str, value: Any, shape: tuple[int, ...]) -> float | Tensor:
    kinds = (int, float, np.ndarray, np.generic, Tensor)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"{where} must be a number or one for every entry, got {value!r}")
    numbers = value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    if numbers.is_complex() or numbers.dtype == torch.bool:
        raise TypeError(f"{where} must be real numbers, got {numbers.dtype}")
    numbers = numbers.double()
    if numbers.ndim and tuple(numbers.shape) != shape:
        raise ValueError(f"{where} must be a number or have the shape of z0, {shape}, got {tuple(numbers.shape)}")
    sound = (numbers >= 0) & (numbers < (1.0 if name == "rtol" else torch.inf))
    if not bool(sound.all()):
        limits = "at least 0 and less than 1" if name == "rtol" else "at least 0 and finite"
        raise ValueError(f"{where} must be {limits}, got {float(numbers[~sound].flatten()[0])}")
    return numbers if numbers.ndim else float(numbers)


def _laid_out(parts: list[float | Tensor], layout: Layout, per: Per) -> Float[Tensor, "B m"]:
    """Side by side, as errors are."""
    columns = []
    for part, leaf in zip(parts, layout.leaves, strict=True):
        if isinstance(part, Tensor):
            columns.append(part.reshape(layout.rows, -1))
        else:
            count = leaf.size // layout.width if per == "entry" else 1
            columns.append(torch.full((1, count), part, dtype=torch.float64))
    rows = max(len(column) for column in columns)
    return torch.cat([column.expand(rows, -1) for column in columns], dim=1).to(layout.device)
