"""Memory of values: whether somebody else may write into it later.

A function may return what it will fill again at its next call: a static buffer, one of several in turn, a view of a
large one. Kept as it is, such a value changes behind the solver's back. A tensor that has just been made is held by
nobody but its receiver, and torch counts who holds a storage: where more do than hold that of a fresh tensor, the value
is copied. A value in fresh memory is not.
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

__all__ = ["REFILLED", "Receiver"]


class Receiver:
    """Receives the values of one function, each in memory that stays as it is.

    What is returned in memory that somebody else holds is copied. While autograd records, a graph may hold it, so that
    nobody can tell; memory that was returned before and has been filled anew is found out then, and refused.

    Attributes
    ----------
    copied
        Whether a value had to be.
    """

    def __init__(self) -> None:
        self.copied = False
        self._versions: dict[StorageWeakRef, dict[int, int]] = {}  # of what was returned while autograd recorded

    def __call__(self, make: Callable[[], Tensor]) -> Tensor:
        """What ``make`` returns, without its graph unless autograd records.

        It is called here, so that no other frame holds what it returns. Memory that torch has not allocated (a numpy
        array's, another library's) may always be somebody else's.

        Raises
        ------
        ValueError
            Where memory is filled anew while autograd records.
        """
        if torch.is_grad_enabled() or (forward_ad._current_level >= 0 and forward_ad._is_fwd_grad_enabled()):
            return self._recorded(make())
        value = make()
        alias = value.data  # not detach(): a view holds its base
        del value
        if _holders(alias) == _fresh():
            return alias
        self.copied = True
        return alias.clone()

    def gave(self, tensor: Tensor) -> bool:
        """Whether the memory of a tensor is part of what was received while autograd recorded."""
        return StorageWeakRef(tensor.untyped_storage()) in self._versions

    def _recorded(self, value: Tensor) -> Tensor:
        if torch._C._functorch.is_functorch_wrapped_tensor(value):  # it has no memory
            return value
        places = self._versions.setdefault(StorageWeakRef(value.untyped_storage()), {})
        if places.setdefault(int(value.storage_offset()), value._version) != value._version:
            raise ValueError(REFILLED)
        return value


REFILLED = (
    "f filled memory anew that it had returned before; while autograd records its evaluations it must return a new "
    "tensor each time"
)


def _holders(value: Tensor) -> tuple[int, int, bool]:
    """How many tensors and others hold a storage, how many references Python has to it, whether torch allocated it."""
    storage = value.untyped_storage()
    count: Any = getattr(torch._C, "_storage_Use_Count", None)
    if count is None:  # a torch that does not tell: everything is copied
        return 0, 0, False
    return count(storage._cdata), sys.getrefcount(storage), storage.resizable()


@functools.cache
def _fresh() -> tuple[int, int, bool]:
    """What these are of a tensor that has just been made."""
    value = torch.empty(1)
    alias = value.data
    del value
    found = _holders(alias)
    return (*found[:2], True)
