"""The images that a model requires, and the error for files that do not hold such images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ImageFormat", "RefusedError"]


class RefusedError(ValueError):
    """Raised for a file that cannot be used; the message says why, as a sentence without its subject, the file."""


@dataclass(frozen=True)
class ImageFormat:
    """The images that a model requires, and how other images may be converted.

    Attributes
    ----------
    shape
        ``(channels, height, width)``.
    resize
        Whether images of another size are resized.
    pad
        Whether smaller images are padded with the background.
    background
        The colour behind transparent parts and around padded images.
    pictures
        Whether the model's images can be pictures; False for the latents of an autoencoder.
    """

    shape: tuple[int, ...]
    resize: bool = False
    pad: bool = False
    background: Literal["black", "white"] = "black"
    pictures: bool = True

    @property
    def drawn(self) -> bool:
        """Whether the model's images are pictures: grey or RGB."""
        return self.pictures and len(self.shape) == 3 and self.shape[0] in (1, 3)
