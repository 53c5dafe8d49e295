"""SUNDIALS' KINSOL by ctypes: its accelerated fixed-point iteration, ``KIN_FP`` (Walker & Ni 2011; Hindmarsh 2005)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, byref, c_double, c_int, c_int64, c_long, c_void_p
from ctypes.util import find_library
from functools import cache
from pathlib import Path

import numpy as np
from map_suite.suite import Vector

from map_runs.counting import MOST

__all__ = ["installed", "solve"]

_FIXED_POINT = 3
_FAILED = -1


def installed() -> bool:
    """Whether the shared libraries of SUNDIALS 6 are found."""
    return _libraries() is not None


@cache
def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL] | None:
    folder = os.environ.get("SUNDIALS_LIBRARIES")
    names = ("sundials_kinsol", "sundials_nvecserial")
    paths = [str(Path(folder) / f"lib{name}.so.6") if folder else find_library(name) for name in names]
    try:
        solver, vectors = (ctypes.CDLL(path) for path in paths if path)
    except (OSError, ValueError):
        return None
    solver.KINCreate.restype = c_void_p
    vectors.N_VMake_Serial.restype = c_void_p
    vectors.N_VGetArrayPointer_Serial.restype = POINTER(c_double)
    return (solver, vectors) if hasattr(solver, "SUNContext_Create") else None


def solve(memory: int, f: Callable[[Vector], Vector], z: Vector) -> None:
    """Iterate from ``z`` of shape ``(D,)``, with Anderson acceleration of a memory of at most ``D``, or 0 for none.

    Raises whatever ``f`` raises, and ``RuntimeError`` if KINSOL cannot be set up.
    """
    found = _libraries()
    if found is None:
        raise RuntimeError("the shared libraries of SUNDIALS 6 are not installed")
    solver, vectors = found
    raised: list[BaseException] = []

    def view(vector: int) -> Vector:
        return np.ctypeslib.as_array(vectors.N_VGetArrayPointer_Serial(c_void_p(vector)), shape=z.shape)

    # An exception cannot pass through C: it is kept, and KINSOL is told that f failed for good.
    def value(at: int, into: int, _: int) -> int:
        try:
            view(into)[:] = f(view(at).copy())
        except BaseException as error:
            raised.append(error)
            return _FAILED
        return 0

    callback = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p)(value)
    context = c_void_p()
    solver.SUNContext_Create(None, byref(context))
    state, ones = z.copy(), np.ones_like(z)

    def wrapped(array: Vector) -> c_void_p:
        return c_void_p(vectors.N_VMake_Serial(c_int64(len(array)), array.ctypes.data_as(c_void_p), context))

    start, scale = wrapped(state), wrapped(ones)
    memory_block = c_void_p(solver.KINCreate(context))
    codes = [
        solver.KINSetMAA(memory_block, c_long(min(memory, len(z)))),
        solver.KINSetNumMaxIters(memory_block, c_long(MOST)),
        solver.KINInit(memory_block, callback, start),
        solver.KINSetFuncNormTol(memory_block, c_double(1e-300)),
        solver.KINSetErrFile(memory_block, None),
    ]
    if any(codes):
        raise RuntimeError(f"KINSOL could not be set up: its functions returned {codes}")
    solver.KINSol(memory_block, start, c_int(_FIXED_POINT), scale, scale)
    solver.KINFree(byref(memory_block))
    vectors.N_VDestroy_Serial(start)
    vectors.N_VDestroy_Serial(scale)
    solver.SUNContext_Free(byref(context))
    if raised:
        raise raised[0]
