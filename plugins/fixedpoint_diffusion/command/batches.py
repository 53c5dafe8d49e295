"""The batches of an inversion as files: one each, with the latents and the rows of the report in its metadata.

A batch is complete once its file has its name. What a report lists is read back from these files, so that neither the
memory nor the time for a batch grows with the number of images.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from fixedpoint.config.writing import write_atomically
from fixedpoint.execution.plain import json_text

__all__ = ["FOLDER", "Batches"]

FOLDER = "latents"
"""The folder of the files, in the output folder."""

_ROWS = "rows"
_NAME = re.compile(r"\d{6,}\.safetensors")


class Batches(Sequence[Tensor]):
    """The batches that are done; as a sequence, the latents of all of them, of which one batch is held at a time.

    Parameters
    ----------
    folder
        The output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.root, self.folder = folder, folder / FOLDER
        self._ends: list[int] = []
        self._held: tuple[int, Tensor | None] = (-1, None)

    @property
    def names(self) -> list[str]:
        """The files, as paths from the output folder."""
        return [self.name(number) for number in range(len(self._ends))]

    def name(self, number: int) -> str:
        """Return the file of a batch, counted from 0, as a path from the output folder."""
        return f"{FOLDER}/{number + 1:06d}.safetensors"

    def remove_earlier(self) -> None:
        """Remove the files of an earlier inversion, which a shorter one would not replace."""
        if self.folder.is_dir() and not self.folder.is_symlink():
            for file in self.folder.iterdir():
                if _NAME.fullmatch(file.name):
                    file.unlink()

    def add(self, tensors: Mapping[str, Tensor], told: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a batch.

        Parameters
        ----------
        tensors
            ``latents`` of shape ``(B, ...)``, and others of the same images.
        told
            What the metadata says of all of them.
        rows
            The rows of the report, also those of images that were skipped.
        """
        metadata = {key: json_text(value) for key, value in {**told, _ROWS: rows}.items()}
        path = self.root / self.name(len(self._ends))
        write_atomically(path, save({key: value.contiguous() for key, value in tensors.items()}, metadata), self.root)
        self._ends.append(len(self) + len(tensors["latents"]))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of all batches, read one batch at a time."""
        for name in self.names:
            with safe_open(self.root / name, "pt") as file:
                yield from json.loads(file.metadata()[_ROWS])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, place: int) -> Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> list[Tensor]: ...
    def __getitem__(self, place: int | slice) -> Tensor | list[Tensor]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        number = bisect.bisect_right(self._ends, place)
        if self._held[0] != number:
            with safe_open(self.root / self.name(number), "pt") as file:
                self._held = (number, file.get_tensor("latents"))
        latents = self._held[1]
        assert latents is not None
        return latents[place - (self._ends[number - 1] if number else 0)]
