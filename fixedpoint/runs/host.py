"""Versions, machine and time, as stored in records."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping

import numpy as np
import torch

import fixedpoint
from fixedpoint.config.makers import Maker

__all__ = ["machine", "now", "system", "versions"]


def versions(makers: Mapping[str, Maker]) -> dict[str, str]:
    """Return the versions of Python, torch, numpy, fixedpoint and all makers, by name.

    Parameters
    ----------
    makers
        The distributions that a record depends on. One without a version is ``"unknown"``.
    """
    base = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "fixedpoint": fixedpoint.__version__,
    }
    return base | {name: each.version or "unknown" for name, each in sorted(makers.items()) if name not in base}


def machine() -> dict[str, str | int]:
    """Return the platform, processor, number of CPUs and device, since times depend on them."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "platform": system(),
        "processor": platform.machine(),
        "cpus": os.cpu_count() or 0,
        "device": device,
    }


def system() -> str:
    """Return the operating system, its release and the kind of processor.

    ``platform.platform()`` starts another program to ask for the processor.
    """
    return "-".join((platform.system(), platform.release(), platform.machine()))


def now() -> str:
    """Return the time in UTC, in ISO 8601 format, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
