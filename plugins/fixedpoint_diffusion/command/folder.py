"""Writes the output folder: pictures and latents batch by batch, then contact sheets and the report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from fixedpoint.config.writing import write_atomically
from fixedpoint.execution.plain import json_text
from fixedpoint_diffusion.command.pictures import as_png, drawn, sheet
from fixedpoint_diffusion.command.pipeline import ChosenPipeline
from fixedpoint_diffusion.command.work import Done, Interpolation, Job, Row

__all__ = ["Results"]

# Pictures per row of a sheet, and per sheet.
_COLUMNS, _SHOWN = 10, 100
_LATENTS, _REPORT = "latents.safetensors", "report.json"


class Results:
    """The results of a job so far, and the files that they are written to.

    Every file is written atomically. Existing files of the same name are replaced, and no other files are removed.

    Raises
    ------
    OSError
        If a file or folder cannot be written.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.rows: list[Row] = []
        self.files: dict[str, list[str]] = {}
        self._latents: list[Tensor] = []
        self._drawn: dict[str, list[NDArray[np.uint8]]] = {"images": [], "reconstructions": [], "edits": []}
        self._tensors: dict[str, list[Tensor]] = {}
        self._between: list[tuple[Interpolation, list[NDArray[np.uint8]]]] = []
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def inverted(self) -> list[Row]:
        """The rows that were not skipped, in the order of the latents."""
        return [row for row in self.rows if row.status != "skipped"]

    @property
    def ok(self) -> bool:
        """Whether every requested image was inverted."""
        return len(self.rows) == len(self.job.entries) and all(row.ok for row in self.rows)

    @property
    def latents(self) -> list[Tensor]:
        """The latent of every row of :attr:`inverted`."""
        return self._latents

    def add(self, done: Done) -> None:
        """Add a batch, and write its pictures, all latents so far and the report."""
        at = len(self._latents)
        self.rows += done.rows
        self._latents += list(done.latents)
        names = [_stem(row.name) for row in self.inverted[at:]]
        made = {"images": done.images, "reconstructions": done.reconstructions}
        if done.edits is not None:
            made["edits"] = done.edits
        for kind, images in made.items():
            if not self.job.image_format.drawn:
                self._tensors.setdefault(kind, []).extend(images)
                continue
            for place, image in enumerate(images):
                picture = drawn(image)
                if len(self._drawn[kind]) < _SHOWN:
                    self._drawn[kind].append(picture)
                if kind != "images":
                    self._write(kind, f"{at + place + 1:04d}-{names[place]}.png", as_png(picture))
        # Written after every batch, so that an interruption at any time leaves complete files. The report says
        # "interrupted" until ``close`` replaces it.
        if self._latents:
            self._write("", _LATENTS, self._stored())
            self._write_report(interrupted=True)

    def add_between(self, between: Interpolation) -> None:
        """Add the images between two latents, and write their pictures."""
        if not self.job.image_format.drawn:
            self._tensors.setdefault("interpolations", []).extend(between.images)
            return
        pictures = [drawn(image) for image in between.images]
        if len(self._between) < _SHOWN:
            self._between.append((between, pictures))
        for place, picture in enumerate(pictures):
            name = f"{between.first + 1:04d}-{between.second + 1:04d}-{place + 1:02d}.png"
            self._write("interpolations", name, as_png(picture))

    def close(self, interrupted: bool = False) -> dict[str, Any]:
        """Write latents, sheets and the final report, and return the content of the report."""
        if self._latents and self._tensors:  # again, now with the interpolations
            self._write("", _LATENTS, self._stored())
        for kind, groups in self._sheets().items():
            self._write("", f"{kind}.png", as_png(sheet(groups)))
        return self._write_report(interrupted)

    def written(self) -> list[str]:
        """Sentences on the files written: the number in each subfolder, and each file of the folder itself."""
        below = {kind: len(files) for kind, files in self.files.items() if kind}
        pictures = [f"wrote {n} picture{'s' * (n > 1)} to {self.folder / kind}" for kind, n in below.items()]
        return [*pictures, *(f"wrote {file}" for file in self.files.get("", []))]

    def _write(self, kind: str, name: str, content: bytes) -> None:
        write_atomically(self.folder / kind / name, content)
        self._list(kind, name)

    def _write_report(self, interrupted: bool) -> dict[str, Any]:
        self._list("", _REPORT)  # before the report is made, which lists all files including itself
        report = self._report(interrupted)
        write_atomically(self.folder / _REPORT, (json_text(report, canonical=False) + "\n").encode())
        return report

    def _list(self, kind: str, name: str) -> None:
        files, file = self.files.setdefault(kind, []), str(self.folder / kind / name)
        if not kind and file in files:  # files of the folder itself are written several times
            files.remove(file)
        files.append(file)

    def _stored(self) -> bytes:
        """The content of the file of latents."""
        tensors = {"latents": torch.stack(self._latents)}
        labels = [row.label for row in self.inverted if row.label is not None]
        if labels and self.job.chosen.conditioned == "class":
            tensors["classes"] = torch.tensor(labels)
        tensors |= {kind: torch.stack(images) for kind, images in self._tensors.items() if kind != "images"}
        told = {**self._settings(), "names": [row.name for row in self.inverted]}
        if self.job.chosen.conditioned == "prompt":
            told["prompts"] = [self.job.chosen.called(row.label) for row in self.inverted]
        return save(tensors, {key: json_text(value) for key, value in told.items()})

    def _sheets(self) -> dict[str, list[Any]]:
        """The groups of rows of every contact sheet that has any, by name."""
        sheets: dict[str, list[Any]] = {}
        for kind, below in (("reconstructions", "images"), ("edits", "reconstructions")):
            pairs = zip(_by(self._drawn[below]), _by(self._drawn[kind]), strict=False)
            sheets[kind] = [[above, made] for above, made in pairs]
        ends = self._drawn["reconstructions"]
        shown = [(each, pictures) for each, pictures in self._between if each.second < len(ends)]
        sheets["interpolations"] = [[[ends[at.first], *made, ends[at.second]] for at, made in shown]] if shown else []
        return {kind: groups for kind, groups in sheets.items() if groups}

    def _settings(self) -> dict[str, Any]:
        """The settings that the report and the metadata of the latents have in common."""
        job = self.job
        return {
            "model": job.chosen.name,
            "sha256": job.chosen.sha256,
            "schedule": job.chosen.told,
            "num_inference_steps": job.chosen.steps,
            "timesteps": None if job.chosen.timesteps is None else list(job.chosen.timesteps),
            "guidance_scale": job.guidance,
            **({"negative_prompt": job.chosen.negative_prompt} if isinstance(job.chosen, ChosenPipeline) else {}),
        }

    def _report(self, interrupted: bool) -> dict[str, Any]:
        job = self.job
        edit: dict[str, Any] | None = None
        if job.edits:
            to: dict[str, Any] = {job.chosen.conditioned or "class": job.edit_label}
            if job.chosen.conditioned == "prompt":
                to = {"prompt": job.chosen.called(job.edit_label) or None}
            edit = {**to, "guidance_scale": job.edit_guidance}
        return {
            **self._settings(),
            "tolerance": job.tolerance,
            "edit": edit,
            "interpolate": job.interpolate,
            "ok": self.ok,
            "interrupted": interrupted,
            "notes": list(job.chosen.notes),
            "images": list(self._plain_rows()),
            "folder": str(self.folder),
            "files": [file for files in self.files.values() for file in files],
        }

    def _plain_rows(self) -> Any:
        """The rows of the report, as dictionaries."""
        place = -1
        for row in self.rows:
            skipped = row.status == "skipped"
            place += not skipped
            told: dict[str, Any] = asdict(row)
            label = told.pop("label")
            made: Mapping[str, str | None] = {
                kind: None if skipped or place >= len(self.files.get(kind, [])) else self.files[kind][place]
                for kind in ("reconstructions", "edits")
            }
            guessed, called = told.pop("guessed"), self.job.chosen.called(label) or None
            of = {"class": label, "class_name": called, "class_guessed": guessed}
            yield {
                "name": told.pop("name"),
                "latent": None if skipped else place,
                **({"prompt": called} if self.job.chosen.conditioned == "prompt" else of),
                **told,
                "reconstruction": made["reconstructions"],
                "edit": made["edits"],
            }


def _by(pictures: Sequence[NDArray[np.uint8]]) -> list[Sequence[NDArray[np.uint8]]]:
    """The pictures in rows of a sheet."""
    return [pictures[at : at + _COLUMNS] for at in range(0, len(pictures), _COLUMNS)]


def _stem(name: str) -> str:
    """The part of an image's name that is used in the names of the files made from it."""
    stem = re.sub(r"\.\w+(?=(\[\d+\])?$)", "", Path(name).name)
    return re.sub(r"\W+", "-", stem).strip("-")[:60] or "image"
