"""A simulated device: its tensors report ``standin:0`` as their device and are computed on the CPU.

Operations that an accelerator would refuse raise an error (a CPU tensor mixed with tensors of the device), and
operations that the host would have to wait for are counted. So code can be tested as it would run on CUDA, on a machine
without CUDA.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

__all__ = ["StandIn", "stand_in"]

aten = torch.ops.aten
CPU = torch.device("cpu")
# Operations whose result the host must know to continue: a number, or a shape that depends on the data.
_READS = {
    aten._local_scalar_dense,
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten.repeat_interleave,
    aten._linalg_check_errors,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
    aten.bincount,
}
_INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._index_put_impl_}
_COPIES = {aten._to_copy, aten.copy_}


class _Held(Tensor):
    """A tensor of the device; ``held`` is the CPU tensor with its data."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _Held:
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device="standin:0"
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"{self.held!r} on standin:0"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _CURRENT:
            return _CURRENT[-1].carry_out(func, args, kwargs or {})
        return StandIn().carry_out(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()


class StandIn(TorchDispatchMode):
    """Runs operations on the simulated device, and counts how often the host waits since the context was entered.

    Attributes
    ----------
    reads
        Number of operations for which the host waits until the device has finished all earlier work.
    uploads
        Number of copies to the device that the host waits for, since they are not ``non_blocking``.
    """

    device = "standin:0"

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.uploads = 0

    @property
    def waits(self) -> int:
        """How often the host has waited, for reads and uploads."""
        return self.reads + self.uploads

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would load its compiler to skip it, and ask it at every operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.carry_out(func, args, kwargs or {})

    def carry_out(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation on the CPU with the behaviour of the device."""
        given = _tensors([*args, *kwargs.values()])
        there = [tensor for tensor in given if isinstance(tensor, _Held)]
        target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if not there and (target is None or target.type != "standin"):
            return func(*args, **kwargs)
        packet = func.overloadpacket
        if packet in _COPIES:
            self._note_copy(packet, args, kwargs, target)
        elif there:
            self._note(packet, args, kwargs)
            self._refuse_mixed(func, given, args)
        if packet is aten._to_copy and target is not None and (target.type == "cpu") == bool(there):
            args = (args[0].clone(), *args[1:])  # the CPU would return the same tensor, a device makes a copy
        if packet is aten._efficientzerotensor:
            func = aten.zeros.default  # zeros without memory require a dispatch key that the wrapper lacks
        wrappers = {id(tensor.held): tensor for tensor in there}
        home = (packet is aten._to_copy and target == CPU) or (packet is aten.copy_ and not isinstance(args[0], _Held))
        if target is not None:
            kwargs = {**kwargs, "device": CPU}
        value = func(*_unwrapped(args), **{name: _unwrapped(each) for name, each in kwargs.items()})
        return value if home else _wrapped(value, wrappers)

    def _note_copy(self, packet: Any, args: Any, kwargs: dict[str, Any], target: torch.device | None) -> None:
        if packet is aten.copy_:
            to, of = (isinstance(part, _Held) for part in args[:2])
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        else:
            of = isinstance(args[0], _Held)
            to = of if target is None else target.type == "standin"
            blocking = not kwargs.get("non_blocking", False)
        self.reads += blocking and of and not to
        self.uploads += blocking and to and not of

    def _note(self, packet: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if packet in _READS:
            self.reads += not (packet is aten.repeat_interleave and kwargs.get("output_size") is not None)
        elif packet in _INDEXING:
            indices = [index for index in args[1] if index is not None]
            self.reads += any(index.dtype in (torch.bool, torch.uint8) for index in indices)
            self.uploads += isinstance(args[0], _Held) and not all(isinstance(index, _Held) for index in indices)

    def _refuse_mixed(self, func: Any, given: list[Tensor], args: Any) -> None:
        """Raise as CUDA does on mixed devices; CPU scalars in pointwise operations and CPU indices are allowed."""
        elsewhere = [tensor for tensor in given if not isinstance(tensor, _Held)]
        if func.overloadpacket in _INDEXING and isinstance(args[0], _Held):
            elsewhere = [
                tensor for tensor in elsewhere if tensor.ndim and not any(tensor is index for index in args[1])
            ]
        if torch.Tag.pointwise in func.tags:
            elsewhere = [tensor for tensor in elsewhere if tensor.ndim]
        if elsewhere:
            raise RuntimeError(f"{func}: expected all tensors on one device, got some of standin:0 and some of the CPU")


_CURRENT: list[StandIn] = []


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """Provide the device for the duration of the context."""
    register()
    device = StandIn()
    _CURRENT.append(device)
    try:
        with device:
            yield device
    finally:
        _CURRENT.pop()


@cache
def register() -> None:
    """Register the device with torch, which must happen before the first backward pass: that counts the devices."""
    _setup_privateuseone_for_python_backend("standin", _Module(), _Hooks())
    library = torch.library.Library("aten", "IMPL")
    for name, kernel in (("empty_strided", _empty_strided), ("_copy_from", _copy_from)):
        library.impl(name, kernel, "PrivateUse1")
    _LIBRARIES.append(library)


class _Module(_DummyBackendModule):
    def is_available(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


class _Hooks(_DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return False


_LIBRARIES: list[Any] = []


def _empty_strided(size: Any, stride: Any, **kwargs: Any) -> Tensor:
    """Make the tensors that torch creates from numbers: ``torch.tensor([1, 2], device=...)``, ``z[:, [1, 2]]``."""
    return _Held(torch.empty_strided(size, stride, dtype=kwargs.get("dtype")))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    if _CURRENT:
        _CURRENT[-1].uploads += not non_blocking
    target.held.copy_(source)
    return target


# Torch's pytree would take most of the run time. Arguments of operations nest only lists and tuples.
def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def _unwrapped(value: Any) -> Any:
    if isinstance(value, _Held):
        return value.held
    return type(value)(map(_unwrapped, value)) if type(value) in (list, tuple) else value


def _wrapped(value: Any, wrappers: dict[int, _Held]) -> Any:
    if isinstance(value, Tensor):
        return wrappers.get(id(value)) if id(value) in wrappers else _Held(value)
    return type(value)(_wrapped(each, wrappers) for each in value) if type(value) in (list, tuple) else value
