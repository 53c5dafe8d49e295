"""Reads files that somebody else may have made: regular files only, and no more than fits.

Opening a named pipe waits for somebody to write to it, and a device such as ``/dev/zero`` has no end. Everything that
the library reads from a run file, a run folder or a folder of images is opened here, or checked here before another
library opens it.
"""

from __future__ import annotations

import errno
import io
import math
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_ARRAYS", "check_regular", "read_bytes", "read_npz"]

MOST_ARRAYS = 2**28
"""Bytes of the arrays of one cell, compressed or not: more are neither written nor read."""

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
# Does not wait for the other end of a pipe.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def check_regular(path: Path) -> None:
    """Raise an ``OSError`` if there is no file of this name, or if it is a folder, pipe, device or socket.

    The error's ``strerror`` is the sentence for the user.
    """
    try:
        _check_mode(os.stat(path).st_mode, path)
    except ValueError:  # a NUL character in the name
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None


def read_bytes(path: Path, most: int, cut: bool = False) -> bytes:
    """Return the content of a regular file.

    Parameters
    ----------
    path
        The file.
    most
        Number of bytes that it may have.
    cut
        Whether only so many bytes are returned of a larger file, which is an error otherwise.

    Raises
    ------
    OSError
        If it cannot be read, is no regular file, or has more bytes. ``strerror`` is the sentence for the user.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except ValueError:  # a NUL character in the name
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    with os.fdopen(descriptor, "rb", closefd=True) as stream:
        _check_mode(os.fstat(stream.fileno()).st_mode, path)
        content = stream.read(most + 1)
    if len(content) > most and cut:
        return content[:most]
    if len(content) > most:
        raise OSError(errno.EFBIG, f"has more than {_megabytes(most)}", str(path))
    return content


def read_npz(content: bytes, most: int = MOST_ARRAYS) -> dict[str, NDArray[Any]]:
    """Return the arrays of an ``.npz`` file. What it would unpack to is known before anything is unpacked.

    Parameters
    ----------
    content
        Content of the file.
    most
        Number of bytes that the arrays may have together.

    Raises
    ------
    ValueError
        If it is none, is damaged, has more bytes, or has arrays of objects, which pickle would have to make.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if total > most:
                raise ValueError(f"unpacks to {_megabytes(total)}, more than {_megabytes(most)}")
            return {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, SyntaxError) as error:
        raise ValueError(f"is no archive of arrays, or a damaged one ({' '.join(str(error).split())})") from None
    except Exception as error:
        if isinstance(error, ValueError):
            raise
        # The decompressors have errors of their own.
        raise ValueError(f"is a damaged archive ({type(error).__name__})") from None


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """One array, whose header must ask for the bytes that there are: numpy makes room before it reads."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"has an array in the version {version} of numpy's format")
        shape, by_columns, dtype = _HEADERS[version](stream)
        if dtype.hasobject:
            raise ValueError("has an array of objects, which are not read")
        wanted = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or wanted > member.file_size:
            raise ValueError(f"has an array of shape {shape}, for which it is too short")
        raw = stream.read(wanted)
        if len(raw) < wanted:
            raise ValueError("has an array that is cut off")
    array = np.frombuffer(raw, dtype=dtype).copy() if wanted else np.empty(math.prod(shape), dtype)
    return array.reshape(shape[::-1]).T if by_columns else array.reshape(shape)


def _check_mode(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        what = next((word for holds, word in _KINDS if holds(mode)), "no file")
        raise OSError(errno.EINVAL, f"is {what}, wanted a file", str(path))


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.4g} MB"
