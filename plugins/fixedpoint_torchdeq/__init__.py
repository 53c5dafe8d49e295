"""A bridge between this library and torchdeq, in both directions.

The solvers of torchdeq are available here as ``torchdeq-picard``, ``torchdeq-anderson`` and ``torchdeq-broyden``. The
step solvers of this library are available in torchdeq: ``register()`` adds them to its table as ``fixedpoint-<name>``,
and ``get_deq`` is that of torchdeq with these solvers registered. torchdeq is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fixedpoint._lazy import exported

if TYPE_CHECKING:
    from fixedpoint_torchdeq.adapter import GLOBALS as GLOBALS
    from fixedpoint_torchdeq.ours import as_torchdeq_solver as as_torchdeq_solver
    from fixedpoint_torchdeq.ours import get_deq as get_deq
    from fixedpoint_torchdeq.ours import register as register
    from fixedpoint_torchdeq.theirs import TorchdeqAnderson as TorchdeqAnderson
    from fixedpoint_torchdeq.theirs import TorchdeqBroyden as TorchdeqBroyden
    from fixedpoint_torchdeq.theirs import TorchdeqPicard as TorchdeqPicard

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "fixedpoint_torchdeq.adapter": ("GLOBALS",),
        "fixedpoint_torchdeq.ours": (
            "as_torchdeq_solver",
            "get_deq",
            "register",
        ),
        "fixedpoint_torchdeq.theirs": (
            "TorchdeqAnderson",
            "TorchdeqBroyden",
            "TorchdeqPicard",
        ),
    },
)
