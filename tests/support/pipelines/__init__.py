"""Tiny pipelines of ``diffusers`` for tests: the real classes with random weights, built offline in about a second.

``pipeline("sd1")`` builds the pipeline once per process and loads it again from its folder at every call, so that a
caller may change what it gets; ``pipeline("sd1")(**arguments("sd1"), num_inference_steps=4)`` samples two images.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
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
from .families import FAMILIES

__all__ = ["NAMES", "arguments", "pipeline"]

NAMES = tuple(FAMILIES)

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
    """A pipeline of its own, loaded from a folder, without a progress bar.

    Parameters
    ----------
    name
        One of ``NAMES``.
    folder
        Where to save it, with its scheduler; a folder of this process where none is given.
    seed
        Of the weights.
    dtype
        Of the weights after loading.
    scheduler
        Instead of the pipeline's own.
    """
    made = _loaded(name, _built(name, seed), dtype)
    if scheduler is not None:
        made.register_modules(scheduler=scheduler)
    if folder is not None:
        shutil.copytree(_built(name, seed), folder, dirs_exist_ok=True)
        made.scheduler.save_pretrained(folder / "scheduler")
    return made


def _loaded(name: str, folder: Path, dtype: torch.dtype) -> DiffusionPipeline:
    made = DiffusionPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    if name in ADAPTERS:
        ADAPTERS[name][1](made, folder)
    made.set_progress_bar_config(disable=True)
    return made


@cache
def _built(name: str, seed: int) -> Path:
    """The folder of a pipeline; torch's generator is left as it was."""
    folder = Path(tempfile.mkdtemp(prefix="pipeline-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = FAMILIES[name]()
        made.save_pretrained(folder)
        if name in ADAPTERS:
            ADAPTERS[name][0](made, folder)
    return folder
