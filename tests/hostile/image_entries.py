"""Images, files of tensors and output folders of ``fixedpoint invert``."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hostile.table import Entry, Sandbox
from hostile.texts import FILES, TEXTS
from PIL import Image

__all__ = ["files", "names", "outputs"]

INVERT = ("--model", "../model", "--steps", "2", "--tolerance", "9", "--clip", "ignore", "-o", "out", "-q")


def files() -> Iterator[Entry]:
    """Files that are no images of the model, or none at all, each with the ending of something that is read."""
    contents = {**{f"any-{name}": (".png", content) for name, content in FILES.items()}, **_pictures(), **_tensors()}
    for name, (suffix, content) in contents.items():

        def put(box: Sandbox, suffix: str = suffix, content: bytes = content) -> None:
            _model(box)
            (box.work / f"odd{suffix}").write_bytes(content)

        yield Entry(f"image-{name}", ("invert", f"odd{suffix}", *INVERT), put)
    special: dict[str, Callable[[Path, Sandbox], Any]] = {
        "pipe": lambda path, box: os.mkfifo(path),
        "zero": lambda path, box: path.symlink_to("/dev/zero"),
        "loop": lambda path, box: path.symlink_to(path),
        "dangling": lambda path, box: path.symlink_to("nowhere"),
        "folder": lambda path, box: path.mkdir(),
        "sparse": lambda path, box: _sparse(path),
    }
    for suffix in (".png", ".npy", ".safetensors", ".txt"):
        for name, make in special.items():

            def odd(box: Sandbox, suffix: str = suffix, make: Callable[[Path, Sandbox], Any] = make) -> None:
                _model(box)
                (box.work / "images").mkdir()
                make(box.work / "images" / f"odd{suffix}", box)

            yield Entry(f"image-{name}{suffix}", ("invert", f"images/odd{suffix}", *INVERT), odd)
            yield Entry(f"images-{name}{suffix}", ("invert", "images", *INVERT), odd)


def names() -> Iterator[Entry]:
    """A good image with a hard name, also one that is not UTF-8."""
    for name, text in {**TEXTS, "not-utf8": "a\udcff\udcfe"}.items():
        shown = text.replace("/", "_").replace("\0", "_")[:60] or "x"

        def put(box: Sandbox, shown: str = shown) -> None:
            _model(box)
            (box.work / "images").mkdir()
            (box.work / "images" / f"{shown}.png").write_bytes(_png(Image.new("L", (8, 8))))

        yield Entry(f"image-name-{name}", ("invert", "images", *INVERT, "--json"), put, (0,), says='"ok": true')


def outputs() -> Iterator[Entry]:
    """Output folders in which an image or a file of somebody else would be replaced."""
    for name in ("reconstructions.png", "edits.png", "interpolations.png"):

        def image(box: Sandbox, name: str = name) -> None:
            _model(box)
            (box.work / name).write_bytes(_png(Image.new("L", (8, 8))))

        here = tuple("." if part == "out" else part for part in INVERT)
        yield Entry(f"invert-here-{name}", ("invert", ".", *here), image, (1,), name)
        yield Entry(f"invert-file-{name}", ("invert", name, *here), image, (1,), name)
    for name in ("report.json", "latents.safetensors", "latents", "reconstructions"):

        def foreign(box: Sandbox, name: str = name) -> None:
            _model(box)
            (box.work / "a.png").write_bytes(_png(Image.new("L", (8, 8))))
            path = box.outside / name
            path.write_text('{"mine": true}') if "." in name else path.mkdir()

        there = tuple("../outside" if part == "out" else part for part in INVERT)
        yield Entry(f"invert-foreign-{name}", ("invert", "a.png", *there), foreign, (1,), name)
    for name in ("report.json", "latents", "latents/000001.safetensors", "reconstructions", "reconstructions.png"):
        for kind in ("link", "pipe", "folder"):

            def odd(box: Sandbox, name: str = name, kind: str = kind) -> None:
                _model(box)
                (box.work / "a.png").write_bytes(_png(Image.new("L", (8, 8))))
                path = box.out / name
                path.parent.mkdir(parents=True)
                if name != "report.json":  # an earlier inversion of ours
                    (box.out / "report.json").write_text('{"num_inference_steps": 2}')
                if kind == "link":
                    path.symlink_to(box.outside / ("things" if "." not in name else "precious.txt"))
                elif kind == "pipe":
                    os.mkfifo(path)
                else:
                    path.mkdir()

            yield Entry(f"invert-place-{name}-{kind}", ("invert", "a.png", *INVERT), odd, (0, 1))


def _model(box: Sandbox) -> None:
    shutil.copytree(os.environ["FIXEDPOINT_HOSTILE_MODEL"], box.root / "model")


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _raw_png(width: int, height: int, content: bytes, extra: bytes = b"") -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + _chunk(b"IDAT", zlib.compress(content)) + _chunk(b"IEND", b"")


def _pictures() -> dict[str, tuple[str, bytes]]:
    good = _png(Image.new("L", (8, 8)))
    bitmap = io.BytesIO()
    Image.new("L", (8, 8)).save(bitmap, "BMP")
    modes = ("1", "LA", "P", "RGB", "RGBA", "I;16")
    return {
        "cut": (".png", good[:40]),
        "cut-header": (".png", good[:10]),
        "flipped": (".png", good[:45] + bytes([good[45] ^ 255]) + good[46:]),
        "trailing": (".png", good + b"<?php ?>" * 1000),
        "no-pixels": (".png", _raw_png(0, 0, b"")),
        "too-wide": (".png", _raw_png(2**31 - 1, 1, b"")),
        "bomb": (".png", _raw_png(60_000, 60_000, bytes(10**7))),
        "bomb-warned": (".png", _raw_png(11_000, 11_000, bytes(10**7))),
        "short": (".png", _raw_png(8, 8, b"\0" * 9)),
        "text-bomb": (".png", _raw_png(8, 8, bytes(72), _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))))),
        "profile": (".png", _raw_png(8, 8, bytes(72), _chunk(b"iCCP", b"a\0\0garbage"))),
        "png-as-jpeg": (".jpg", good),
        "jpeg-marker": (".jpg", b"\xff\xd8\xff" + b"\xff\xe0\xff\xff" * 100),
        "gif-header": (".gif", b"GIF89a" + b"\xff" * 20),
        "webp-header": (".webp", b"RIFF\xff\xff\xff\xffWEBPVP8 "),
        "bmp-negative": (".bmp", bitmap.getvalue()[:22] + struct.pack("<i", -(2**31)) + bitmap.getvalue()[26:]),
        "postscript": (".png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(%pipe%touch executed) (w) file\n"),
        "svg": (".png", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://localhost/x"/></svg>'),
        "no-ending": ("", good),
        "other-ending": (".exe", good),
        **{f"mode-{mode}": (".png", _png(Image.new(mode, (8, 8)))) for mode in modes},
        **{f"size-{w}x{h}": (".png", _png(Image.new("L", (w, h)))) for w, h in ((1, 1), (8, 9), (5000, 1), (1, 5000))},
    }


def _tensors() -> dict[str, tuple[str, bytes]]:
    def npy(array: Any, pickled: bool = False) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=pickled)
        return stream.getvalue()

    def claiming(header: str) -> bytes:
        text = header.ljust(117) + "\n"
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64)

    def safe(header: Any, data: bytes = b"") -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    f8 = "{'descr': '<f8', 'fortran_order': False, 'shape': "
    one = {"dtype": "F32", "shape": [1, 8, 8], "data_offsets": [0, 256]}
    arrays = {
        "objects": npy(np.array([[[{}]]], dtype=object), pickled=True),
        "scalar": npy(np.float32(1)),
        "none": npy(np.zeros((0, 1, 8, 8), dtype=np.float32)),
        "complex": npy(np.zeros((1, 1, 8, 8), dtype=np.complex64)),
        "integers": npy(np.zeros((1, 1, 8, 8), dtype=np.int64)),
        "texts": npy(np.array([[["a"]]])),
        "structured": npy(np.zeros((1, 8, 8), dtype=[("a", "f4")])),
        "nan": npy(np.full((1, 1, 8, 8), np.nan, dtype=np.float32)),
        "infinite": npy(np.full((1, 1, 8, 8), np.inf, dtype=np.float32)),
        "large": npy(np.full((1, 1, 8, 8), 1e30, dtype=np.float32)),
        "half": npy(np.zeros((1, 1, 8, 8), dtype=np.float16)),
        "big-endian": npy(np.zeros((1, 1, 8, 8), dtype=">f4")),
        "columns": npy(np.asfortranarray(np.zeros((1, 1, 8, 8), dtype=np.float32))),
        "five": npy(np.zeros((1, 1, 1, 8, 8), dtype=np.float32)),
        "other-shape": npy(np.zeros((1, 3, 9, 8), dtype=np.float32)),
        "claims-more": claiming(f"{f8}(10000000000, 1, 8, 8)}}"),
        "claims-negative": claiming(f"{f8}(-1, 1, 8, 8)}}"),
        "claims-code": claiming("__import__('os').system('touch executed')"),
        "claims-deep": claiming("(" * 110),
        "no-header": b"\x93NUMPY",
        "cut": npy(np.zeros((1, 1, 8, 8), dtype=np.float32))[:200],
    }
    headers = {
        "huge-header": (2**63 - 1).to_bytes(8, "little"),
        "no-header": b"\0" * 8,
        "list": safe([]),
        "deep": safe(b"[" * 50_000),
        "none": safe({}),
        "two": safe({"a": one, "b": {**one, "data_offsets": [256, 512]}}, bytes(512)),
        "overlap": safe({"a": one, "b": one}, bytes(256)),
        "outside": safe({"images": {**one, "data_offsets": [0, 2**40]}}, bytes(256)),
        "negative": safe({"images": {**one, "shape": [-1, 8, 8]}}, bytes(256)),
        "overflow": safe({"images": {**one, "shape": [2**62, 2**62, 4]}}, bytes(256)),
        "dtype": safe({"images": {**one, "dtype": "F99"}}, bytes(256)),
        "name": safe({"\x1b[31m": one}, bytes(256)),
        "good": safe({"images": one}, bytes(256)),
    }
    return {
        **{f"npy-{name}": (".npy", content) for name, content in {**arrays, **FILES}.items()},
        **{f"safetensors-{name}": (".safetensors", content) for name, content in {**headers, **FILES}.items()},
    }


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**35)
