"""Devices that count how often the host waits for them, CUDA above all, and problems that record these counts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from fixedpoint.core.problem import HasTake, Problem
from fixedpoint.testing.problems import RowProblem

__all__ = ["Cuda", "Device", "Watched", "moved", "waits_between", "watched"]

P = TypeVar("P", bound=RowProblem)


class Device(Protocol):
    """A device whose ``waits`` counts how often the host has waited for it, to read a number or to copy one to it."""

    device: str

    @property
    def waits(self) -> int: ...


class Cuda:
    """The first CUDA device, without TF32; torch warns of operations that synchronise, and the warnings are counted."""

    device = "cuda:0"

    def __enter__(self) -> Cuda:
        self._caught = warnings.catch_warnings(record=True)
        self._seen: list[Any] = self._caught.__enter__()
        warnings.simplefilter("always")
        self._tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = self._tf32
        self._caught.__exit__(*error)

    @property
    def waits(self) -> int:
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in self._seen)


class Watched(Problem, HasTake):
    """A problem that records at every call how often the host has waited so far."""

    def __init__(self, problem: RowProblem, device: Device, seen: list[int]) -> None:
        self.problem, self.device, self.seen = problem, device, seen
        self.layout = problem.layout

    def __call__(self, z: Tensor) -> Tensor:
        self.seen.append(self.device.waits)
        return self.problem(z)

    def initial(self) -> Tensor:
        return self.problem.initial()

    def take(self, rows: Tensor) -> Watched:
        return Watched(self.problem.take(rows), self.device, self.seen)


def watched(function: Callable[..., Tensor], device: Device, seen: list[int]) -> Callable[..., Tensor]:
    """Return a function that records the same at every call."""

    def call(*args: Any) -> Tensor:
        seen.append(device.waits)
        return function(*args)

    return call


def waits_between(seen: list[int]) -> list[int]:
    """Return how often the host waited between one call and the next."""
    return [after - before for before, after in pairwise(seen)]


def moved(problem: P, device: Device) -> P:
    """Return the problem on a device."""
    tensors = {entry.name: getattr(problem, entry.name) for entry in fields(problem) if entry.init}
    return replace(problem, **{name: value.to(device.device) for name, value in tensors.items()})
