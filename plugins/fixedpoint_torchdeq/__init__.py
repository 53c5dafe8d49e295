"""The bridge to torchdeq, both ways.

Its solvers here: ``torchdeq-picard``, ``torchdeq-anderson`` and ``torchdeq-broyden``, judged from outside. Ours there:
``register()`` puts every step solver into torchdeq's table as ``fixedpoint-<name>``; the ``get_deq`` of this package is
torchdeq's, with them registered. torchdeq is imported when something of it is used.
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
