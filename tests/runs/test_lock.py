"""Two runs in one folder: the second says so and leaves everything as it is; a lock does not outlive its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fixedpoint.config.writing import WriteError
from fixedpoint.runs import lock
from fixedpoint.runs.lock import BusyFolderError, locked

HOLD = "import sys, time, pathlib\nfrom fixedpoint.runs.lock import locked\n"
HOLD += "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"


def test_a_folder_that_is_held_is_refused_and_free_again_once_the_holder_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(BusyFolderError, match=rf"another run \(process {holder.pid}\) is at work in"),
            locked(tmp_path),
        ):
            pytest.fail("it was held")
        holder.send_signal(signal.SIGKILL)
    with locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("target", ["number", "missing", "/dev/zero", "run.lock", None])
def test_a_lock_that_is_a_link_or_a_pipe_is_not_even_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str | None
) -> None:
    """Also where the system follows links whatever it is told, as Windows does."""
    (tmp_path / "number").write_text("123\n")  # as if it were a lock
    if target is None:
        os.mkfifo(tmp_path / "run.lock")
    else:
        (tmp_path / "run.lock").symlink_to(target)
    monkeypatch.setattr(lock, "_FLAGS", os.O_RDWR | os.O_CREAT | os.O_NONBLOCK)
    opened: list[str] = []
    sound = os.open

    def watched(path: Any, *rest: Any, **named: Any) -> int:
        opened.append(str(path))
        return sound(path, *rest, **named)

    monkeypatch.setattr(os, "open", watched)
    said = "is a link, wanted the lock of a run" if target else "is there already and not the lock of a run"
    with pytest.raises(WriteError, match=said), locked(tmp_path):
        pytest.fail("it was locked")
    assert str(tmp_path / "run.lock") not in opened
    assert sorted(os.listdir(tmp_path)) == ["number", "run.lock"]
    assert (tmp_path / "number").read_text() == "123\n"


def test_the_second_run_stops_with_a_sentence(tmp_path: Path, toy_environment: dict[str, str], python: str) -> None:
    (tmp_path / "study.yaml").write_text("tasks: [{name: toy, seconds: 60}]\nsolvers: [picard]\nseeds: [0, 1]\n")
    command = ["-m", "fixedpoint", "run", "study.yaml", "--fresh"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, *command], cwd=tmp_path, env=toy_environment, **pipes) as first:
        deadline = time.monotonic() + 60
        while not (tmp_path / "runs" / "study" / "run.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        second = subprocess.run(
            [python, *command],
            cwd=tmp_path,
            env=toy_environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 1
        assert second.stderr.startswith(f"another run (process {first.pid}) is at work in runs/study")
        assert len(second.stderr.splitlines()) == 1
        assert first.poll() is None
        first.kill()
        first.communicate(timeout=60)
    assert (tmp_path / "runs" / "study" / "run.json").exists()  # --fresh of the second took nothing away
