"""Layout: from what the user has (a tensor, an array, a tuple or dict of them) to the state ``(B, D)`` and back."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Layout", "Rows"]

Rows = Literal["independent", "joint"]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Leaf:
    """One tensor of the user's state: where it stands and the shape of one row of it."""

    path: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """How the user's value and the state ``(B, D)`` correspond.

    Attributes
    ----------
    rows
        ``B``, the number of independent problems; 1 when ``joint``.
    leaves
        Every tensor of the value, in order; ``D`` is the sum of their sizes.
    template
        The value with leaf numbers in place of tensors.
    dtype, device
        Of the state.
    namespace
        ``"torch"``, ``"numpy"`` or ``"python"`` (a plain float): what the user's function takes and returns.
    joint
        The whole value is one problem (rows depend on one another).
    blocks
        Number of equal blocks a row is made of (the steps of a chain); 1 otherwise.
    """

    rows: int
    leaves: tuple[Leaf, ...]
    template: Any = field(hash=False)
    dtype: torch.dtype
    device: torch.device
    namespace: Literal["torch", "numpy", "python"] = "torch"
    joint: bool = False
    blocks: int = 1

    @functools.cached_property
    def size(self) -> int:
        """``D``, the number of unknowns of one row."""
        return sum(leaf.size for leaf in self.leaves)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where each tensor of the value stands in a row."""
        ends = [int(end) for end in np.cumsum([leaf.size for leaf in self.leaves])]
        return tuple(slice(start, end) for start, end in zip([0, *ends], ends, strict=False))

    @classmethod
    def of(cls, value: Any, rows: Rows | None = None, blocks: int = 1) -> Layout:
        """The layout of a start value.

        ``rows="independent"``: the first dimension of every tensor is the batch. ``rows="joint"``: the whole
        value is one problem. By default rows are independent where every tensor has two dimensions or more
        and they agree in the first, and joint otherwise: a vector is one problem, as in SciPy.

        Raises
        ------
        TypeError, ValueError
            When the value holds no floating-point tensor or array, mixes dtypes or devices, is empty, or its
            batch dimensions disagree.
        """
        if rows not in (None, "independent", "joint"):
            raise ValueError(f"rows must be 'independent' or 'joint', got {rows!r}")
        found = list(_leaves(value, "z0"))
        if not found:
            raise ValueError(f"z0 holds no tensor, got {value!r}")
        namespace = _namespace(found)
        tensors = [(path, _as_tensor(path, leaf)) for path, leaf in found]
        _refuse_mixed(tensors)
        shapes = [tuple(tensor.shape) for _, tensor in tensors]
        joint = rows == "joint" or (rows is None and not _is_batched(shapes))
        if (not joint and len({shape[:1] for shape in shapes}) != 1) or (not joint and not shapes[0]):
            listed = ", ".join(f"{path} {shape}" for (path, _), shape in zip(tensors, shapes, strict=True))
            raise ValueError(f"rows='independent' wants one batch size as the first dimension of all, got {listed}")
        first = tensors[0][1]
        leaves = tuple(
            Leaf(path, shape if joint else shape[1:]) for (path, _), shape in zip(tensors, shapes, strict=True)
        )
        layout = cls(
            rows=1 if joint else shapes[0][0],
            leaves=leaves,
            template=_number(value),
            dtype=first.dtype,
            device=first.device,
            namespace=namespace,
            joint=joint,
            blocks=blocks,
        )
        if layout.rows == 0 or layout.size == 0:
            raise ValueError(f"z0 is empty, got shape {shapes[0]}")
        if layout.size % blocks:
            raise ValueError(f"a row of {layout.size} unknowns does not divide into {blocks} equal blocks")
        return layout

    def pack(self, value: Any, name: str = "f(z)") -> Float[Tensor, "B D"]:
        """The state ``(B, D)`` of a value of this layout.

        Raises
        ------
        TypeError, ValueError
            Naming what differs from the layout: structure, shape, dtype or device.
        """
        found: dict[str, Any] = dict(_leaves(value, "z0"))
        if set(found) != {leaf.path for leaf in self.leaves}:
            arrays = self.namespace == "python" and isinstance(value, np.ndarray)
            hint = "; for a function of arrays start from an array" if arrays else ""
            raise TypeError(f"{name} must have the structure of z0, {self._structure()}, got {_outline(value)}{hint}")
        parts = []
        for leaf in self.leaves:
            where = name + leaf.path.removeprefix("z0")
            self._refuse_kind(where, found[leaf.path])
            tensor = _as_tensor(where, found[leaf.path])
            shape = leaf.shape if self.joint else (self.rows, *leaf.shape)
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{where} must have the shape of {leaf.path}, {shape}, got {tuple(tensor.shape)}")
            if tensor.dtype != self.dtype:
                raise TypeError(f"{where} must have the dtype of {leaf.path}, {self.dtype}, got {tensor.dtype}")
            if tensor.device != self.device:
                raise ValueError(f"{where} must be on {self.device} like {leaf.path}, got {tensor.device}")
            parts.append(tensor.reshape(self.rows, leaf.size))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def unpack(self, state: Float[Tensor, "B D"]) -> Any:
        """The value of a state, in the user's own structure and namespace (views of the state's memory)."""
        parts = state.split([leaf.size for leaf in self.leaves], dim=1)
        lead = () if self.joint else (state.shape[0],)
        tensors = [part.reshape((*lead, *leaf.shape)) for part, leaf in zip(parts, self.leaves, strict=True)]
        return _fill(self.template, [self._present(tensor) for tensor in tensors])

    def take(self, count: int) -> Layout:
        """The layout of ``count`` of the rows."""
        return replace(self, rows=count)

    def _refuse_kind(self, where: str, leaf: Any) -> None:
        """A tensor for an array, or the other way round: converting it would cut the graph, unasked."""
        wanted = {"torch": "a torch tensor", "numpy": "a numpy array", "python": "a float"}[self.namespace]
        if _kind(where, leaf) != self.namespace and "torch" in (_kind(where, leaf), self.namespace):
            raise TypeError(f"{where} must be {wanted} like z0, got {type(leaf).__name__}")

    def _present(self, tensor: Tensor) -> Any:
        if self.namespace == "torch":
            return tensor
        array = tensor.detach().cpu().numpy()
        if self.namespace == "python":
            return float(array)
        array.flags.writeable = False
        return array

    def _structure(self) -> str:
        if self.namespace == "python":
            return ", ".join(f"{leaf.path} a float" for leaf in self.leaves)
        return ", ".join(f"{leaf.path} {leaf.shape}" for leaf in self.leaves)


@runtime_checkable
class _NamedTuple(Protocol):
    _fields: tuple[str, ...]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in value:
            yield from _leaves(value[key], f"{path}[{key!r}]")
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value


def _number(value: Any, counter: list[int] | None = None) -> Any:
    """``value`` with the running number of every leaf in its place."""
    counter = [0] if counter is None else counter
    if isinstance(value, Mapping):
        return {key: _number(value[key], counter) for key in value}
    if isinstance(value, (tuple, list)):
        items = [_number(item, counter) for item in value]
        return type(value)(*items) if isinstance(value, _NamedTuple) else type(value)(items)
    counter[0] += 1
    return counter[0] - 1


def _fill(template: Any, tensors: Sequence[Any]) -> Any:
    if isinstance(template, dict):
        return {key: _fill(item, tensors) for key, item in template.items()}
    if isinstance(template, (tuple, list)):
        items = [_fill(item, tensors) for item in template]
        return type(template)(*items) if isinstance(template, _NamedTuple) else type(template)(items)
    return tensors[template]


def _namespace(found: list[tuple[str, Any]]) -> Literal["torch", "numpy", "python"]:
    kinds = {_kind(path, leaf) for path, leaf in found}
    if len(kinds) > 1:
        raise TypeError("z0 must hold torch tensors or numpy arrays, not both")
    (kind,) = kinds
    return kind


def _kind(path: str, leaf: Any) -> Literal["torch", "numpy", "python"]:
    if isinstance(leaf, Tensor):
        return "torch"
    if isinstance(leaf, (np.ndarray, np.generic)):
        return "numpy"
    if isinstance(leaf, float):
        return "python"
    raise TypeError(f"{path} must be a tensor, an array or a float, got {type(leaf).__name__}")


def _as_tensor(path: str, leaf: Any) -> Tensor:
    if not isinstance(leaf, Tensor):
        _kind(path, leaf)
        array = np.array(leaf, order="C")  # a copy: the user's function may fill the same array every time
        if array.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(f"{path} must be of a floating-point dtype, got {array.dtype}")
        leaf = torch.from_numpy(array)
    tensor: Tensor = leaf
    if tensor.is_complex():
        raise TypeError(f"{path} must be real, got {tensor.dtype}; pass torch.view_as_real(z) instead")
    if not tensor.is_floating_point():
        raise TypeError(f"{path} must be of a floating-point dtype, got {tensor.dtype}")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{path} must be float64, float32, bfloat16 or float16, got {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{path} must be a dense tensor, got {tensor.layout}")
    return tensor


def _is_batched(shapes: list[tuple[int, ...]]) -> bool:
    return all(len(shape) >= 2 for shape in shapes) and len({shape[0] for shape in shapes}) == 1


def _refuse_mixed(tensors: list[tuple[str, Tensor]]) -> None:
    for what in ("dtype", "device"):
        kinds = {str(getattr(tensor, what)): path for path, tensor in tensors}
        if len(kinds) > 1:
            listed = ", ".join(f"{path} is {kind}" for kind, path in kinds.items())
            raise TypeError(f"all of z0 must have one {what}: {listed}")


def _outline(value: Any) -> str:
    paths = ", ".join(f"{path} {tuple(getattr(leaf, 'shape', ()))}" for path, leaf in _leaves(value, "f(z)"))
    return paths or repr(value)
