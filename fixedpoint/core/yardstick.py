"""The norms in which errors and scales are measured, per row, tensor or entry, and the tolerances of these."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.layout import Layout
from fixedpoint.core.reduce import block_norms, raw_block_norms
from fixedpoint.core.structure import leaves, outline

__all__ = ["Per", "Yardstick"]

Per = Literal["row", "leaf", "entry"]
_FINER: tuple[Per, ...] = ("row", "leaf", "entry")


@dataclass(frozen=True, eq=False)
class Yardstick:
    """Norms of residual and value: of the whole row, of each of its tensors, or of each entry.

    Attributes
    ----------
    norm
        ``"l2"``, ``"rms"`` or ``"max"``. A complex number is one entry; the norm of an entry is its modulus.
    per
        ``"row"``, ``"leaf"`` (tensor) or ``"entry"``: each of them has one error and one scale.
    rtol, atol
        The tolerances: numbers, or arrays of shape ``(1, m)`` or ``(B, m)``, float64. Used where ``per`` is not
        ``"row"``.
    """

    norm: str = "l2"
    per: Per = "row"
    rtol: float | NDArray[np.float64] = 0.0
    atol: float | NDArray[np.float64] = 0.0

    @property
    def fine(self) -> bool:
        """Whether a row has several errors, each compared with its own tolerance."""
        return self.per != "row"

    def norms(self, vector: Float[Tensor, "B D"], layout: Layout, careful: bool = False) -> Float[Tensor, "B m"]:
        """Return the norms of a state, shape ``(B, m)``, float64; ``m`` is the number of blocks, tensors or entries.

        With ``careful`` no square of a float64 entry leaves the range of float64. Otherwise norms may have lost digits,
        or be zero or infinite, outside of about 1e-140 to 1e140.
        """
        norms = block_norms if careful else raw_block_norms
        if self.per == "entry":
            return vector.abs().double() if layout.width == 1 else norms(vector, vector.shape[1] // 2, "l2")
        if self.per == "leaf":
            return torch.cat([self._norms(norms, vector[:, part], 1, layout.width) for part in layout.slices], dim=1)
        return self._norms(norms, vector, layout.blocks, layout.width)

    def takes_squares(self, layout: Layout) -> bool:
        """Whether norms are roots of sums of squares, not maxima or moduli of real numbers."""
        return layout.width == 2 or (self.per != "entry" and self.norm != "max")

    def tolerance(self, scale: Any) -> Any:
        """Return the largest errors that are accepted, shape ``(B, m)``, for an array or a tensor of scales."""
        if isinstance(scale, Tensor) and self.fine:
            return (
                torch.as_tensor(self.atol, device=scale.device)
                + torch.as_tensor(self.rtol, device=scale.device) * scale
            )
        return self.atol + self.rtol * scale

    def merit(self, error: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the number by which points of a row are compared, shape ``(B,)``; smaller is better.

        It is the largest error, in units of its tolerance if there are several. Error and scale have shape ``(B, m)``.
        """
        if not self.fine:
            return _largest_of_row(error)
        least = np.finfo(np.float64).eps  # with zero tolerances the unit would be zero
        with np.errstate(all="ignore"):
            units = error / (self.atol + np.maximum(self.rtol, least) * scale)
            return _largest_of_row(np.where(error == 0, 0.0, units))

    def in_tolerances(self, error: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the largest error of a row in units of its tolerance, shape ``(B,)``."""
        unit = self.tolerance(scale)
        with np.errstate(all="ignore"):
            return _largest_of_row(error / np.where(unit > 0, unit, 1.0))

    def progress(self, error: NDArray[np.float64], scale: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Return numbers of every row, shape ``(B,)``, of which at least one falls as long as a row makes progress.

        With one error per row this is the largest error. Otherwise there are three logarithms: of the largest error in
        units of its tolerance, of the product of all errors, and of the product of all errors in units of their
        tolerances. No single one suffices: the relative error of an entry that approaches a small value stays constant
        for many rounds, and the error of an entry that approaches a large value grows. Errors within their tolerance
        count as equal to it.
        """
        if not self.fine:
            return (_largest_of_row(error),)
        least, allowed = np.finfo(np.float64).tiny, self.tolerance(scale)
        with np.errstate(all="ignore"):
            logs = np.log(np.maximum(np.maximum(error, allowed), least))
            units = logs - np.log(np.maximum(allowed, least))
            return np.log(np.maximum(self.merit(error, scale), least)), logs.sum(axis=1), units.sum(axis=1)

    def take(self, rows: NDArray[np.int64]) -> Yardstick:
        """Return the yardstick of some of the rows."""
        parts: dict[str, Any] = {
            name: kept[rows]
            for name in ("rtol", "atol")
            if isinstance(kept := getattr(self, name), np.ndarray) and len(kept) > 1
        }
        return replace(self, **parts) if parts else self

    def with_tolerances(self, layout: Layout, rtol: Any = None, atol: Any = None) -> Yardstick:
        """Return the yardstick with tolerances in the structure of the start.

        ``per`` becomes ``"leaf"``, or ``"entry"`` if any tensor has a tolerance for each entry, unless it is finer
        already.

        Parameters
        ----------
        layout
            The layout of the start.
        rtol, atol
            A number for each tensor of the start, or numbers of its shape. None: unchanged.

        Raises
        ------
        TypeError, ValueError
            If the structure or a shape differs from that of the start, or a number is out of range.
        """
        given = {name: value for name, value in (("rtol", rtol), ("atol", atol)) if value is not None}
        read = {name: _read(name, value, layout) for name, value in given.items()}
        several = any(isinstance(part, Tensor) for parts in read.values() for part in parts)
        per: Per = "entry" if several else "leaf"
        per = max(self.per, per, key=_FINER.index)
        made: dict[str, Any] = {name: _laid_out(parts, layout, per) for name, parts in read.items()}
        return replace(self, per=per, **made)

    def _norms(
        self, norms: Callable[[Tensor, int, str], Tensor], vector: Float[Tensor, "B n"], blocks: int, width: int
    ) -> Float[Tensor, "B blocks"]:
        """Return the norms of equal blocks; a complex number, ``width`` 2, counts as one entry of its modulus."""
        if width == 1 or self.norm == "l2":
            return norms(vector, blocks, self.norm)
        if self.norm == "rms":
            # The mean is over entries, half as many as the real unknowns.
            return norms(vector, blocks, self.norm) * math.sqrt(width)
        moduli = norms(vector, vector.shape[1] // width, "l2")
        largest: Tensor = moduli.unflatten(1, (blocks, -1)).amax(dim=-1)
        return largest


def _read(name: str, given: Any, layout: Layout) -> list[float | Tensor]:
    """Return a number for every tensor, or numbers for its entries; raise where the structure is not that of z0."""
    found = dict(leaves(given, "z0"))
    if set(found) != {leaf.path for leaf in layout.leaves}:
        wanted = ", ".join(f"{leaf.path}" for leaf in layout.leaves)
        raise TypeError(f"{name} must be a number or have the structure of z0, {wanted}, got {outline(given, name)}")
    return [
        _checked(name, name + leaf.path.removeprefix("z0"), found[leaf.path], layout.shape_of(leaf))
        for leaf in layout.leaves
    ]


def _checked(name: str, where: str, value: Any, shape: tuple[int, ...]) -> float | Tensor:
    """Return a tolerance as a float or a float64 tensor; raise where its type, shape or range is wrong."""
    kinds = (int, float, np.ndarray, np.generic, Tensor)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"{where} must be a number or one for every entry, got {value!r}")
    numbers = value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value), device="cpu")
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


def _laid_out(parts: list[float | Tensor], layout: Layout, per: Per) -> NDArray[np.float64]:
    """Return the tolerances of all tensors in one array, in the order of the errors."""
    columns = []
    for part, leaf in zip(parts, layout.leaves, strict=True):
        if isinstance(part, Tensor):
            columns.append(part.reshape(layout.rows, -1))
        else:
            count = leaf.size // layout.width if per == "entry" else 1
            columns.append(torch.full((1, count), part, dtype=torch.float64, device="cpu"))
    rows = max(len(column) for column in columns)
    found: NDArray[np.float64] = torch.cat([column.expand(rows, -1) for column in columns], dim=1).numpy()
    return found


def _largest_of_row(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest number of every row, NaN where one is NaN."""
    found: NDArray[np.float64] = numbers[:, 0] if numbers.shape[1] == 1 else numbers.max(axis=1)
    return found
