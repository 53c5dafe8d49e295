"""Finds image files, and reads them one by one as tensors of the shape that a model expects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.config.bounded import check_regular
from fixedpoint.execution.plain import one_line
from fixedpoint_diffusion.command.image_format import ImageFormat, RefusedError

__all__ = ["Entry", "Read", "find", "read"]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
TENSORS = (".npy", ".safetensors")


@dataclass(frozen=True)
class Entry:
    """An image to invert.

    Attributes
    ----------
    path
        Its file.
    row
        Its index in a file of tensors; None for a picture.
    refused
        Why there is no image; empty if there is one.
    """

    path: Path
    row: int | None = None
    refused: str = ""

    @property
    def name(self) -> str:
        """The file, and the index of the image if the file holds tensors."""
        path = one_line(str(self.path))
        return path if self.row is None else f"{path}[{self.row}]"


@dataclass(frozen=True)
class Read:
    """An image that was read.

    Attributes
    ----------
    pixels
        Shape ``(C, H, W)``, that of the model's images, float32; pictures are in ``[-1, 1]``.
    notices
        Sentences on how the image was changed.
    """

    pixels: Float[Tensor, "C H W"]
    notices: tuple[str, ...] = ()


def find(paths: Sequence[Path]) -> tuple[list[Entry], list[str]]:
    """All images in files and folders, and sentences on files that were passed over.

    The order is that of ``paths``; files in a folder are sorted by name. Subfolders are not searched. A file that
    cannot be an image also gets an entry, with the reason.
    """
    entries: list[Entry] = []
    passed: list[str] = []
    for path in paths:
        if not path.is_dir():
            entries += _of_file(path)
            continue
        try:
            files = sorted(file for file in path.iterdir() if file.is_file())
        except OSError as error:
            entries.append(Entry(path, refused=f"cannot be read: {error.strerror}"))
            continue
        known = [file for file in files if file.suffix.lower() in PICTURES + TENSORS]
        for file in known:
            entries += _of_file(file)
        if not known:
            entries.append(Entry(path, refused=f"holds no images ({', '.join(PICTURES + TENSORS)})"))
        elif len(known) < len(files):
            count = len(files) - len(known)
            passed.append(f"{path}: {count} {'file' if count == 1 else 'files'} of other kinds passed over")
    return entries, passed


def _of_file(path: Path) -> Iterator[Entry]:
    """The entries of one file."""
    suffix = path.suffix.lower()
    try:
        check_regular(path)
    except FileNotFoundError:
        yield Entry(path, refused="no such file or folder")
        return
    except OSError as error:
        yield Entry(path, refused=f"cannot be read: {error.strerror}")
        return
    if suffix in PICTURES:
        yield Entry(path)
    elif suffix in TENSORS:
        # safetensors and, below, Pillow are imported only for files that require them.
        from fixedpoint_diffusion.command.tensors import count

        try:
            rows = count(path)
        except RefusedError as error:
            yield Entry(path, refused=str(error))
        else:
            yield from (Entry(path, row) for row in range(rows))
    else:
        kinds = ", ".join(PICTURES + TENSORS)
        yield Entry(path, refused=f"is of no kind that is read ({kinds})")


def read(entry: Entry, wanted: ImageFormat) -> Read:
    """The image of an entry.

    Raises
    ------
    RefusedError
        If the file is not a complete image of the required shape.
    """
    if entry.refused:
        raise RefusedError(entry.refused)
    if entry.row is not None:
        from fixedpoint_diffusion.command.tensors import read_row

        return Read(read_row(entry.path, entry.row, wanted))
    if not wanted.drawn:
        what = "images" if wanted.pictures else "latents"
        raise RefusedError(f"is a picture, the model's {what} have shape {wanted.shape}; give tensors (.npy)")
    from fixedpoint_diffusion.command.pictures import read_picture

    pixels, notices = read_picture(entry.path, wanted)
    return Read(torch.from_numpy(pixels / 127.5 - 1.0).permute(2, 0, 1).float().contiguous(), notices)
