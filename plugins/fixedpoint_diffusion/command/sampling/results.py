"""Writes the output folder of ``fixedpoint sample``: pictures batch by batch, a contact sheet and the report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fixedpoint.config.bounded import check_regular, read_bytes
from fixedpoint.config.targets import check_folder, holds_text
from fixedpoint.config.writing import make_folder, write_atomically
from fixedpoint.execution.plain import json_text
from fixedpoint_diffusion.command.pictures import as_png, sheet
from fixedpoint_diffusion.command.sampling.request import Entry, SampleJob
from fixedpoint_diffusion.command.sampling.work import Batch, Row

__all__ = ["SampleResults"]

_IMAGES, _SHEET, _REPORT = "images", "samples.png", "report.json"
_NAMES = re.compile(r"report\.json|samples\.png|images(/.*)?")
# Bytes of a report that is taken over.
_MOST_JSON = 2**28
# Pictures of a sheet: in a row where prompts have one image each, on the whole, and the longer side in pixels.
_COLUMNS, _SHOWN, _LARGEST = 10, 100, 256


class SampleResults:
    """The results of a job so far, and the files that they are written to.

    Every file is written atomically. Existing files of the same name are replaced, and no other files are removed.

    Parameters
    ----------
    job
        The job.
    folder
        The output folder. Pictures that an earlier report there lists with the same key are taken over.
    fresh
        Whether none is taken over.

    Raises
    ------
    OSError
        If a file or folder cannot be written.
    """

    def __init__(self, job: SampleJob, folder: Path, fresh: bool) -> None:
        self.job, self.folder = job, folder
        self.rows: dict[int, dict[str, Any]] = {}
        self.batches: list[dict[str, Any]] = []
        check_folder(folder, _NAMES, (), lambda place: holds_text(place / _REPORT, b'"num_inference_steps"'), "samples")
        make_folder(folder)
        if not fresh:
            self._take_over()
        self.reused = len(self.rows)

    @property
    def missing(self) -> list[Entry]:
        """The images that are not there yet."""
        return [entry for entry in self.job.entries if entry.number not in self.rows]

    @property
    def ok(self) -> bool:
        """Whether every image was sampled within the tolerance."""
        return not self.missing and all(row["status"] == "converged" for row in self.rows.values())

    def add(self, batch: Batch) -> None:
        """Add a batch, and write its pictures and the report."""
        times = {"seconds": batch.seconds, "serial_seconds": batch.serial_seconds}
        told = {"images": len(batch.rows), "steps": batch.steps, "rounds": batch.rows[0].rounds, **times}
        self.batches.append({**told, "plan": batch.plan})
        for row, picture in zip(batch.rows, batch.pictures, strict=True):
            name = self._name(row.entry)
            self._write(name, as_png(_levels(picture)))
            self.rows[row.entry.number] = _plain(row, batch.steps, name)
        # The report says "interrupted" until ``close`` replaces it.
        self._write_report(interrupted=True)

    def close(self, interrupted: bool = False) -> dict[str, Any]:
        """Write the contact sheet and the final report, and return the content of the report."""
        if self.rows:
            self._write(_SHEET, as_png(self._sheet()))
        return self._write_report(interrupted)

    def written(self) -> list[str]:
        """Sentences on the files."""
        count = len(self.rows)
        pictures = f"{count} picture{'s' * (count != 1)}"
        return [
            f"wrote {pictures} to {self.folder / _IMAGES}",
            *(f"wrote {self.folder / n}" for n in (_SHEET, _REPORT)),
        ]

    def _take_over(self) -> None:
        try:
            earlier = json.loads(read_bytes(self.folder / _REPORT, _MOST_JSON))
            known = {row["key"]: row for row in earlier["images"] if isinstance(row["file"], str)}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return  # no report, or one that is damaged: every image is sampled
        for entry in self.job.entries:
            row, name = known.get(entry.key), self._name(entry)
            # An image may have moved to another number; its picture is then sampled again.
            if row is not None and row["file"] == name and row["status"] == "converged" and self._is_whole(name):
                self.rows[entry.number] = {**row, "number": entry.number}

    def _is_whole(self, name: str) -> bool:
        try:
            check_regular(self.folder / name)
            with Image.open(self.folder / name, formats=("PNG",)) as picture:
                picture.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return False
        return True

    def _name(self, entry: Entry) -> str:
        stem = re.sub(r"\W+", "-", entry.what).strip("-")[:40].rstrip("-")
        return f"{_IMAGES}/{'-'.join(part for part in (stem, f'seed-{entry.seed}') if part)}{self._suffix(entry)}.png"

    def _suffix(self, entry: Entry) -> str:
        """A number, where other prompts have the same beginning."""
        stem = re.sub(r"\W+", "-", entry.what).strip("-")[:40].rstrip("-").lower()
        alike = {
            other.condition
            for other in self.job.entries
            if re.sub(r"\W+", "-", other.what).strip("-")[:40].rstrip("-").lower() == stem
        }
        return f"-{1 + sorted(alike).index(entry.condition)}" if len(alike) > 1 else ""

    def _sheet(self) -> NDArray[np.uint8]:
        """The pictures, those of a prompt in a row, or ten in a row where every prompt has one."""
        shown = [self.rows[number] for number in sorted(self.rows)][:_SHOWN]
        entries = {entry.number: entry for entry in self.job.entries}
        single = len(self.job.entries) == self.job.conditions
        grouped: dict[int, list[NDArray[np.uint8]]] = {}
        for place, row in enumerate(shown):
            line = place // _COLUMNS if single else entries[row["number"]].condition
            grouped.setdefault(line, []).append(self._shown(row["file"]))
        return sheet([list(grouped.values())])

    def _shown(self, name: str) -> NDArray[np.uint8]:
        with Image.open(self.folder / name) as picture:
            picture.thumbnail((_LARGEST, _LARGEST))
            return np.asarray(picture)

    def _write_report(self, interrupted: bool) -> dict[str, Any]:
        report = {
            **self.job.settings,
            "ok": self.ok,
            "interrupted": interrupted,
            "reused": self.reused,
            "images": [self.rows[number] for number in sorted(self.rows)],
            "batches": self.batches,
            "folder": str(self.folder),
        }
        self._write(_REPORT, (json_text(report, canonical=False) + "\n").encode())
        return report

    def _write(self, name: str, content: bytes) -> None:
        write_atomically(self.folder / name, content, within=self.folder)


def _plain(row: Row, steps: int, name: str) -> dict[str, Any]:
    entry = row.entry
    told: Mapping[str, Any] = {
        "number": entry.number,
        "prompt": entry.what,
        "seed": entry.seed,
        "status": row.status,
        "sentence": row.sentence,
        "rounds": row.rounds,
        "steps": steps,
        "evaluations": row.evaluations,
        "relative_error": row.error,
        "difference": row.difference,
        "levels": row.levels,
        "file": name,
        "key": entry.key,
    }
    return dict(told)


def _levels(picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A picture in ``[0, 1]`` in 8 bits, as diffusers rounds it; NaN becomes black."""
    levels = (255 * np.nan_to_num(picture.astype(np.float64), nan=0.0)).clip(0, 255).round().astype(np.uint8)
    return levels[..., 0] if levels.shape[-1] == 1 else levels
