"""Hypothesis strategies: contractions with known answers, states of any structure, dtypes. Requires hypothesis."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from fixedpoint.testing.problems import Affine, affine_contraction

__all__ = ["Cut", "affine_contractions", "cuts", "dtypes", "narrow_dtypes"]

narrow_dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


@st.composite
def affine_contractions(
    draw: st.DrawFn, *, max_rows: int = 4, max_size: int = 6, bound: float = 0.8, normal: bool | None = None
) -> Affine:
    """Draw batches of affine maps with matrices of 2-norm at most ``bound``, and their solutions, float64.

    Parameters
    ----------
    max_rows
        Largest number of rows.
    max_size
        Largest number of unknowns.
    bound
        Largest 2-norm of the matrices.
    normal
        Whether the matrices are symmetric; None draws it.
    """
    size = draw(st.integers(1, max_size), label="unknowns")
    eigenvalue = st.floats(-0.9 * bound, 0.9 * bound, allow_subnormal=False)
    spectrum = draw(st.lists(eigenvalue, min_size=size, max_size=size), label="spectrum")
    return affine_contraction(
        spectrum,
        rows=draw(st.integers(1, max_rows), label="rows"),
        normal=draw(st.booleans(), label="normal") if normal is None else normal,
        bound=bound,
        seed=draw(st.integers(0, 2**16), label="seed"),
    )


@dataclass(frozen=True)
class Cut:
    """A way to cut a state ``(B, D)`` into a tensor, a tuple, a list or a dict of pieces.

    Attributes
    ----------
    kind
        ``"tensor"``, ``"tuple"``, ``"list"``, ``"dict"`` or ``"nested"``.
    sizes
        Number of unknowns of every piece; they add up to ``D``.
    """

    kind: str
    sizes: tuple[int, ...]

    def apply(self, state: Float[Tensor, "B D"]) -> Any:
        """Cut a state into the pieces, in the structure ``kind``."""
        if self.kind == "tensor":
            return state
        pieces = [self._shaped(piece) for piece in state.split(list(self.sizes), dim=1)]
        if self.kind == "dict":
            return {f"part{number}": piece for number, piece in enumerate(pieces)}
        if self.kind == "nested":
            return {"first": pieces[0], "rest": (tuple(pieces[1:]), [])} if len(pieces) > 1 else (pieces[0],)
        return tuple(pieces) if self.kind == "tuple" else pieces

    def ravel(self, value: Any) -> Float[Tensor, "B D"]:
        """Put the pieces of a value back together into a state."""
        return torch.cat([piece.flatten(1) for piece in _pieces(value)], dim=1)

    def _shaped(self, piece: Tensor) -> Tensor:
        """Give a piece with an even number of unknowns two dimensions per row."""
        return piece.reshape(len(piece), 2, -1) if piece.shape[1] % 2 == 0 else piece


@st.composite
def cuts(draw: st.DrawFn, size: int) -> Cut:
    """Draw ways to cut a state of ``size`` unknowns."""
    places = draw(st.sets(st.integers(1, size - 1)) if size > 1 else st.just(set()), label="places")
    edges = [0, *sorted(places), size]
    sizes = tuple(end - begin for begin, end in itertools.pairwise(edges))
    return Cut(draw(st.sampled_from(["tensor", "tuple", "list", "dict", "nested"]), label="kind"), sizes)


def _pieces(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [piece for item in items for piece in _pieces(item)]
