"""Writes the output folder: pictures and latents batch by batch, then contact sheets and the report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from fixedpoint.config.targets import check_folder, holds_text
from fixedpoint.config.writing import make_folder, remove_leftovers, write_atomically
from fixedpoint.execution.plain import one_line
from fixedpoint_diffusion.command.batches import FOLDER, Batches
from fixedpoint_diffusion.command.listing import listed
from fixedpoint_diffusion.command.pictures import as_png, drawn, sheet
from fixedpoint_diffusion.command.pipeline import ChosenPipeline
from fixedpoint_diffusion.command.work import Done, Interpolation, Job, Row

__all__ = ["Results"]

# Pictures per row of a sheet, and per sheet; rows of the table that is printed.
_COLUMNS, _SHOWN, _PRINTED = 10, 100, 500
_REPORT, _BETWEEN = "report.json", "interpolations"
# Latents were in one file in fixedpoint 0.1.
_EARLIER = "latents.safetensors"
_NAMES = re.compile(
    rf"{re.escape(_REPORT)}|{re.escape(_EARLIER)}|(reconstructions|edits|{_BETWEEN})(\.png|/.*)?|{FOLDER}(/.*)?"
)


class Results:
    """The results of a job so far, and the files that they are written to.

    Every file is written atomically, and none twice but for the report, which is an index: it is written before the
    first batch and at the end. What is held in memory does not grow with the number of images, apart from a few numbers
    for each. Files of an earlier inversion are replaced; other files of the same names are not.

    Raises
    ------
    WriteError
        If a file or folder cannot be written, or if an image, or a file of anybody else, would be replaced.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.shown: list[Row] = []
        self.labels: list[int | None] = []
        self.counts = {"all": 0, "good": 0, "skipped": 0, "guessed": 0}
        self.latents = Batches(folder)
        self._drawn: dict[str, list[NDArray[np.uint8]]] = {"images": [], "reconstructions": [], "edits": []}
        self._between: list[tuple[Interpolation, list[NDArray[np.uint8]]]] = []
        self._written = {"reconstructions": 0, "edits": 0}
        self._skipped: tuple[Row, ...] = ()
        self._pairs: list[str] = []
        self._top: list[str] = []
        inputs = dict.fromkeys(entry.path for entry in job.entries)
        check_folder(folder, _NAMES, inputs, _holds_inversion, "an inversion")
        make_folder(folder)

    @property
    def ok(self) -> bool:
        """Whether every requested image was inverted."""
        return self.counts["all"] == self.counts["good"] == len(self.job.entries)

    @property
    def inverted(self) -> int:
        """Number of images that were not skipped: that of the latents."""
        return self.counts["all"] - self.counts["skipped"]

    def add(self, done: Done) -> None:
        """Add a batch, and write its pictures, then its latents and rows."""
        rows_done = (*self._skipped, *done.rows)
        inverted = [row for row in done.rows if row.status != "skipped"]
        if not self.counts["all"]:
            self._skipped = () if inverted else rows_done
            if not inverted:  # nothing is written before there is a result
                return
            self._begin()
        at = len(self.latents)
        made = {"images": done.images, "reconstructions": done.reconstructions}
        if done.edits is not None:
            made["edits"] = done.edits
        pictures: dict[str, list[str]] = {}
        for kind, images in made.items() if self.job.image_format.drawn else ():
            for place, image in enumerate(images):
                picture = drawn(image)
                if len(self._drawn[kind]) < _SHOWN:
                    self._drawn[kind].append(picture)
                if kind != "images":
                    name = f"{kind}/{at + place + 1:04d}-{_stem(inverted[place].name)}.png"
                    self._write(name, as_png(picture))
                    pictures.setdefault(kind, []).append(str(self.folder / name))
        rows = list(self._plain(rows_done, at, pictures))
        self.latents.add(self._tensors(done, inverted), self._told(inverted), rows)
        for kind, names in pictures.items():
            self._written[kind] += len(names)
        self.counts["all"] += len(rows_done)
        self.counts["good"] += sum(row.ok for row in rows_done)
        self.counts["skipped"] += len(rows_done) - len(inverted)
        self.counts["guessed"] += sum(row.guessed for row in inverted)
        self.labels += [row.label for row in inverted]
        self.shown += rows_done[: _PRINTED - len(self.shown)]

    def add_between(self, between: Interpolation) -> None:
        """Add the images between two latents, and write their pictures or tensors."""
        stem = f"{_BETWEEN}/{between.first + 1:04d}-{between.second + 1:04d}"
        if not self.job.image_format.drawn:
            self._write(f"{stem}.safetensors", save({_BETWEEN: between.images.contiguous()}))
            self._pairs.append(f"{stem}.safetensors")
            return
        pictures = [drawn(image) for image in between.images]
        if len(self._between) < _SHOWN:
            self._between.append((between, pictures))
        for place, picture in enumerate(pictures):
            self._write(f"{stem}-{place + 1:02d}.png", as_png(picture))
            self._pairs.append(f"{stem}-{place + 1:02d}.png")

    def close(self, interrupted: bool = False) -> None:
        """Write the sheets and the final report."""
        for kind, groups in self._sheets().items():
            self._write(f"{kind}.png", as_png(sheet(groups)))
            self._top.append(f"{kind}.png")
        self._write_report(interrupted)

    def report(self) -> Iterator[str]:
        """The text of the report that was written, in pieces."""
        with (self.folder / _REPORT).open(encoding="utf-8") as file:
            yield from file

    def written(self) -> list[str]:
        """Sentences on the files written: the number in each subfolder, and each file of the folder itself."""
        count = len(self.latents.names)
        below = {**self._written, _BETWEEN: len(self._pairs) if self.job.image_format.drawn else 0}
        pictures = [
            f"wrote {n} picture{'s' * (n > 1)} to {one_line(str(self.folder / kind))}" for kind, n in below.items() if n
        ]
        latents = f"wrote {count} file{'s' * (count > 1)} of latents to {one_line(str(self.folder / FOLDER))}"
        top = [f"wrote {one_line(str(self.folder / name))}" for name in (*self._top, _REPORT)]
        return [*pictures, latents, *top]

    def _begin(self) -> None:
        """Remove the latents of an earlier inversion. A report without images says from now on whose folder it is."""
        for kind in ("", FOLDER, *self._written, _BETWEEN):
            remove_leftovers(self.folder / kind)
        self._write_report(interrupted=True)
        self.latents.remove_earlier()
        (self.folder / _EARLIER).unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        write_atomically(self.folder / name, content, within=self.folder)

    def _write_report(self, interrupted: bool) -> None:
        rows = (row for row in self.latents.rows())
        content = listed(self._report(interrupted), {"images": rows, "files": self._files()})
        write_atomically(self.folder / _REPORT, content, within=self.folder)

    def _files(self) -> Iterator[str]:
        """All files, the pictures of a batch in the order of its rows."""
        yield from (str(self.folder / name) for name in self.latents.names)
        for row in self.latents.rows():
            yield from (row[kind] for kind in ("reconstruction", "edit") if row[kind] is not None)
        yield from (str(self.folder / name) for name in (*self._pairs, *self._top, _REPORT))

    def _tensors(self, done: Done, inverted: Sequence[Row]) -> dict[str, Tensor]:
        tensors = {"latents": done.latents}
        labels = [row.label for row in inverted if row.label is not None]
        if labels and self.job.chosen.conditioned == "class":
            tensors["classes"] = torch.tensor(labels, device="cpu")
        if not self.job.image_format.drawn:
            tensors["reconstructions"] = done.reconstructions
            if done.edits is not None:
                tensors["edits"] = done.edits
        return tensors

    def _told(self, inverted: Sequence[Row]) -> dict[str, Any]:
        """What the metadata of a batch says of its latents."""
        told = {**self._settings(), "names": [one_line(row.name) for row in inverted]}
        if self.job.chosen.conditioned == "prompt":
            told["prompts"] = [self.job.chosen.called(row.label) for row in inverted]
        return told

    def _sheets(self) -> dict[str, list[Any]]:
        """The groups of rows of every contact sheet that has any, by name."""
        sheets: dict[str, list[Any]] = {}
        for kind, below in (("reconstructions", "images"), ("edits", "reconstructions")):
            pairs = zip(_by(self._drawn[below]), _by(self._drawn[kind]), strict=False)
            sheets[kind] = [[above, made] for above, made in pairs]
        ends = self._drawn["reconstructions"]
        shown = [(each, pictures) for each, pictures in self._between if each.second < len(ends)]
        sheets[_BETWEEN] = [[[ends[at.first], *made, ends[at.second]] for at, made in shown]] if shown else []
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
        """The report without images and files."""
        job = self.job
        edit: dict[str, Any] | None = None
        if job.edits:
            to: dict[str, Any] = {job.chosen.conditioned or "class": job.edit_label}
            if job.chosen.conditioned == "prompt":
                to = {"prompt": job.chosen.called(job.edit_label) or None}
            edit = {**to, "guidance_scale": job.edit_guidance}
        return {
            "command": "fixedpoint invert",
            **self._settings(),
            "tolerance": job.tolerance,
            "edit": edit,
            "interpolate": job.interpolate,
            "ok": self.ok,
            "interrupted": interrupted,
            "notes": list(job.chosen.notes),
            "folder": one_line(str(self.folder)),
        }

    def _plain(self, rows: Sequence[Row], at: int, pictures: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
        """The rows of a batch for the report, as dictionaries."""
        place = -1
        for row in rows:
            skipped = row.status == "skipped"
            place += not skipped
            told: dict[str, Any] = asdict(row)
            label = told.pop("label")
            made = {
                kind: None if skipped or kind not in pictures else one_line(pictures[kind][place])
                for kind in ("reconstructions", "edits")
            }
            guessed, called = told.pop("guessed"), self.job.chosen.called(label) or None
            of = {"class": label, "class_name": called, "class_guessed": guessed}
            yield {
                "name": one_line(told.pop("name")),
                "latent": None if skipped else at + place,
                "latents": None if skipped else str(self.folder / self.latents.name(len(self.latents.names))),
                **({"prompt": called} if self.job.chosen.conditioned == "prompt" else of),
                **told,
                "reconstruction": made["reconstructions"],
                "edit": made["edits"],
            }


def _holds_inversion(folder: Path) -> bool:
    return holds_text(folder / _REPORT, b'"num_inference_steps"')


def _by(pictures: Sequence[NDArray[np.uint8]]) -> list[Sequence[NDArray[np.uint8]]]:
    """The pictures in rows of a sheet."""
    return [pictures[at : at + _COLUMNS] for at in range(0, len(pictures), _COLUMNS)]


def _stem(name: str) -> str:
    """The part of an image's name that is used in the names of the files made from it."""
    stem = re.sub(r"\.\w+(?=(\[\d+\])?$)", "", Path(name).name)
    return re.sub(r"\W+", "-", stem).strip("-")[:60] or "image"
