"""Inverts and edits images in batches, and interpolates between latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.registry import CommandError
from fixedpoint_diffusion.command.files import Entry, read
from fixedpoint_diffusion.command.image_format import ImageFormat, RefusedError
from fixedpoint_diffusion.command.model import ChosenModel
from fixedpoint_diffusion.command.pipeline import ChosenPipeline
from fixedpoint_diffusion.inversion.invert import Inversion, InversionProgress, slerp

__all__ = ["Done", "Interpolation", "Job", "Row", "between", "inverted"]


# Images that are skipped in a row, at most, before what is done is passed on.
_SKIPPED = 256


@dataclass(frozen=True)
class Job:
    """An inversion to be done.

    Attributes
    ----------
    chosen
        The model.
    entries
        The images.
    labels
        The class of each image, or the number of its prompt; None if the classes are guessed or the model has none.
    image_format
        The images that the model requires.
    guidance
        Guidance scale of the inversion.
    edit_label, edit_guidance
        Class or prompt, and guidance scale of the edits; None stands for those of the inversion. If both are None,
        there are no edits.
    interpolate
        Number of images between two neighbours.
    tolerance
        Rms of the round trip up to which an image counts as inverted.
    batch
        Number of images per batch.
    device
        Device of the model.
    """

    chosen: ChosenModel | ChosenPipeline
    entries: tuple[Entry, ...]
    labels: tuple[int, ...] | None
    image_format: ImageFormat
    guidance: float
    edit_label: int | None
    edit_guidance: float | None
    interpolate: int
    tolerance: float
    batch: int
    device: str

    @property
    def edits(self) -> bool:
        """Whether images are edited."""
        return self.edit_label is not None or self.edit_guidance is not None


@dataclass(frozen=True)
class Row:
    """The result for one image; all numbers are on the host.

    Attributes
    ----------
    name
        The name of the image.
    status
        The status of the inversion, or ``"skipped"``.
    sentence
        A sentence on the status, with numbers.
    notices
        Sentences on how the image was changed when it was read.
    label, guessed
        Its class or the number of its prompt, and whether the classifier guessed it.
    round_trip
        Rms of the difference between reconstruction and image.
    misfit
        Rms of what the steps of the clean end leave over.
    worst_step, worst_residual
        The step with the largest residual, counted from 0 at the noise, and the rms of that residual.
    rounds
        Rounds of the batch that the image was in.
    evaluations
        Evaluations of this image.
    """

    name: str
    status: str
    sentence: str
    notices: tuple[str, ...] = ()
    label: int | None = None
    guessed: bool = False
    round_trip: float | None = None
    misfit: float | None = None
    worst_step: int | None = None
    worst_residual: float | None = None
    rounds: int | None = None
    evaluations: int | None = None

    @property
    def ok(self) -> bool:
        """Whether it was inverted within the tolerance."""
        return self.status == "inverted"


@dataclass(frozen=True)
class Done:
    """A batch that is done: its rows, and on the CPU the tensors of those not skipped, in the order of the rows."""

    rows: tuple[Row, ...]
    images: Float[Tensor, "B C H W"]
    latents: Float[Tensor, "B *latent"]
    reconstructions: Float[Tensor, "B C H W"]
    edits: Float[Tensor, "B C H W"] | None


@dataclass(frozen=True)
class Interpolation:
    """The images between two latents; ``first`` and ``second`` are their places among the latents."""

    first: int
    second: int
    labels: tuple[int | None, ...]
    images: Float[Tensor, "K C H W"]


def inverted(job: Job, told: Callable[[InversionProgress], None] | None = None) -> Iterator[Done]:
    """Read, invert and edit the images, one batch at a time.

    Raises
    ------
    CommandError
        If the model cannot be used, or if memory runs out.
    """
    rows: list[Row] = []
    pixels: list[Tensor] = []
    labels: list[int] = []
    for place, entry in enumerate(job.entries):
        try:
            found = read(entry, job.image_format)
        except RefusedError as error:
            rows.append(Row(entry.name, "skipped", str(error)))
        else:
            rows.append(Row(entry.name, "", "", found.notices))
            pixels.append(found.pixels)
            labels += [] if job.labels is None else [job.labels[place]]
        # Rows of images that were skipped are not held for long either.
        full = len(pixels) == job.batch or len(rows) == job.batch + _SKIPPED or place == len(job.entries) - 1
        if full and pixels:
            yield _batch(job, rows, torch.stack(pixels), labels, told)
        elif full:
            none = torch.empty(0, *job.image_format.shape, device="cpu")
            yield Done(tuple(rows), none, none, none, none if job.edits else None)
        if full:
            rows, pixels, labels = [], [], []


def _batch(
    job: Job,
    rows: Sequence[Row],
    images: Tensor,
    given: Sequence[int],
    told: Callable[[InversionProgress], None] | None,
) -> Done:
    """Invert and edit one batch; ``given`` are the classes of its images, empty if they are guessed or do not exist."""
    guess = not given and job.chosen.bundled
    labels = job.chosen.guessed(images) if guess else list(given) or None
    try:
        found = job.chosen.invert(images.to(job.device), labels, job.guidance, job.tolerance, told)
        edits = _edited(job, found.latents, labels) if job.edits else None
    except torch.cuda.OutOfMemoryError:
        said = f"{job.device} has not enough memory for {len(images)} images at once; take a smaller --batch"
        raise CommandError(said, status=1) from None
    return Done(
        tuple(_rows(rows, labels, guess, found.inversion)),
        images,
        found.latents.cpu(),
        found.reconstruction.cpu(),
        None if edits is None else edits.cpu(),
    )


def _rows(rows: Sequence[Row], labels: Sequence[int] | None, guess: bool, inversion: Inversion) -> Iterator[Row]:
    """The rows of a batch with the results filled in; rows with a status were skipped and stay unchanged."""
    place = 0
    for row in rows:
        if row.status:
            yield row
            continue
        residuals = inversion.residuals[place].nan_to_num(nan=torch.inf)  # a NaN counts as the worst step
        worst = int(residuals.argmax())
        yield Row(
            row.name,
            inversion.status[place].label,
            inversion.sentences[place],
            row.notices,
            None if labels is None else labels[place],
            guess,
            float(inversion.round_trip[place]),
            float(inversion.misfit[place]),
            worst,
            float(residuals[worst]),
            inversion.rounds,
            int(inversion.evaluations[place]),
        )
        place += 1


def _edited(job: Job, latents: Tensor, labels: Sequence[int] | None) -> Tensor:
    """The samples of the latents with the class and the guidance of the edit."""
    if job.edit_label is not None:
        labels = [job.edit_label] * len(latents)
    guidance = job.guidance if job.edit_guidance is None else job.edit_guidance
    return job.chosen.sample(latents, labels, guidance, job.device)


def between(job: Job, latents: Sequence[Tensor], labels: Sequence[int | None]) -> Iterator[Interpolation]:
    """Images between neighbouring latents, along the great circle; each has the class of the nearer latent."""
    count = job.interpolate
    for place in range(len(latents) - 1):
        one, other = latents[place], latents[place + 1]
        shares = [(k + 1) / (count + 1) for k in range(count)]
        mixed = [slerp(one.unsqueeze(0), other.unsqueeze(0), share) for share in shares]
        nearer = [labels[place] if share <= 0.5 else labels[place + 1] for share in shares]
        known = [label for label in nearer if label is not None]
        images = [
            job.chosen.sample(part, known[at : at + job.batch] or None, job.guidance, job.device).cpu()
            for at, part in _parts(torch.cat(mixed), job.batch)
        ]
        yield Interpolation(place, place + 1, tuple(nearer), torch.cat(images))


def _parts(latents: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """The latents in batches of at most ``size``, each with the place of its first."""
    for at in range(0, len(latents), size):
        yield at, latents[at : at + size]
