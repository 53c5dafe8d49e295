"""The conversion between the user's value (a tensor, an array, a tuple or dict of them) and the state ``(B, D)``."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.structure import filled, leaves, numbered, outline

__all__ = ["Layout", "Rows"]

Rows = Literal["independent", "joint"]
Namespace = Literal["torch", "numpy", "python"]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_COMPLEX = {torch.complex128: torch.float64, torch.complex64: torch.float32}
_ARRAYS = (np.float16, np.float32, np.float64, np.complex64, np.complex128)


@dataclass(frozen=True)
class Leaf:
    """One tensor of the user's value.

    Attributes
    ----------
    path
        Where it is in the value, e.g. ``z0['a'][1]``.
    shape
        The shape of one row.
    width
        Real unknowns of an entry: 2 of a complex one, else 1.
    """

    path: str
    shape: tuple[int, ...]
    width: int = 1

    @property
    def size(self) -> int:
        """Real unknowns of one row."""
        return math.prod(self.shape) * self.width


@dataclass(frozen=True)
class Layout:
    """How the user's value corresponds to the state ``(B, D)``.

    Attributes
    ----------
    rows
        ``B``, the number of independent problems; 1 when ``joint``.
    leaves
        Every tensor of the value, in order; ``D`` is the sum of their sizes.
    template
        The structure of the value, with the number of each tensor in its place.
    dtype, device
        Of the state. Its dtype is real: a complex number is two unknowns, its real and its imaginary part.
    namespace
        What the user's function takes and returns: ``"torch"``, ``"numpy"`` or ``"python"`` (a float or a complex
        number).
    joint
        Whether the whole value is one problem (``rows="joint"``).
    blocks
        Number of equal blocks of a row, for problems that consist of as many equal parts; otherwise 1.
    is_complex
        Whether the user's value is complex.
    """

    rows: int
    leaves: tuple[Leaf, ...]
    template: Any = field(hash=False)
    dtype: torch.dtype
    device: torch.device
    namespace: Namespace = "torch"
    joint: bool = False
    blocks: int = 1
    is_complex: bool = False

    @functools.cached_property
    def size(self) -> int:
        """``D``: the number of real unknowns of one row."""
        return sum(leaf.size for leaf in self.leaves)

    @functools.cached_property
    def _bare(self) -> tuple[int, ...] | None:
        """The shape of the user's value if it is one real tensor, array or number outside a structure, else None."""
        return self.shape_of(self.leaves[0]) if self.template == 0 and not self.is_complex else None

    @property
    def width(self) -> int:
        """Real unknowns of an entry of the user's value: 2 of a complex one, else 1."""
        return 2 if self.is_complex else 1

    @property
    def slices(self) -> tuple[slice, ...]:
        """The part of a row that each tensor of the value occupies."""
        ends = [int(end) for end in np.cumsum([leaf.size for leaf in self.leaves])]
        return tuple(slice(start, end) for start, end in zip([0, *ends], ends, strict=False))

    @classmethod
    def of(cls, value: Any, rows: Rows | None = None, blocks: int = 1) -> Layout:
        """Return the layout of a start.

        Parameters
        ----------
        value
            A tensor, an array, a number, or tuples, lists or dicts of them.
        rows
            ``"independent"``: the first dimension of every tensor is the batch. ``"joint"``: the whole value is one
            problem. By default rows are independent if every tensor has at least two dimensions and all agree in the
            first; otherwise they are joint: a vector is one problem, as in SciPy.
        blocks
            Number of equal blocks of a row.

        Raises
        ------
        TypeError, ValueError
            If ``value`` holds no floating-point or complex tensor or array, mixes dtypes, devices or libraries, or is
            empty; if batch dimensions disagree; if a row does not divide into ``blocks``.
        """
        if rows not in (None, "independent", "joint"):
            raise ValueError(f"rows must be 'independent' or 'joint', got {rows!r}")
        found = list(leaves(value, "z0"))
        if not found:
            raise ValueError(f"z0 holds no tensor, got {value!r}")
        namespace = _namespace(found)
        tensors = [(path, _as_tensor(path, leaf)) for path, leaf in found]
        _refuse_mixed(tensors, namespace)
        shapes = [tuple(tensor.shape) for _, tensor in tensors]
        joint = rows == "joint" or (rows is None and not _is_batched(shapes))
        if (not joint and len({shape[:1] for shape in shapes}) != 1) or (not joint and not shapes[0]):
            listed = ", ".join(f"{path} {shape}" for (path, _), shape in zip(tensors, shapes, strict=True))
            raise ValueError(f"rows='independent' requires one batch size as the first dimension of all, got {listed}")
        first = tensors[0][1]
        width = 2 if first.is_complex() else 1
        places = tuple(
            Leaf(path, shape if joint else shape[1:], width) for (path, _), shape in zip(tensors, shapes, strict=True)
        )
        layout = cls(
            rows=1 if joint else shapes[0][0],
            leaves=places,
            template=numbered(value),
            dtype=_COMPLEX.get(first.dtype, first.dtype),
            device=first.device,
            namespace=namespace,
            joint=joint,
            blocks=blocks,
            is_complex=width == 2,
        )
        if layout.rows == 0 or layout.size == 0:
            raise ValueError(f"z0 is empty, got shape {shapes[0]}")
        if layout.size % blocks:
            raise ValueError(f"a row of {layout.size} unknowns does not divide into {blocks} equal blocks")
        return layout

    def pack(self, value: Any, name: str = "f(z)") -> Float[Tensor, "B D"]:
        """Return the state ``(B, D)`` of a value.

        Parameters
        ----------
        value
            A value of this layout.
        name
            What error messages call it.

        Raises
        ------
        TypeError, ValueError
            If the value differs from the layout in structure, library, shape, dtype or device.
        """
        if self._bare is not None and self.namespace == "torch" and isinstance(value, Tensor):
            kind = value.shape, value.dtype, value.device, value.layout
            if kind == (self._bare, self.dtype, self.device, torch.strided):
                return value.reshape(self.rows, self.size)
        if self._bare is not None and self.namespace == "python" and type(value) is float:
            return torch.full((1, 1), value, dtype=self.dtype, device=self.device)
        found: dict[str, Any] = dict(leaves(value, "z0"))
        if set(found) != {leaf.path for leaf in self.leaves}:
            raise TypeError(
                f"{name} must have the structure of z0, {self._structure()}, got {outline(value, name)}"
                f"{self._hint(value, name)}"
            )
        parts = []
        for leaf in self.leaves:
            where = name + leaf.path.removeprefix("z0")
            self._refuse_kind(where, found[leaf.path])
            tensor = _as_tensor(where, found[leaf.path])
            shape = self.shape_of(leaf)
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{where} must have the shape of {leaf.path}, {shape}, got {tuple(tensor.shape)}")
            if self.namespace == "python" and self.is_complex and tensor.dtype == torch.float64:
                tensor = tensor.to(torch.complex128)  # in Python a float is a complex number
            if tensor.dtype != self.value_dtype:
                raise TypeError(self._another_dtype(where, leaf.path, tensor.dtype))
            if tensor.device != self.device:
                raise ValueError(f"{where} must be on {self.device} like {leaf.path}, got {tensor.device}")
            if self.is_complex:
                tensor = torch.view_as_real(tensor.resolve_conj())  # torch conjugates lazily, which the view refuses
            parts.append(tensor.reshape(self.rows, leaf.size))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def unpack(self, state: Float[Tensor, "B D"]) -> Any:
        """Return the value of a state in the user's structure: views of the state's memory wherever possible."""
        if self._bare is not None:
            bare = self._bare if self.joint else (state.shape[0], *self._bare[1:])
            return state.item() if self.namespace == "python" else self._present(state.reshape(bare))
        parts = state.split([leaf.size for leaf in self.leaves], dim=1)
        lead = () if self.joint else (state.shape[0],)
        pair = (2,) if self.is_complex else ()
        tensors = [part.reshape((*lead, *leaf.shape, *pair)) for part, leaf in zip(parts, self.leaves, strict=True)]
        if self.is_complex:
            tensors = [torch.view_as_complex(_paired(tensor)) for tensor in tensors]
        return filled(self.template, [self._present(tensor) for tensor in tensors])

    @property
    def value_dtype(self) -> torch.dtype:
        """The dtype of the user's value: that of the state, or the complex dtype of the same precision."""
        return self.dtype.to_complex() if self.is_complex else self.dtype

    def shape_of(self, leaf: Leaf) -> tuple[int, ...]:
        """Return the shape of one tensor of the user's value, its batch dimension included."""
        return leaf.shape if self.joint else (self.rows, *leaf.shape)

    def take(self, count: int) -> Layout:
        """Return the layout of ``count`` of the rows."""
        return replace(self, rows=count)

    def _refuse_kind(self, where: str, leaf: Any) -> None:
        """Raise ``TypeError`` for an array in place of a tensor or the reverse: a conversion would cut the graph."""
        wanted = {"torch": "a torch tensor", "numpy": "a numpy array", "python": self._number}[self.namespace]
        if _kind(where, leaf) != self.namespace and "torch" in (_kind(where, leaf), self.namespace):
            raise TypeError(f"{where} must be {wanted} like z0, got {type(leaf).__name__}")

    @property
    def _number(self) -> str:
        """What error messages call a Python number of this layout."""
        return "a complex number" if self.is_complex else "a float"

    def _present(self, tensor: Tensor) -> Any:
        """Convert a tensor to the user's namespace; arrays are read-only, since they share the solver's memory."""
        if self.namespace == "torch":
            return tensor
        array = tensor.detach().cpu().numpy()
        if self.namespace == "python":
            return array.item()
        array.flags.writeable = False
        return array

    def _structure(self) -> str:
        """The paths and shapes of all tensors, for error messages."""
        if self.namespace == "python":
            return ", ".join(f"{leaf.path} {self._number}" for leaf in self.leaves)
        return ", ".join(f"{leaf.path} {leaf.shape}" for leaf in self.leaves)

    def _hint(self, value: Any, name: str) -> str:
        """Return what the user may have meant by a value of another structure, to end an error message."""
        if self.namespace == "python" and isinstance(value, np.ndarray):
            return "; for a function of arrays start from an array"
        paths = {leaf.path for leaf in self.leaves}
        pair = isinstance(value, tuple) and len(value) == 2
        if pair and (paths == {"z0"} or {path for path, _ in leaves(value[0], "z0")} == paths):
            return f"; where {name} is a pair (value, aux), say has_aux=True"
        return ""

    def _another_dtype(self, where: str, path: str, came: torch.dtype) -> str:
        """Return the error message for a tensor of another dtype."""
        if self.namespace == "python":
            sentence = f"{where} must be {self._number} like {path}, got {_called(came, 'numpy')}"
        else:
            wanted, came_called = (_called(dtype, self.namespace) for dtype in (self.value_dtype, came))
            sentence = f"{where} must have the dtype of {path}, {wanted}, got {came_called}"
        return sentence + ("; for complex states start from a complex z0" if came.is_complex else "")


def _namespace(found: list[tuple[str, Any]]) -> Namespace:
    """Return the namespace that all leaves share; raise ``TypeError`` if they differ."""
    kinds = {_kind(path, leaf) for path, leaf in found}
    if len(kinds) > 1:
        raise TypeError("z0 must hold torch tensors or numpy arrays, not both")
    (kind,) = kinds
    return kind


def _kind(path: str, leaf: Any) -> Namespace:
    """Return the namespace of one leaf; raise ``TypeError`` for anything but a tensor, an array or a number."""
    if isinstance(leaf, Tensor):
        return "torch"
    if isinstance(leaf, (np.ndarray, np.generic)):
        return "numpy"
    if isinstance(leaf, (float, complex)):
        return "python"
    raise TypeError(f"{path} must be a tensor, an array or a float, got {type(leaf).__name__}")


def _as_tensor(path: str, leaf: Any) -> Tensor:
    """Return a leaf as a tensor; raise ``TypeError`` for dtypes and memory layouts that are not supported."""
    if not isinstance(leaf, Tensor):
        _kind(path, leaf)
        array = np.array(leaf, order="C")  # a copy, since the user's function may fill the same array at every call
        if array.dtype not in _ARRAYS:
            raise TypeError(f"{path} must be of a floating-point dtype, got {array.dtype}")
        leaf = torch.from_numpy(array)
    tensor: Tensor = leaf
    if tensor.is_complex() and tensor.dtype not in _COMPLEX:
        raise TypeError(f"{path} must be complex128 or complex64, got {tensor.dtype}")
    if not tensor.is_floating_point() and not tensor.is_complex():
        raise TypeError(f"{path} must be of a floating-point dtype, got {tensor.dtype}")
    if tensor.is_floating_point() and tensor.dtype not in _DTYPES:
        raise TypeError(f"{path} must be float64, float32, bfloat16 or float16, got {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{path} must be a dense tensor, got {tensor.layout}")
    return tensor


def _is_batched(shapes: list[tuple[int, ...]]) -> bool:
    """Whether all tensors have at least two dimensions and the same first one."""
    return all(len(shape) >= 2 for shape in shapes) and len({shape[0] for shape in shapes}) == 1


def _refuse_mixed(tensors: list[tuple[str, Tensor]], namespace: Namespace) -> None:
    """Raise ``TypeError`` unless all tensors have one dtype and one device."""
    told = {
        "dtype": [(path, _called(tensor.dtype, namespace)) for path, tensor in tensors],
        "device": [(path, str(tensor.device)) for path, tensor in tensors],
    }
    for what, of_each in told.items():
        kinds = {kind: path for path, kind in of_each}
        if len(kinds) > 1:
            listed = ", ".join(f"{path} is {kind}" for kind, path in kinds.items())
            raise TypeError(f"all of z0 must have one {what}: {listed}")


def _called(dtype: torch.dtype, namespace: Namespace) -> str:
    """Return the name of a dtype in the user's library."""
    return str(dtype) if namespace == "torch" else str(dtype).removeprefix("torch.")


def _paired(tensor: Tensor) -> Tensor:
    """Return a tensor whose pairs are adjacent in memory, as a complex view requires; a copy where they are not."""
    strides = tensor.stride()
    regular = strides[-1] == 1 and not tensor.storage_offset() % 2 and not any(step % 2 for step in strides[:-1])
    return tensor if regular else tensor.clone(memory_format=torch.contiguous_format)
