"""Copies of returned values whose memory the function may overwrite later.

A function may return memory that it fills again at its next call: a static buffer, one of several in turn, a view of a
larger tensor. If it were stored without a copy, such a value would change while the solver still uses it. A new tensor
has one holder, its receiver, and torch counts the holders of a storage. A value is copied if its storage has more
holders than that of a new tensor.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.multiprocessing.reductions import StorageWeakRef

from fixedpoint.core.inference import ordinary

__all__ = ["REFILLED", "Receiver"]


class Receiver:
    """Receives the values of one function, each in memory that nothing else overwrites.

    A value in memory that something else holds is copied. While autograd records, the graph may be that holder, so the
    count decides nothing. Instead, a value whose memory was returned before and has been overwritten since raises
    ``ValueError``.

    Parameters
    ----------
    owns
        Whether another receiver has received each value already. Only what autograd records is then checked again: one
        receiver sees all of it.

    Attributes
    ----------
    copied
        Whether any value had to be copied.
    """

    def __init__(self, *, owns: bool = False) -> None:
        self.copied = False
        self._owns = owns
        # For values returned while autograd recorded: by storage and offset, the version (torch counts writes in it).
        self._versions: dict[StorageWeakRef, dict[int, int]] = {}

    def __call__(self, make: Callable[[], Tensor]) -> Tensor:
        """Call ``make`` and return its value, without its graph unless autograd records.

        The call is made here, so that no other stack frame holds the value. Memory that torch has not allocated (that
        of a numpy array or of another library) is always copied, since its holders are unknown.

        Raises
        ------
        ValueError
            If the function overwrites memory that it returned before, while autograd records.
        """
        if torch.is_grad_enabled() or (forward_ad._current_level >= 0 and forward_ad._is_fwd_grad_enabled()):
            return self._recorded(make())
        if self._owns:
            return make()
        value = ordinary(make())
        alias = value.data  # not detach(), whose view would hold its base
        del value
        if _holders(alias) == _fresh():
            return alias
        self.copied = True
        return alias.clone()

    def gave(self, tensor: Tensor) -> bool:
        """Whether the memory of a tensor belongs to a value that was received while autograd recorded."""
        return bool(self._versions) and StorageWeakRef(tensor.untyped_storage()) in self._versions

    def _recorded(self, value: Tensor) -> Tensor:
        """Return a value received while autograd records; raise where its memory was overwritten."""
        if torch._C._functorch.is_functorch_wrapped_tensor(value):  # such a tensor has no storage
            return value
        value = ordinary(value)
        places = self._versions.setdefault(StorageWeakRef(value.untyped_storage()), {})
        if places.setdefault(int(value.storage_offset()), value._version) != value._version:
            raise ValueError(REFILLED)
        return value


REFILLED = (
    "f filled memory anew that it had returned before; while autograd records its evaluations it must return a new "
    "tensor each time"
)


def _holders(value: Tensor) -> tuple[int, int, bool]:
    """Return the holders of a tensor's storage, its references in Python, and whether torch allocated it."""
    storage = value.untyped_storage()
    count: Any = getattr(torch._C, "_storage_Use_Count", None)
    if count is None:  # a torch version without the count: everything is copied
        return 0, 0, False
    return count(storage._cdata), sys.getrefcount(storage), storage.resizable()


@functools.cache
def _fresh() -> tuple[int, int, bool]:
    """Return these numbers for a new tensor; measured, since they depend on the version of torch."""
    value = torch.empty(1, device="cpu")
    alias = value.data
    del value
    found = _holders(alias)
    return (*found[:2], True)
