"""Stores the records of a run in its folder, and finds the cells that need not be computed again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fixedpoint.config.files import DamagedError
from fixedpoint.config.folder import CellRow, Folder, RunInfo
from fixedpoint.config.makers import changes
from fixedpoint.config.record import Record, arrays_bytes, read_arrays, read_record, write_record
from fixedpoint.config.targets import same_content
from fixedpoint.config.writing import make_folder, remove_leftovers
from fixedpoint.execution.cell import Cell, Finished
from fixedpoint.execution.plain import digest

__all__ = ["Done", "Store"]

_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Done:
    """The cells of a run that are done.

    Attributes
    ----------
    records
        The records that can be reused, by hash.
    notices
        A sentence for every damaged record.
    again
        Number of cells whose records cannot be reused, by reason.
    """

    records: dict[str, Record]
    notices: list[str]
    again: dict[str, int]


class Store:
    """The records of one run folder.

    Parameters
    ----------
    path
        The folder, created if it is missing.
    fresh
        Whether to delete the existing records.
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.folder = Folder(path)
        if fresh:
            for place, kind in ((path / "records", "*.json"), (path / "arrays", "*.npz")):
                for file in place.glob(kind) if not place.is_symlink() else ():
                    if _HASH.fullmatch(file.stem):  # the user may have given any folder: delete only files of a run
                        file.unlink(missing_ok=True)
        make_folder(path)

    def begin(self, config: str, info: RunInfo) -> None:
        """Write ``config.yaml`` and ``run.json``, and delete the temporary files of a run that was killed.

        Parameters
        ----------
        config
            Content of ``config.yaml``.
        info
            Content of ``run.json``.
        """
        path = self.folder.path
        for place in (path, path / "records", path / "arrays"):
            remove_leftovers(place)
        self.folder.write_info(info)  # first: it tells the folder of a run from any other
        if not same_content(self.folder.config, config.encode()):  # it may be the run file
            self.folder.write(self.folder.config, config.encode())

    def keep(self, finished: Finished) -> Record:
        """Write the record of a finished cell and return it.

        The arrays are written first, so that a record that exists always has its arrays.
        """
        record: Record = finished.record
        if finished.arrays:
            content = arrays_bytes(finished.arrays)
            self.folder.write(self.folder.arrays(record.hash), content)
            record = record.model_copy(update={"arrays": digest(content)})
        write_record(self.folder, record)
        return record

    def done(self, cells: Iterable[Cell]) -> Done:
        """Return the records of cells that can be reused.

        Records of failed and skipped cells are not reused, nor are records that other versions or other code made.
        """
        records: dict[str, Record] = {}
        notices: list[str] = []
        again: Counter[str] = Counter()
        for cell in cells:
            path = self.folder.record(cell.hash)
            arrays = self.folder.arrays(cell.hash)
            try:
                record = read_record(path, cell.hash)
            except FileNotFoundError:
                continue
            except DamagedError as error:
                notices.append(f"{path} {error}; {CellRow.of(cell).label} is computed again")
                again["damaged records"] += 1
                continue
            try:
                read_arrays(arrays, record)
            except DamagedError as error:
                notices.append(f"{arrays} {error}; {CellRow.of(cell).label} is computed again")
                again["damaged records"] += 1
                continue
            changed = "; ".join(changes(record.made_by, cell.made_by))
            if record.status == "ok" and not changed:
                records[cell.hash] = record
            elif record.status != "skipped":
                again[changed or "failed before"] += 1
        return Done(records, notices, dict(again))
