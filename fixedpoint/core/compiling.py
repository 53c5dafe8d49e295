"""Solves and ``torch.compile``: keeping solves out of graphs, and running compiled functions uncompiled.

The length of a solve is unknown until it ends, and the host takes its decisions, so that no graph can hold it. Within a
compiled model a solve is a graph break and runs uncompiled. A function or cell that is compiled itself stays compiled.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

__all__ = ["is_compiled", "outside_of_graphs", "uncompiled"]

P = ParamSpec("P")
R = TypeVar("R")


def outside_of_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that torch.compile must not trace.

    Equivalent to ``torch.compiler.disable``. That function loads the compiler, which takes longer than many solves, so
    it is called only if the compiler is already loaded.
    """
    disabled: list[Callable[P, R]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # what torch.compiler.disable leaves for the compiler
    return call


def uncompiled() -> AbstractContextManager[None]:
    """Return a context in which compiled functions run uncompiled.

    For evaluations through which products are computed: the backward pass of a compiled function can usually run only
    once, and cannot be differentiated again.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    if not hasattr(torch.compiler, "set_stance"):
        return _uncompiled_before_2_6()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


class _Depth(threading.local):
    value = 0


_depth = _Depth()


@contextmanager
def _uncompiled_before_2_6() -> Iterator[None]:
    """Do what ``set_stance("force_eager")`` does: a compiled function is called without the compiler's hook."""
    _make_hook_conditional()
    _depth.value += 1
    try:
        yield
    finally:
        _depth.value -= 1


@functools.cache
def _make_hook_conditional() -> None:
    """Replace the function by which calls of compiled functions set the hook of torch 2.4 or 2.5, for good."""
    module: Any = sys.modules["torch._dynamo.eval_frame"]
    name = "_maybe_set_eval_frame" if hasattr(module, "_maybe_set_eval_frame") else "set_eval_frame"
    own = getattr(module, name)
    setattr(module, name, lambda callback: own(None if _depth.value else callback))


def is_compiled(function: Any) -> bool:
    """Whether a function or a module, or a module within it, was compiled with torch.compile."""
    if isinstance(function, nn.Module):
        return any(hasattr(each, "_orig_mod") or each._compiled_call_impl is not None for each in function.modules())
    return hasattr(function, "_torchdynamo_orig_callable")
