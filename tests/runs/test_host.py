"""What records say of the machine."""

from __future__ import annotations

import platform
import subprocess

import pytest

from fixedpoint.runs import host


def test_no_program_is_started_to_name_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(platform, "_uname_cache", None)
    assert str(host.machine()["platform"]).startswith(platform.system())
