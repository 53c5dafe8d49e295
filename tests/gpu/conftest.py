"""The device all tests of this folder run on: CUDA, or with ``FIXEDPOINT_DEVICE=standin`` the one that stands in."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import torch
from devices import Cuda, Device
from stand_in import stand_in

STANDS_IN = os.environ.get("FIXEDPOINT_DEVICE") == "standin"


@pytest.fixture
def device() -> Iterator[Device]:
    if STANDS_IN:
        with stand_in() as device:
            yield device
    elif torch.cuda.is_available():
        with Cuda() as device:
            yield device
    else:
        pytest.skip("torch sees no CUDA device here; FIXEDPOINT_DEVICE=standin runs these tests without one")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """A thread of autograd's that served the stand-in may abort the process on its way out: nothing is left to do."""
    if STANDS_IN and _EXIT:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_EXIT[-1])


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    _EXIT.append(int(exitstatus))


_EXIT: list[int] = []
