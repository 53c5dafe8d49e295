"""Store: keeps the records of a run in its folder, and knows which cells are done."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fixedpoint.config.files import TEMPORARY, DamagedError, digest, write_atomically
from fixedpoint.config.folder import Folder, RunInfo
from fixedpoint.config.record import Record, arrays_bytes, read_arrays, read_record, write_record
from fixedpoint.runs.cell import Cell, Finished

__all__ = ["Store"]

_HASH = re.compile("[0-9a-f]{64}")


class Store:
    """The records of one run folder.

    Parameters
    ----------
    path
        The folder; made when it is not there.
    fresh
        Forget the records that are there.
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.folder = Folder(path)
        if fresh:
            for file in (*path.glob("records/*.json"), *path.glob("arrays/*.npz")):
                if _HASH.fullmatch(file.stem):  # nothing of the user's, whatever folder was given
                    file.unlink(missing_ok=True)
        path.mkdir(parents=True, exist_ok=True)

    def begin(self, config: str, info: RunInfo) -> None:
        """Write what is known of the run before its first cell, and clear away what a killed one left half written."""
        path = self.folder.path
        for place in (path, path / "records", path / "arrays"):
            for leftover in place.glob(TEMPORARY):
                leftover.unlink(missing_ok=True)
        write_atomically(self.folder.config, config.encode())
        self.folder.write_info(info)

    def keep(self, finished: Finished) -> Record:
        """Write a record, its arrays first: a record that is there is complete."""
        record = finished.record
        if finished.arrays:
            content = arrays_bytes(finished.arrays)
            write_atomically(self.folder.arrays(record.hash), content)
            record = record.model_copy(update={"arrays": digest(content)})
        write_record(self.folder.record(record.hash), record)
        return record

    def done(self, cells: Iterable[Cell]) -> tuple[dict[str, Record], list[str]]:
        """The records that can be used again, by hash, and a sentence for every one that is damaged.

        A failed cell is not done: it is tried again.
        """
        records: dict[str, Record] = {}
        notices: list[str] = []
        for cell in cells:
            path = self.folder.record(cell.hash)
            arrays = self.folder.arrays(cell.hash)
            try:
                record = read_record(path, cell.hash)
            except FileNotFoundError:
                continue
            except DamagedError as error:
                notices.append(f"{path} {error}; {cell.row.label} is computed again")
                continue
            try:
                read_arrays(arrays, record)
            except DamagedError as error:
                notices.append(f"{arrays} {error}; {cell.row.label} is computed again")
                continue
            if record.status == "ok":
                records[cell.hash] = record
        return records, notices
