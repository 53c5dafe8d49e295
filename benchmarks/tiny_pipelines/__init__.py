"""Tiny pipelines of ``diffusers`` for tests and benchmarks: the real classes with random weights, built offline.

``pipeline("sd1")`` builds the pipeline once per process and loads it again from its folder at every call, so that a
caller may change what it gets; ``pipeline("sd1")(**arguments("sd1"), num_inference_steps=4)`` samples two images.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when diffusers is imported

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from .adapters import ADAPTERS
from .calls import arguments
from .comparing import distance, doubled, generators, images_of
from .families import FAMILIES
from .fitting import fit

__all__ = ["MORE", "NAMES", "arguments", "distance", "doubled", "generators", "images_of", "pipeline"]

NAMES = (
    "sd1",
    "sd2-v",
    "sdxl",
    "sdxl-refiner",
    "sd3",
    "flux",
    "pixart",
    "dit",
    "img2img",
    "inpaint",
    "inpaint-9",
    "controlnet",
    "ddpm",
    "ddim",
    "ip-adapter",
    "lora",
)
# Like one of the others, but for an option: Flux without an embedding of the guidance scale.
MORE = ("flux-schnell",)

diffusers_logging.disable_progress_bar()  # the bars of saving and loading
transformers_logging.disable_progress_bar()


def pipeline(
    name: str,
    *,
    folder: Path | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    scheduler: Any | None = None,
) -> DiffusionPipeline:
    """A pipeline of the caller's own, loaded from a folder, without a progress bar. Torch's generator is not used.

    Parameters
    ----------
    name
        One of ``NAMES`` or ``MORE``.
    folder
        Where to leave it, in float32, with its scheduler. The weights of an adapter are a file of their own there.
    seed
        Of the weights.
    dtype
        To which the weights are loaded.
    scheduler
        Instead of the pipeline's own. Stable Diffusion warns of ``steps_offset=0`` when it is loaded from ``folder``.
    """
    source = _built(name, seed)
    if folder is not None:
        source = shutil.copytree(source, folder, dirs_exist_ok=True)
        if scheduler is not None:
            _set_scheduler(source, scheduler)
    with torch.random.fork_rng(devices=[]):
        made = DiffusionPipeline.from_pretrained(source, dtype=dtype, local_files_only=True)
        if name in ADAPTERS:
            ADAPTERS[name][1](made, source)
    if scheduler is not None:
        made.register_modules(scheduler=scheduler)
    made.set_progress_bar_config(disable=True)
    return made


def _set_scheduler(folder: Path, scheduler: Any) -> None:
    scheduler.save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    parts = json.loads(index.read_text())
    index.write_text(json.dumps({**parts, "scheduler": ["diffusers", type(scheduler).__name__]}, indent=2))


@cache
def _built(name: str, seed: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pipeline-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # diffusers' own, about its use of numpy
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        torch.manual_seed(seed)
        made = FAMILIES[name]()
        if hasattr(made.scheduler, "alphas_cumprod"):  # sampling flows is well behaved without
            fit(made, arguments("sd1" if name in ADAPTERS else name))
        made.save_pretrained(folder)
        if name in ADAPTERS:
            ADAPTERS[name][0](made, folder)
    return folder
