"""Run files, overrides, names, labels, output folders and environments of ``fixedpoint run`` and its like."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hostile.table import GOOD, Entry, Sandbox
from hostile.texts import TEXTS, YAML

__all__ = ["environments", "labels", "outputs", "overrides", "run_files", "special_files"]

RUN = ("run", "study.yaml", "-o", "out")


def run_files() -> Iterator[Entry]:
    """YAML of every kind."""
    for name, content in YAML.items():

        def write(box: Sandbox, content: bytes = content) -> None:
            (box.work / "study.yaml").write_bytes(content)

        yield Entry(f"yaml-{name}", (*RUN, "--quiet"), write)


def labels() -> Iterator[Entry]:
    """Hard texts as labels, names of runs and of components, and in overrides and on the command line."""
    for name, text in TEXTS.items():

        def label(box: Sandbox, text: str = text) -> None:
            config = {
                "name": "study",
                "tasks": [{"name": "linear-contraction", "size": 4, "label": text}],
                "solvers": [{"name": "picard", "label": text}],
            }
            (box.work / "study.yaml").write_text(json.dumps(config))

        def title(box: Sandbox, text: str = text) -> None:
            (box.work / "study.yaml").write_text(GOOD.replace("study", json.dumps(text), 1))

        def unknown(box: Sandbox, text: str = text) -> None:
            (box.work / "study.yaml").write_text(
                json.dumps({"tasks": [text], "solvers": [{"name": "picard", text: 1}]})
            )

        yield Entry(f"label-{name}", RUN, label)
        yield Entry(f"name-{name}", RUN, title)
        yield Entry(f"component-{name}", (*RUN, "--quiet"), unknown, statuses=(2,))
        if "\0" not in text:
            cut = text if len(text.encode()) < 100_000 else text[:30_000]
            yield Entry(f"override-{name}", (*RUN, "-q", f"name={cut}"))
            yield Entry(f"show-{name}", ("show", "--", cut), statuses=(2,))


def overrides() -> Iterator[Entry]:
    """Overrides that are none, or that reach where nothing is."""
    for number, text in enumerate(
        (
            *("=", "a", "a=", "=b", ".=1", "..=1", "[0]=1", "a[=1", "a]=1", "a[0=1", "a[-1]=1", "a[99999999999999]=1"),
            *("tasks=1", "tasks[9]=x", "tasks[0][0]=x", "tasks.0.size=0", "tasks[0].size=[]", "tasks[0].size={}"),
            *("tasks[0].size.x.y.z=1", "tasks[0]=null", "tasks[0].name=null", "tasks[0].name=[]", "solvers[0]={}"),
            *("solvers=[]", "solvers=[[]]", "solvers={}", "seeds=[[1]]", "seeds=x", "seeds=[1.5]", "seeds=[1e3]"),
            *("extends=x.yaml", "extends=/dev/zero", "executor=x", "executor={name: x}", "executor={}", "executor=[1]"),
            *("termination=1", "termination.x=1", "termination.rtol=[]", "termination.rtol=1e999", "expect=1"),
            *("expect.x=[]", "expect.x=.nan", "threads=1.5", "threads=99999999999", "threads=1e9", "name=[]"),
            *("name={}", "name=1", "name=true", "name=~", "name=!!python/name:os.system", "name=&a x", "name=*a"),
            *("name='", 'name="', "name={", "name=[", "name=|", "name=>", "name=%", "name=@x", "name=`x`", "name=a: b"),
            *("tasks[0].radius=.nan", "tasks[0].radius=.inf", "tasks[0].radius=-1", "tasks[0].batch=1e400"),
            *(f"a{'.b' * 3000}=1", f"a{'[0]' * 3000}=1", f"name={'[' * 3000}", f"seeds=[{','.join('1' * 20000)}]"),
            *("tasks[0].size=" + "9" * 5000, "__class__=1", "tasks.__len__=1", "tasks[0].__class__.x=1"),
        )
    ):
        yield Entry(f"set-{number}-{text[:20]}", (*RUN, "-q", text))


def special_files() -> Iterator[Entry]:
    """Run files that are no files, or no end of one."""
    makers: dict[str, Callable[[Path, Sandbox], Any]] = {
        "pipe": lambda path, box: os.mkfifo(path),
        "folder": lambda path, box: path.mkdir(),
        "loop": lambda path, box: path.symlink_to(path),
        "dangling": lambda path, box: path.symlink_to(box.outside / "nothing"),
        "zero": lambda path, box: path.symlink_to("/dev/zero"),
        "random": lambda path, box: path.symlink_to("/dev/urandom"),
        "terminal": lambda path, box: path.symlink_to("/dev/tty"),
        "nothing": lambda path, box: path.symlink_to("/dev/null"),
        "memory": lambda path, box: path.symlink_to("/proc/self/mem"),
        "socket": lambda path, box: _socket(path),
        "sparse": lambda path, box: _sparse(path),
        "unreadable": lambda path, box: (path.write_text(GOOD), path.chmod(0)),
    }
    for name, make in makers.items():

        def put(box: Sandbox, make: Callable[[Path, Sandbox], Any] = make) -> None:
            make(box.work / "odd.yaml", box)

        def below(box: Sandbox, make: Callable[[Path, Sandbox], Any] = make) -> None:
            make(box.work / "odd.yaml", box)
            (box.work / "study.yaml").write_text("extends: odd.yaml\n")

        yield Entry(f"file-{name}", ("run", "odd.yaml", "-o", "out", "-q"), put)
        yield Entry(f"extends-{name}", (*RUN, "-q"), below)
        yield Entry(f"report-file-{name}", ("report", "odd.yaml"), put, statuses=(2,))


def outputs() -> Iterator[Entry]:
    """Output folders in which something of somebody else would be replaced, or that are none."""
    run = ("run", "study.yaml", "-q", "-o")
    yield Entry("output-here", (*run, "."), _foreign("table.md"), (1,), "table.md")
    yield Entry("output-run-file", ("run", "config.yaml", "-q", "-o", "."), _moved("config.yaml"), (1,), "config.yaml")
    yield Entry("output-run-file-table", ("run", "table.md", "-q", "-o", "."), _moved("table.md"), (1,), "table.md")
    yield Entry("output-run-file-link", ("run", "a.yaml", "-q", "-o", "."), _linked_run_file, (1,), "config.yaml")
    yield Entry("output-extended", (*run, "."), _extended, (1,), "config.yaml")
    names = ("config.yaml", "run.json", "table.csv", "report.html", "convergence.png", "samples-x.png", "records")
    for name in names:
        yield Entry(f"output-foreign-{name}", (*run, "../outside"), _foreign(name, outside=True), (1,), name)
    yield Entry("output-file", (*run, "../outside/precious.txt"), statuses=(1,), says="precious.txt")
    yield Entry("output-below-file", (*run, "../outside/precious.txt/x"), statuses=(1,), says="precious.txt")
    yield Entry("output-null", (*run, "/dev/null"), statuses=(1,), says="/dev/null")
    yield Entry("output-empty", (*run, ""), _foreign("table.md"), (1, 2))
    yield Entry("output-null-character", ("run", "study.yaml", "-q", "-o", "out/\udcff"))
    yield Entry("output-long", (*run, "out/" + "x" * 300), statuses=(1,))
    yield Entry("output-deep", (*run, "out/" + "x/" * 3000), statuses=(1,))
    yield Entry("output-system", (*run, "/proc/fixedpoint"), statuses=(1,), says="/proc/fixedpoint")
    for kind in ("pipe", "loop", "dangling", "zero"):

        def odd(box: Sandbox, kind: str = kind) -> None:
            path = box.out
            {
                "pipe": lambda: os.mkfifo(path),
                "loop": lambda: path.symlink_to(path),
                "dangling": lambda: path.symlink_to(box.root / "home" / "nothing"),
                "zero": lambda: path.symlink_to("/dev/zero"),
            }[kind]()

        yield Entry(f"output-is-{kind}", (*RUN, "-q"), odd, (1,), "out")
    for target in (
        "study.yaml",
        "../outside/precious.txt",
        "link.yaml",
        "../outside",
        "out/\x1b[31m.yaml",
        "out/a\nb.yaml",
    ):
        yield Entry(f"init-{target!a}", ("init", target), _link("link.yaml"), (0, 1, 2))
    for target in ("../outside", "../outside/things", "pipe", "link-to-pipe", "out/" + "x" * 300):
        yield Entry(f"schema-{target[:20]}", ("schema", "-o", target), _pipes, (1,), "cannot write")


def environments() -> Iterator[Entry]:
    """Streams that are full, closed or of another encoding, and variables with odd values."""
    good = _labelled("\u00fc \U0001f600 \u6f22 -- \u2013")
    for command in (RUN, ("list",), ("show", "anderson"), ("doctor",), ("schema",), ("--help",), ("run", "--help")):
        name = "-".join(part.strip("-") for part in command[:2])
        for buffering, variables in {"": {"PYTHONUNBUFFERED": ""}, "-unbuffered": {"PYTHONUNBUFFERED": "1"}}.items():
            yield Entry(
                f"full{buffering}-{name}",
                command,
                good,
                (1,),
                redirect=">/dev/full",
                says="cannot write to standard output: No space left on device",
                environment=variables,
            )
        yield Entry(f"closed-{name}", command, good, (0, 1), redirect=">&-")
        yield Entry(f"full-errors-{name}", command, good, (0, 1, 2), redirect="2>/dev/full")
        yield Entry(f"ascii-{name}", command, good, (0,), environment={"PYTHONIOENCODING": "ascii"})
    for encoding in ("latin-1", "utf-16", "cp437", "shift_jis", "utf-8:strict"):
        yield Entry(f"encoding-{encoding}", RUN, good, (0,), environment={"PYTHONIOENCODING": encoding})
        yield Entry(
            f"encoding-json-{encoding}", (*RUN, "--json"), good, (0,), environment={"PYTHONIOENCODING": encoding}
        )
    for key, values in {
        "COLUMNS": ("0", "1", "-5", "9999999", "x"),
        "LC_ALL": ("C", "POSIX", "xx_YY"),
        "TERM": ("", "dumb", "unknown"),
        "NO_COLOR": ("1",),
        "FORCE_COLOR": ("",),
        "HOME": ("", "/nowhere"),
        "TMPDIR": ("/nowhere",),
        "OMP_NUM_THREADS": ("1000",),
        "PYTHONWARNINGS": ("default",),
        "PYTHONOPTIMIZE": ("2",),
        "PYTHONUTF8": ("0", "1"),
    }.items():
        for value in values:
            yield Entry(f"environment-{key}-{value or 'empty'}", RUN, good, (0,), environment={key: value})
    for value in ("nonsense", "tkagg", "module://nowhere"):
        yield Entry(
            f"environment-MPLBACKEND-{value}", RUN, good, (0,), "out/convergence.png", environment={"MPLBACKEND": value}
        )
    yield Entry("environment-PWD-/nowhere", RUN, good, (0,), environment={"PWD": "/nowhere"})
    # The working directory has been removed. Its "..", the folder that it was in, can still be read from.
    gone = {"FIXEDPOINT_HOSTILE_GONE": "1"}
    here = "the working directory: No such file or directory"
    yield Entry("no-folder-run", RUN, statuses=(2,), says="study.yaml: no such file", environment=gone)
    for name, target in {"here": "out", "elsewhere": "../out"}.items():
        yield Entry(f"no-folder-{name}", ("run", "../study.yaml", "-o", target), lambda _: None, (1,), here, gone)
    yield Entry("no-folder-default", ("run", "../study.yaml"), statuses=(1,), says=here, environment=gone)
    yield Entry("no-folder-report", ("report", "out"), statuses=(1, 2), says="out", environment=gone)
    yield Entry("no-folder-init", ("init", "new.yaml"), statuses=(1,), says="new.yaml", environment=gone)
    yield Entry("no-folder-list", ("list",), statuses=(0,), environment=gone)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)  # what it made remains
    finally:
        os.chdir(here)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**36)


def _foreign(name: str, outside: bool = False) -> Callable[[Sandbox], None]:
    def put(box: Sandbox) -> None:
        path = (box.outside if outside else box.work) / name
        if "." in name:
            path.write_text("precious\n")
        else:
            path.mkdir()

    return put


def _moved(name: str) -> Callable[[Sandbox], None]:
    return lambda box: (box.work / "study.yaml").rename(box.work / name) and None


def _linked_run_file(box: Sandbox) -> None:
    (box.work / "study.yaml").rename(box.work / "config.yaml")
    (box.work / "a.yaml").symlink_to("config.yaml")


def _extended(box: Sandbox) -> None:
    (box.work / "study.yaml").rename(box.work / "config.yaml")
    (box.work / "study.yaml").write_text("extends: config.yaml\n")


def _link(name: str) -> Callable[[Sandbox], None]:
    return lambda box: (box.work / name).symlink_to(box.outside / "precious.txt")


def _pipes(box: Sandbox) -> None:
    os.mkfifo(box.work / "pipe")
    (box.work / "link-to-pipe").symlink_to("pipe")


def _labelled(text: str) -> Callable[[Sandbox], None]:
    def put(box: Sandbox) -> None:
        (box.work / "study.yaml").write_text(
            json.dumps({"tasks": [{"name": "linear-contraction", "size": 4, "label": text}], "solvers": ["picard"]})
        )

    return put
