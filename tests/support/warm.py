"""Python as a new process has it, but for what takes most of its time: torch is imported already.

A process that has imported torch and waits forks one for every command. What the library itself is, its plugins and
their registry are imported anew in each, from the ``PYTHONPATH``, in the folder and with the environment that were
given. An executable stands in for ``python``: it hands over its arguments, its files and its signals, and ends as the
process forked for it ends; killed, it takes that along.

Not for what is said of the interpreter itself: which modules are imported, options such as ``-W``, limits and
signals a parent leaves behind. ``-m pytest``, which complains of plugins that were imported before it, is handed to
the true one.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["executables"]

# Of other people, and without a variable of the environment that is read as they are imported.
_IMPORTED = (
    "torch",
    "numpy",
    "jaxtyping",
    "pydantic",
    "ruamel.yaml",
    "jinja2",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "safetensors.torch",
    "PIL.Image",
)
# What starts quickly, since it imports next to nothing: -I -S, and five modules.
_CLIENT = """\
#!{python} -IS
import json, os, signal, socket, sys

if sys.argv[1:3] == ["-m", "pytest"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
there = socket.socket(socket.AF_UNIX)
there.connect({address!r})
asked = json.dumps([{begin!r} + sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(there, [len(asked).to_bytes(8, "big")], [0, 1, 2])
there.sendall(asked)
process = int(there.recv(20))
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(process, number))
status = int(there.recv(20) or 1)
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@contextlib.contextmanager
def executables() -> Iterator[Path]:
    """A folder with ``python`` and ``fixedpoint``, for as long as the context lasts; the true ones but on Linux."""
    if not hasattr(os, "pidfd_open"):
        yield Path(sys.executable).parent
        return
    folder = Path(tempfile.mkdtemp(prefix="warm-"))  # a socket's path must be short
    address = str(folder / "socket")
    for name, begin in (("python", []), ("fixedpoint", ["-c", "import fixedpoint.cli.main as m; m.main()"])):
        (folder / name).write_text(_CLIENT.format(python=sys.executable, address=address, begin=begin))
        (folder / name).chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, __file__, address], env=environment, stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        while not os.path.exists(address):
            assert server.poll() is None
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(0.01)
        yield folder
    finally:
        server.communicate()  # the end of its standard input is its end
        shutil.rmtree(folder)


def _serve(address: str) -> list[Any]:
    """Fork for every command; returns in a process that is to carry one out: arguments, folder and environment."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(ImportError):
        for name in _IMPORTED:
            importlib.import_module(name)
        _draw()
    gc.collect()
    gc.freeze()  # nothing of these is looked at again, not even as a process ends
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + "~")
    listener.listen()
    os.rename(address + "~", address)
    while True:
        ready, _, _ = select.select([listener, 0], [], [], 1)
        if 0 in ready:
            os._exit(0)
        while _ended():
            pass
        if listener in ready:
            there, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                return _watched(there)
            there.close()


def _draw() -> None:
    """The first picture of a process takes the time of ten: fonts are found, numbers are set, grammars are built."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure()
    FigureCanvasAgg(figure)
    figure.subplots().loglog([1e-9, 1.0], [1e-9, 1.0])
    for format in ("png", "svg"):
        figure.savefig(io.BytesIO(), format=format)


def _ended() -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    return False


def _watched(there: socket.socket) -> list[Any]:
    """Fork once more: one process to carry out the command, one that tells how it ends, or ends it."""
    length, files, _, _ = socket.recv_fds(there, 8, 3)
    asked = b""
    while len(asked) < int.from_bytes(length, "big"):
        asked += there.recv(1 << 20)
    process = os.fork()
    if process == 0:
        there.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        return list(json.loads(asked))
    for file in (0, 1, 2, *files):
        os.close(file)
    there.sendall(str(process).encode().ljust(20))
    handle = os.pidfd_open(process)
    ready, _, _ = select.select([handle, there], [], [])
    if there in ready:  # nobody is there any more
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(OSError):
        there.sendall(str(status).encode())
    os._exit(0)


def _become(arguments: list[str], folder: str, environment: dict[str, str], path: list[str]) -> None:
    """What ``python`` does when it starts."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    given = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        errors = "backslashreplace" if name == "stderr" else "strict"
        stream = open(number, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        if mode == "w" and (name == "stderr" or stream.isatty() or environment.get("PYTHONUNBUFFERED")):
            stream.reconfigure(line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.path_importer_cache.clear()
    match arguments:
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            sys.path = [folder, *given, *path]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", program, *rest]:
            sys.argv = ["-c", *rest]
            sys.path = ["", *given, *path]
            exec(program, {"__name__": "__main__"})
        case [script, *rest]:
            sys.argv = [script, *rest]
            sys.path = [str(Path(script).resolve().parent), *given, *path]
            runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    try:
        _become(*_serve(sys.argv[1]), path=sys.path[1:])
    except SystemExit as ended:
        status = ended.code
    else:
        status = None
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    # As at the end of any process, but without taking apart what was imported, a third of a second.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status or 0)
