"""Where and with what a cell was run: versions, machine, time."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping

import numpy as np
import torch

import fixedpoint
from fixedpoint.config.makers import Maker

__all__ = ["machine", "now", "versions"]


def versions(makers: Mapping[str, Maker]) -> dict[str, str]:
    """Versions of Python, of the libraries underneath, and of every distribution that takes part."""
    base = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "fixedpoint": fixedpoint.__version__,
    }
    return base | {name: each.version or "unknown" for name, each in sorted(makers.items()) if name not in base}


def machine() -> dict[str, str | int]:
    """The machine, as far as it matters to times."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": os.cpu_count() or 0,
        "device": device,
    }


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
