"""Reads pictures of any mode, and writes PNG files of single pictures and of contact sheets."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fixedpoint_diffusion.command.image_format import ImageFormat, RefusedError

__all__ = ["as_png", "drawn", "read_picture", "sheet"]

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_LEVELS = {"black": 0.0, "white": 255.0}
# Sizes in pixels: small pictures are enlarged to about _TILE; _GAP lies between pictures, _APART between groups.
_TILE, _GAP, _APART = 64, 2, 12


def read_picture(path: Path, wanted: ImageFormat) -> tuple[Float[NDArray[np.float64], "H W C"], tuple[str, ...]]:
    """Read a picture with the required size and channels.

    Returns
    -------
    values
        Shape ``(H, W, C)``, float64, from 0 to 255.
    notices
        Sentences on how the picture was changed.

    Raises
    ------
    RefusedError
        If the file is damaged or not a picture, or if it has another size and may not be resized or padded.
    """
    picture, frames = _opened(path)
    notices = [f"the first of its {frames} frames is taken"] if frames > 1 else []
    if picture.mode.startswith("I"):
        values, grey = _sixteen_bits(picture), True
    else:
        if picture.has_transparency_data:
            picture, transparent = _laid(picture, wanted.background)
            notices += [f"its transparent parts are laid over {wanted.background} (--background)"] * transparent
        elif picture.mode not in ("1", "L", "P", "RGB"):
            notices.append(f"{picture.mode} is taken as RGB")
        grey = picture.mode in ("1", "L")
        colours = np.asarray(picture.convert("RGB"))
        alike = grey or bool((colours == colours[..., :1]).all())
        if wanted.shape[0] == 1 and not alike:
            notices.append("colours are taken as grey")
            colours = np.asarray(picture.convert("RGB").convert("L"))[..., None]
        values = colours[..., : wanted.shape[0]].astype(np.float64)
    if grey and wanted.shape[0] == 3:
        notices.append("grey is taken as RGB")
        values = np.repeat(values[..., :1], 3, axis=2)
    values, done = _sized(values, wanted)
    return values, (*notices, *done)


def _opened(path: Path) -> tuple[Image.Image, int]:
    """The first frame, rotated as its EXIF data says, and the number of frames."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Pillow only warns of pictures up to twice its limit; they are refused as well.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as opened:
                opened.load()
                return ImageOps.exif_transpose(opened), getattr(opened, "n_frames", 1)
    except UnidentifiedImageError:
        raise RefusedError("is damaged, or no picture of a kind that is read") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise RefusedError("has too many pixels to be read safely") from None
    except Exception as error:  # decoders raise errors of any type for damaged files
        said = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise RefusedError(f"cannot be read: {said}") from None


def _sixteen_bits(picture: Image.Image) -> NDArray[np.float64]:
    """The grey levels of a picture with 16 bits, scaled to 0 to 255: 65535 / 257 = 255."""
    values = np.asarray(picture, dtype=np.float64)[..., None]
    if values.min() < 0 or values.max() > 65535:
        raise RefusedError("has grey levels of more than 16 bits")
    return values / 257.0


def _laid(picture: Image.Image, background: str) -> tuple[Image.Image, bool]:
    """The picture over the background, and whether any of the background is visible."""
    above = picture.convert("RGBA")
    if above.getchannel("A").getextrema() == (255, 255):
        return above.convert("RGB"), False
    behind = Image.new("RGBA", above.size, background)
    behind.alpha_composite(above)
    return behind.convert("RGB"), True


def _sized(values: NDArray[np.float64], wanted: ImageFormat) -> tuple[NDArray[np.float64], list[str]]:
    """The values padded or resized to the required size where that is allowed, and sentences on what was done."""
    height, width = wanted.shape[1:]
    came = f"{values.shape[1]} x {values.shape[0]}"
    if values.shape[:2] == (height, width):
        return values, []
    smaller = values.shape[0] <= height and values.shape[1] <= width
    if wanted.pad and smaller:
        down, along = height - values.shape[0], width - values.shape[1]
        around = ((down // 2, down - down // 2), (along // 2, along - along // 2), (0, 0))
        level = _LEVELS[wanted.background]
        return np.pad(values, around, constant_values=level), [f"{came} pixels, padded to {width} x {height}"]
    if wanted.resize:
        channels = [Image.fromarray(values[..., i].astype(np.float32)) for i in range(values.shape[2])]
        resized = [channel.resize((width, height), Image.Resampling.LANCZOS) for channel in channels]
        stretched = ", stretched" * (values.shape[0] * width != values.shape[1] * height)
        done = np.stack([np.asarray(each, dtype=np.float64) for each in resized], axis=-1).clip(0.0, 255.0)
        return done, [f"{came} pixels, resized to {width} x {height}{stretched}"]
    offered = "--resize resizes it" + ", --pad sets it on the background" * smaller
    raise RefusedError(f"has {came} pixels, the model's images {width} x {height}; {offered}")


def drawn(image: Float[Tensor, "C H W"]) -> UInt8[NDArray[np.uint8], "H W *C"]:
    """An image with values in ``[-1, 1]`` as 8-bit grey levels or colours; NaN becomes black."""
    levels = ((image.detach().cpu().double().nan_to_num(nan=-1.0) + 1.0) * 127.5).clamp(0.0, 255.0).round()
    pixels = levels.numpy().astype(np.uint8)
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)


def as_png(pixels: UInt8[NDArray[np.uint8], "H W *C"]) -> bytes:
    """The content of a PNG file of a picture."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def sheet(groups: Sequence[Sequence[Sequence[NDArray[np.uint8]]]]) -> NDArray[np.uint8]:
    """A contact sheet: groups of rows of pictures of the same size, one below another, on white."""
    first = groups[0][0][0]
    scale = max(1, _TILE // max(first.shape[:2]))
    height, width = first.shape[0] * scale + _GAP, first.shape[1] * scale + _GAP
    columns = max(len(row) for group in groups for row in group)
    rows = sum(len(group) for group in groups)
    size = (rows * height + (len(groups) - 1) * _APART + _GAP, columns * width + _GAP, *first.shape[2:])
    canvas = np.full(size, 255, dtype=np.uint8)
    top = _GAP
    for group in groups:
        for row in group:
            for place, picture in enumerate(row):
                large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
                left = _GAP + place * width
                canvas[top : top + large.shape[0], left : left + large.shape[1]] = large
            top += height
        top += _APART
    return canvas
