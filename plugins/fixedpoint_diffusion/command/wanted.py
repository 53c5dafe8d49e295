"""What the images of a model are, and the word for files that are no such images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["RefusedError", "Wanted"]


class RefusedError(ValueError):
    """A file is not what was wanted; the sentence says what came and what was wanted, without the file's name."""


@dataclass(frozen=True)
class Wanted:
    """What a model's images are, and how others may be made such.

    Attributes
    ----------
    shape
        ``(channels, height, width)``.
    resize
        Resize images of another size.
    pad
        Set smaller images in the middle of the background.
    background
        What is behind transparent parts and around padded images.
    pictures
        Whether they can be pictures at all; latents are none.
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
