"""What torch.compile is to leave alone, and what it has compiled.

A solve is a loop whose length is known when it ends, and its decisions are the host's: no graph holds it. Within a
compiled model it is a break in the graph, and runs as it would without; a function or cell that is compiled itself
stays so.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

__all__ = ["is_compiled", "outside_of_graphs", "uncompiled"]

P = ParamSpec("P")
R = TypeVar("R")


def outside_of_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which torch.compile does not look into.

    As ``torch.compiler.disable`` has it, which loads the compiler, and takes longer for that than many a solve: here it
    is asked only where somebody has loaded it.
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
    """A context in which what is compiled runs as it was written.

    For evaluations that products are made of: a compiled one can be gone back through once, as a rule, and never twice
    in turn.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def is_compiled(function: Any) -> bool:
    """Whether a function or module, or a module within it, was given to torch.compile."""
    if isinstance(function, nn.Module):
        return any(hasattr(each, "_orig_mod") or each._compiled_call_impl is not None for each in function.modules())
    return hasattr(function, "_torchdynamo_orig_callable")
