"""Run folders from elsewhere: links, pipes and damage in every place, and sealed records with odd values."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hostile.table import Entry, Sandbox
from hostile.texts import FILES, TEXTS

from fixedpoint.config.files import sealed
from fixedpoint.execution.plain import digest

__all__ = ["archives", "places", "records"]

RUN = ("run", "study.yaml", "-o", "out", "-q")
REPORT = ("report", "out")
_PLACES = (
    *("run.json", "config.yaml", "records", "arrays", "RECORD", "ARRAYS", "table.md", "report.html", "run.lock"),
    *("run.lock.holder", "convergence.png"),
)


def places() -> Iterator[Entry]:
    """Something odd in each place of a run folder; then it is run, and reported."""
    odd: dict[str, Callable[[Path, Sandbox], Any]] = {
        "link-out": lambda path, box: path.symlink_to(box.outside / "precious.txt"),
        "link-folder": lambda path, box: path.symlink_to(box.outside / "things"),
        "dangling": lambda path, box: path.symlink_to(box.outside / "nothing"),
        "loop": lambda path, box: path.symlink_to(path),
        "hard-link": lambda path, box: os.link(box.outside / "precious.txt", path),
        "pipe": lambda path, box: os.mkfifo(path),
        "zero": lambda path, box: path.symlink_to("/dev/zero"),
        "folder": lambda path, box: path.mkdir(),
        "sparse": lambda path, box: _sparse(path),
        **{f"content-{name}": _writer(content) for name, content in FILES.items()},
    }
    for place in _PLACES:
        for name, make in odd.items():
            if (
                place not in ("RECORD", "ARRAYS", "run.json")
                and name.startswith("content-")
                and name != "content-garbage"
            ):
                continue

            def put(box: Sandbox, place: str = place, make: Callable[[Path, Sandbox], Any] = make) -> None:
                path = _place(box, place)
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
                make(path, box)

            yield Entry(f"place-{place}-{name}-run", RUN, put, (0, 1))
            yield Entry(f"place-{place}-{name}-report", REPORT, put, (0, 1, 2))


def records() -> Iterator[Entry]:
    """Records and descriptions with a right checksum and odd values."""
    for name, change in _changes().items():

        def put(box: Sandbox, change: Callable[[dict[str, Any], dict[str, Any]], Any] = change) -> None:
            started_from(box)
            info, record = (json.loads(path.read_text()) for path in (box.out / "run.json", _place(box, "RECORD")))
            change(info, record)
            for path, data in ((box.out / "run.json", info), (_place(box, "RECORD"), record)):
                data.pop("checksum", None)
                path.write_bytes(sealed(data))

        yield Entry(f"record-{name}-report", REPORT, put, (0, 2))
        if name.startswith("texts-"):
            continue
        yield Entry(f"record-{name}-json", (*REPORT, "--json"), put, (0, 2))
        yield Entry(f"record-{name}-run", RUN, put, (0, 1))


def archives() -> Iterator[Entry]:
    """Files of arrays, with a right checksum in the record."""
    for name, content in _archives().items():

        def put(box: Sandbox, content: Callable[[], bytes] = content) -> None:
            started_from(box)
            made, path = content(), _place(box, "RECORD")
            _place(box, "ARRAYS").write_bytes(made)
            record = json.loads(path.read_text())
            record.pop("checksum")
            path.write_bytes(sealed({**record, "arrays": digest(made)}))

        yield Entry(f"arrays-{name}-report", REPORT, put, (0,))
        yield Entry(f"arrays-{name}-run", RUN, put, (0,))


def started_from(box: Sandbox) -> None:
    """A finished run in the output folder."""
    if not box.out.exists():
        shutil.copytree(os.environ["FIXEDPOINT_HOSTILE_RUN"], box.out)


def _place(box: Sandbox, place: str) -> Path:
    started_from(box)
    if place == "RECORD":
        return sorted((box.out / "records").glob("*.json"))[0]
    if place == "ARRAYS":
        return box.out / "arrays" / f"{_place(box, 'RECORD').stem}.npz"
    return box.out / place


def _writer(content: bytes) -> Callable[[Path, Sandbox], Any]:
    return lambda path, box: path.write_bytes(content)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**35)


def _changes() -> dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]]:
    def of_record(**values: Any) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
        return lambda info, record: record.update(values)

    changes: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
        "rounds-nan": of_record(rounds="nan"),
        "rounds-negative": of_record(rounds=-5),
        "rounds-huge": of_record(rounds=10**300),
        "rounds-large": of_record(rounds=2**62),
        "evaluations-text": of_record(evaluations="many"),
        "seconds-nan": of_record(seconds="nan"),
        "seconds-infinite": of_record(seconds="inf"),
        "seconds-negative": of_record(seconds=-1.0),
        "metric-nan": of_record(metrics={"relative_error": "nan"}),
        "metric-column": of_record(metrics={"rounds": "nan", "seconds": "inf", "evaluations": -1.5}),
        "metric-solver": of_record(metrics={"solver": 1.0, "status": 2.0, "task": 3.0}),
        "metric-huge": of_record(metrics={"x": 1e308, "y": -1e308, "z": 5e-324}),
        "metric-names": of_record(metrics={text[:5000]: 1.0 for text in TEXTS.values()}),
        "metric-many": of_record(metrics={f"m{k}": 1.0 for k in range(3000)}),
        "metric-text": of_record(metrics={"x": "large"}),
        "rows-negative": of_record(rows={"converged": -1}),
        "rows-names": of_record(rows={text[:5000]: 1 for text in TEXTS.values()}),
        "message-texts": of_record(message="\n".join(TEXTS.values())),
        "message-rows": of_record(message="1 of 1 rows diverged: \x1b[31m\n9 of 0 rows x"),
        "reason": of_record(status="skipped", reason="\x1b[31m\n\n<script>"),
        "failed": of_record(
            status="failed", error={"type": "<b>", "message": "\x1b[2J" * 9, "traceback": "<script>\0"}
        ),
        "failed-without": of_record(status="failed", error=None),
        "config-list": of_record(config=[]),
        "config-termination": of_record(config={"termination": [1]}),
        "config-rtol": of_record(config={"termination": {"rtol": "small"}}),
        "config-rtol-nan": of_record(config={"termination": {"rtol": "nan"}}),
        "config-rtol-negative": of_record(config={"termination": {"rtol": -1e300}}),
        "config-rtol-huge": of_record(config={"termination": {"rtol": 1e308}}),
        "machine": of_record(machine={"\x1b[31m": "\x1b[31m", "cpus": 10**200}),
        "versions": of_record(versions={text[:2000]: text[:2000] for text in TEXTS.values()}),
        "made-by": of_record(
            made_by={"../x\x1b": {"version": "\x1b", "code": "", "units": {}, "brings": ["\x1b[31m"]}}
        ),
        "schema-text": of_record(schema_version="1"),
        "schema-later": of_record(schema_version=99),
        "extra": of_record(nonsense=1),
        "hash": of_record(hash="../../outside/precious"),
        "cells-none": lambda info, record: info.update(cells=[]),
        "cells-many": lambda info, record: info.update(cells=info["cells"] * 300),
        "cells-path": lambda info, record: info["cells"][0].update(hash="../../../outside/precious"),
        "cells-labels": lambda info, record: info["cells"][0].update(task="\x1b[31m\n|x", solver="=1+1\r\n"),
        "cells-seed": lambda info, record: info["cells"][0].update(seed=-(10**300)),
        "name-path": lambda info, record: info.update(name="../../outside/x"),
        "expect": lambda info, record: info.update(expect={"\x1b[31m": "nan", "relative_error": "-inf"}),
        "again": lambda info, record: info.update(reused=-5, again={"\x1b[31m": 10**200}),
        "started": lambda info, record: info.update(started="\x1b[31m", finished="\n" * 100),
    }
    for name, text in TEXTS.items():
        changes[f"texts-{name}"] = lambda info, record, text=text: (
            info.update(name=text),
            info["cells"][0].update(task=text, solver=text, gradient=text),
        )
    return changes


def _archives() -> dict[str, Callable[[], bytes]]:
    trace, pixels = np.ones((5, 1)), np.zeros((2, 8, 8))
    bounds = np.array([-1.0, 1.0])

    def of(**arrays: Any) -> Callable[[], bytes]:
        return lambda: _npz({name.replace("__", "."): value for name, value in arrays.items()})

    return {
        "objects": lambda: _npz({"trace.relative_error": np.array([{}, print], dtype=object)}, pickled=True),
        "texts": of(trace__relative_error=np.array(["a", "b"])),
        "complex": of(trace__relative_error=trace * 1j),
        "scalar": of(trace__relative_error=np.float64(1.0)),
        "none": of(trace__relative_error=np.ones((0, 1))),
        "nan": of(trace__relative_error=np.full((5, 1), np.nan)),
        "infinite": of(trace__relative_error=np.full((5, 1), np.inf)),
        "negative": of(trace__relative_error=-trace),
        "extremes": of(trace__relative_error=np.array([[1e308], [5e-324], [0.0], [-0.0], [1e-308]])),
        "rounds-short": of(trace__relative_error=trace, trace__relative_error__rounds=np.arange(3)),
        "rounds-huge": of(trace__relative_error=trace, trace__relative_error__rounds=np.arange(5) + 2**60),
        "rounds-many": of(trace__relative_error=trace, trace__relative_error__rounds=np.arange(5) + 2**30),
        "rounds-nan": of(trace__relative_error=trace, trace__relative_error__rounds=np.full(5, np.nan)),
        "rounds-negative": of(trace__relative_error=trace, trace__relative_error__rounds=-np.arange(5)),
        "steps-alone": of(trace__step_errors=np.ones((1, 3, 3))),
        "steps-nan": of(
            trace__step_errors=np.full((1, 3, 3), np.nan),
            trace__step_errors__rounds=np.arange(1, 4),
            trace__step_errors__steps=np.arange(1, 4),
        ),
        "steps-shape": of(
            trace__step_errors=np.ones((1, 3, 4)),
            trace__step_errors__rounds=np.arange(1, 4),
            trace__step_errors__steps=np.arange(1, 4),
        ),
        "steps-same": of(
            trace__step_errors=np.ones((1, 3, 3)),
            trace__step_errors__rounds=np.zeros(3),
            trace__step_errors__steps=np.zeros(3),
        ),
        "epochs-shape": of(epochs__loss=np.ones((3, 3))),
        "epochs-nan": of(epochs__loss=np.full(3, np.nan)),
        "epochs-name": lambda: _npz({"epochs.\x1b[31m$x": np.ones(3)}),
        "pixels-alone": of(images__pixels=pixels),
        "pixels-flat": of(images__pixels=np.zeros(3), images__range=bounds),
        "pixels-none": of(images__pixels=np.zeros((0, 8, 8)), images__range=bounds),
        "pixels-thin": of(images__pixels=np.zeros((1, 1, 5000)), images__range=bounds),
        "pixels-nan": of(images__pixels=np.full((2, 8, 8), np.nan), images__range=bounds),
        "pixels-1": of(images__pixels=pixels[..., None], images__range=bounds),
        "pixels-2": of(images__pixels=np.repeat(pixels[..., None], 2, 3), images__range=bounds),
        "pixels-4": of(images__pixels=np.repeat(pixels[..., None], 4, 3), images__range=bounds),
        "pixels-large": of(images__pixels=np.zeros((1, 3000, 3000), dtype=np.float32), images__range=bounds),
        "pixels-many": of(images__pixels=np.zeros((5000, 4, 4), dtype=np.float32), images__range=bounds),
        "range-same": of(images__pixels=pixels, images__range=np.zeros(2)),
        "range-nan": of(images__pixels=pixels, images__range=np.full(2, np.nan)),
        "range-shape": of(images__pixels=pixels, images__range=np.ones(3)),
        "range-huge": of(images__pixels=pixels, images__range=np.array([-1e308, 1e308])),
        "forming-alone": of(forming__pixels=pixels, forming__range=bounds),
        "forming-short": of(forming__pixels=pixels, forming__range=bounds, forming__rounds=np.arange(5)),
        "reference-size": of(
            images__pixels=pixels,
            images__range=bounds,
            reference__pixels=np.zeros((3, 16, 4, 3)),
            reference__range=bounds,
        ),
        "name-path": lambda: _npz({"../../../outside/x": trace}),
        "name-null": lambda: _npz({"trace.relative_error\x00": trace}),
        "names-many": lambda: _npz({f"epochs.{k}": np.ones(2) for k in range(3000)}),
        "bomb": lambda: _bomb(3 * 2**30),
        "bomb-in-pixels": lambda: _npz({"images.pixels": np.zeros((1, 9000, 9000)), "images.range": bounds}),
        "claims-more": lambda: _claiming((10**12,)),
        "claims-negative": lambda: _claiming((-5,)),
        "claims-overflow": lambda: _claiming((2**62, 2**62)),
        "header-code": lambda: _member(b"\x93NUMPY\x01\x00\x20\x00__import__('os').system('touch x')\n"),
        "header-long": lambda: _member(b"\x93NUMPY\x02\x00" + (2**24).to_bytes(4, "little") + b"(" * 2**24),
        "header-version": lambda: _member(b"\x93NUMPY\x09\x09\x20\x00" + b" " * 32),
        "no-header": lambda: _member(b"garbage"),
        "no-archive": lambda: b"PK\x03\x04garbage",
        "encrypted": lambda: _encrypted(),
        "empty-archive": lambda: _npz({}),
        "empty": lambda: b"",
    }


def _npz(arrays: dict[str, Any], pickled: bool = False) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=pickled)
    return stream.getvalue()


def _member(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("trace.relative_error.npy", content)
    return stream.getvalue()


def _claiming(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape!r}}}".ljust(117) + "\n"
    return _member(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + b"\0" * 64)


def _bomb(size: int) -> bytes:
    """An archive of some megabytes that unpacks to ``size`` bytes."""
    stream = io.BytesIO()
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},)}}".ljust(117) + "\n"
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("trace.relative_error.npy", "w", force_zip64=True) as member,
    ):
        member.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
        block = bytes(2**24)
        for _ in range(size // len(block)):
            member.write(block)
    return stream.getvalue()


def _encrypted() -> bytes:
    content = bytearray(_npz({"trace.relative_error": np.ones((5, 1))}))
    for sign, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(sign) + at] |= 1
    return bytes(content)
