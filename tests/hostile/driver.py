"""Runs ``fixedpoint`` under watch: ``driver.py SECONDS ARGUMENTS``.

Python tells an audit hook of every file that is opened, every socket and every process. What would be written outside
of the sandbox, be sent, or be executed ends the process with status 99 before it happens.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from typing import Any

ROOT = os.environ.get("FIXEDPOINT_HOSTILE_ROOT", "")
FORBIDDEN = (
    *("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"),
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile", "pickle.find_class"),
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Caches of the libraries that draw.
HARMLESS = ("/dev/null", "/dev/tty", "/dev/full", "/dev/stdout", "/dev/stderr")


def watch(root: str, stop: Any) -> Any:
    """The audit hook: calls ``stop`` with a sentence where something is done that must not be."""
    inside = os.path.realpath(root) + os.sep

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            stop(f"{event} {arguments!r}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            path = arguments[0]
            if isinstance(path, int):
                return
            place = os.path.realpath(os.fsdecode(path))
            if not place.startswith(inside) and place not in HARMLESS:
                stop(f"opened {place} for writing")

    return hook


def _stop(sentence: str) -> None:
    os.write(2, f"FORBIDDEN: {sentence}\n".encode(errors="backslashreplace"))
    os._exit(99)


def main() -> None:
    """Run the program."""
    seconds = int(sys.argv[1])
    sys.argv = ["fixedpoint", *sys.argv[2:]]
    if "MPLBACKEND" not in os.environ:  # the program itself is to meet one that there is not
        import matplotlib.font_manager  # noqa: F401 -- writes its cache of fonts when it is imported first
    import torch

    with contextlib.suppress(ImportError):
        import urllib3  # noqa: F401 -- binds a socket to ::1 when it is imported first, to see whether there is IPv6

    torch.set_num_threads(1)
    from fixedpoint.cli.main import main as program

    if os.environ.get("FIXEDPOINT_HOSTILE_GONE"):  # only now: torch itself ends a process that begins in such a folder
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir("../gone")
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds + 1, used + seconds + 2))
    sys.addaudithook(watch(ROOT, _stop))
    program()


if __name__ == "__main__":
    main()
