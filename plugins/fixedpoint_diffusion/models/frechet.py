"""The Frechet distance of samples to a folder of images, in the features of a network that the user names.

It has the form of the FID (Heusel et al. 2017, eq. 6) in the features of another network, so its values can be compared
only with one another. It depends on the number of samples and of images: with fewer, it is larger.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.foreign import brief, foreign, guarded
from fixedpoint.core.options import OptionError, Options, option
from fixedpoint_diffusion.fashion_mnist import CLASSIFIER
from fixedpoint_diffusion.fashion_mnist.classifier import Gaussian, frechet_distance, load_classifier
from fixedpoint_diffusion.models.places import FolderError, located

__all__ = ["FrechetDistance"]

BUNDLED = "fashion-mnist"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_BATCH = 64


@dataclass(frozen=True)
class FrechetDistance(Options):
    """The Frechet distance to a folder of images, in the features of a network that you name. It is not the FID.

    The function that ``features`` names takes no arguments and returns a ``torch.nn.Module`` whose method ``features``
    takes images of shape ``(n, C, H, W)`` in [-1, 1], as large as the samples, and returns their features, ``(n, F)``.
    """

    uses = ("pillow", "safetensors")

    images: str = option(path=True, help="the folder of images; subfolders are not searched")
    features: str = option(
        BUNDLED,
        help="the network, as module:function or file.py:function; fashion-mnist: the bundled classifier, for images "
        "of 32 x 32 pixels and one channel",
    )
    weights: str | None = option(None, path=True, help="the weights of the network, a file in safetensors")
    samples: int | None = option(None, ge=2, help="number of samples; further batches are sampled; default: the batch")
    resize: bool = option(False, help="resize images of another size than the samples (Lanczos)")
    sha256: str | None = option(None, help="digest of images, weights and code, filled in automatically")

    def check(self) -> None:
        name = type(self).__name__
        if not self._files():
            raise OptionError(
                name, "images", f"must be a folder of pictures ({', '.join(_PICTURES)}), got {self.images}"
            )
        if len(self._files()) < 2:
            raise OptionError(name, "images", f"must hold at least 2 pictures, {self.images} has one")
        if self.weights is not None and not self._place("weights").is_file():
            raise OptionError(name, "weights", f"must be a file in safetensors; there is no file {self.weights}")
        if self.weights is not None and self.features == BUNDLED:
            raise OptionError(name, "weights", f"must be null: {BUNDLED} has its own")
        code = self._code()
        digest = self._digest(code)
        if self.sha256 not in (None, digest):
            raise OptionError(name, "sha256", f"says other images, weights or code than there are now ({digest})")
        object.__setattr__(self, "sha256", digest)  # a frozen dataclass; the digest becomes part of the record

    def note(self, batch: int) -> str:
        """A sentence on what is measured, with the number of samples and of images."""
        sizes = f"{self.samples or batch} samples against {len(self._files())} images of {self.images}"
        return f"frechet_distance: in the features of {self.features}, {sizes}; it is no FID"

    def distance(self, samples: Float[Tensor, "n C H W"], once: Callable[[Hashable, Callable[[], Any]], Any]) -> float:
        """The distance of samples in ``[-1, 1]``.

        Parameters
        ----------
        samples
            The samples, at least 2.
        once
            ``Context.once``: the features of the images are computed once per run.

        Raises
        ------
        ValueError
            If an image cannot be read or has another size, or if the network returns no features.
        """
        network = once((self, "network"), self._network)
        shape = tuple(samples.shape[1:])
        reference = once((self, shape), lambda: Gaussian.of(self._features(network, self._read(shape))))
        return frechet_distance(Gaussian.of(self._features(network, samples)), reference)

    def _features(self, network: Any, images: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [network.features(part) for part in images.split(_BATCH)]
        for part, given in zip(parts, images.split(_BATCH), strict=True):
            shape = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            if not isinstance(part, Tensor) or part.ndim != 2 or len(part) != len(given):
                raise ValueError(f"features of {self.features} must have shape ({len(given)}, F), got {shape}")
            if not bool(part.isfinite().all()):
                raise ValueError(f"features of {self.features} must be finite, got NaN or Inf")
        return torch.cat(parts)

    def _read(self, shape: tuple[int, ...]) -> Float[Tensor, "n C H W"]:
        from PIL import Image

        channels, height, width = shape
        found = []
        for file in self._files():
            try:
                with Image.open(file) as opened:
                    picture = opened.convert("L" if channels == 1 else "RGB")
            except (OSError, SyntaxError, Image.DecompressionBombError) as error:
                raise ValueError(f"frechet: {file} cannot be read: {error}") from None
            if picture.size != (width, height):
                if not self.resize:
                    size = f"{picture.size[0]} x {picture.size[1]}"
                    wanted = f"the samples have {width} x {height}; resize: true resizes it"
                    raise ValueError(f"frechet: {file} has {size} pixels, {wanted}")
                picture = picture.resize((width, height), Image.Resampling.LANCZOS)
            found.append(torch.from_numpy(np.array(picture)).reshape(height, width, channels).permute(2, 0, 1))
        return torch.stack(found).float() / 127.5 - 1

    def _network(self) -> Any:
        with foreign():
            made = load_classifier() if self.features == BUNDLED else self._function()[0]()
        if not isinstance(made, torch.nn.Module) or not callable(getattr(made, "features", None)):
            raise ValueError(f"{self.features} must return a torch.nn.Module with a method features, got {made!r:.60}")
        if self.weights is not None:
            from safetensors.torch import load_file

            made.load_state_dict(load_file(self._place("weights")))
        return made.eval().requires_grad_(False)

    def _function(self) -> tuple[Callable[[], Any], Path]:
        """The function that makes the network, and the file of its module.

        Raises
        ------
        OptionError
            If it cannot be imported.
        """
        name = type(self).__name__
        where, _, function = self.features.rpartition(":")
        if not where or not function:
            raise OptionError(name, "features", f"must be {BUNDLED} or module:function, got {self.features!r}")
        try:
            with guarded():
                module = _imported(where)
                found = getattr(module, function)
        except Exception as error:  # a module may raise anything when it is imported
            reason = f"cannot be imported: {self.features}: {brief(error)}"
            raise OptionError(name, "features", reason) from None
        if not callable(found) or not getattr(module, "__file__", None):
            raise OptionError(name, "features", f"must name a function in a file, {self.features} is none")
        return found, Path(module.__file__)

    def _code(self) -> Path:
        """The file of the network's code, or the weights of the bundled one."""
        return CLASSIFIER if self.features == BUNDLED else self._function()[1]

    def _place(self, name: str) -> Path:
        try:
            return located(getattr(self, name), hub=False)
        except FolderError as error:
            raise OptionError(type(self).__name__, name, f"cannot be used: {error}") from None

    def _files(self) -> list[Path]:
        folder = self._place("images")
        if not folder.is_dir():
            raise OptionError(type(self).__name__, "images", f"cannot be used: there is no folder {folder}")
        return sorted(file for file in folder.iterdir() if file.suffix.lower() in _PICTURES)

    def _digest(self, code: Path) -> str:
        files = [*self._files(), code, *([] if self.weights is None else [self._place("weights")])]
        return _digest(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


def _imported(where: str) -> Any:
    """A module by its name, or from a file."""
    if not where.endswith(".py"):
        return importlib.import_module(where)
    spec = importlib.util.spec_from_file_location(Path(where).stem, where)
    if spec is None or spec.loader is None or not Path(where).is_file():
        raise FileNotFoundError(f"there is no file {where}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.lru_cache(maxsize=8)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """The digest of the names and contents of files; times and sizes are part of the cache key only."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
