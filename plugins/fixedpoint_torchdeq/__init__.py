"""The bridge to torchdeq, both ways.

Its solvers here: ``torchdeq-picard``, ``torchdeq-anderson`` and ``torchdeq-broyden``, judged from outside. Ours there:
``register()`` puts every step solver into torchdeq's table as ``fixedpoint-<name>``; the ``get_deq`` of this package is
torchdeq's, with them registered. torchdeq is imported when something of it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fixedpoint_torchdeq.ours import as_torchdeq_solver as as_torchdeq_solver
    from fixedpoint_torchdeq.ours import get_deq as get_deq
    from fixedpoint_torchdeq.ours import register as register
    from fixedpoint_torchdeq.theirs import TorchdeqAnderson as TorchdeqAnderson
    from fixedpoint_torchdeq.theirs import TorchdeqBroyden as TorchdeqBroyden
    from fixedpoint_torchdeq.theirs import TorchdeqPicard as TorchdeqPicard

_EXPORTS = {
    "TorchdeqAnderson": "fixedpoint_torchdeq.theirs",
    "TorchdeqBroyden": "fixedpoint_torchdeq.theirs",
    "TorchdeqPicard": "fixedpoint_torchdeq.theirs",
    "as_torchdeq_solver": "fixedpoint_torchdeq.ours",
    "get_deq": "fixedpoint_torchdeq.ours",
    "register": "fixedpoint_torchdeq.ours",
}

__all__ = [
    "TorchdeqAnderson",
    "TorchdeqBroyden",
    "TorchdeqPicard",
    "as_torchdeq_solver",
    "get_deq",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'fixedpoint_torchdeq' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
