"""A full standard output is named, however it is buffered, and what else fails is not called so."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from fixedpoint.cli.streams import guarded


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("length", [10, 100_000])
def test_a_full_output_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], buffered: bool, length: int
) -> None:
    """An unbuffered stream (``PYTHONUNBUFFERED``) holds nothing back, nor does a buffer that is shorter than a text."""
    raw = io.FileIO("/dev/full", "w")
    stream = io.TextIOWrapper(io.BufferedWriter(raw) if buffered else raw, "utf-8", write_through=not buffered)
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as ended, guarded():
        print("x" * length)
    assert ended.value.code == 1
    assert sys.stdout is stream
    assert capsys.readouterr().err == "cannot write to standard output: No space left on device\n"
    stream.close()  # nothing is held back that would fail now


def test_another_file_that_is_full_is_not_called_the_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with (tmp_path / "out").open("w+", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)

        def write() -> None:
            with guarded():
                print("written")
                raise OSError(28, "No space left on device", "table.md")

        with pytest.raises(SystemExit) as ended:
            write()
        assert ended.value.code == 1
        assert capsys.readouterr().err == "cannot go on: table.md: No space left on device\n"
        assert sys.stdout is stream
    assert (tmp_path / "out").read_text() == "written\n"


def test_a_working_directory_that_is_gone_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    os.rmdir(tmp_path / "gone")
    with pytest.raises(SystemExit) as ended, guarded():
        Path("x").absolute()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "cannot go on: the working directory: No such file or directory\n"


def test_an_encoding_that_has_not_all_characters_takes_any_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        stream.write("before, ")
        with guarded():
            print("\u00fc within", end="")
        stream.write(", after")
    assert (tmp_path / "out").read_text() == "before, \\xfc within, after"
