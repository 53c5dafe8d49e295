"""Loads a network of diffusers or transformers from a folder that may come from anywhere.

Nothing is unpickled, downloaded or run. Before any memory is taken, the network is made on torch's ``meta`` device,
where it is stopped as soon as it has far more parameters than the files of weights hold: a configuration may ask for
any number of them. Weights that are missing or not expected are refused, where the libraries would only warn.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from fixedpoint.core.foreign import brief, foreign
from fixedpoint_diffusion.models.files import Stored, check_numbers, check_shards, stored_in
from fixedpoint_diffusion.models.places import FolderError

__all__ = ["load_network"]

# How many times as many tensors and numbers a network may have as its files: some tensors stand for several.
_FACTOR = 8
_TENSORS, _NUMBERS = 4096, 2**27
_LISTED = 3


class _TooLargeError(Exception):
    """A network has more parameters than its files can hold."""


def load_network(
    kind: Any, path: Path, files: list[Path], config: Mapping[str, Any], dtype: torch.dtype, **options: Any
) -> torch.nn.Module:
    """Load a network, and refuse one that its files do not determine.

    Parameters
    ----------
    kind
        Its class: a ``ModelMixin`` of diffusers or a ``PreTrainedModel`` of transformers.
    path
        Its folder.
    files
        Its weights.
    config
        The content of its ``config.json``.
    dtype
        To which the weights are converted.
    options
        Further arguments of ``from_pretrained``.

    Raises
    ------
    FolderError
        If the weights are damaged, if some are missing, not expected or of another shape, if the configuration asks for
        far more than they are, or if the library cannot make a network of it.
    """
    check_numbers(path / "config.json", config)
    stored = stored_in(files)
    check_shards(path, stored)
    of_diffusers = hasattr(kind, "from_config")
    options["torch_dtype" if of_diffusers else "dtype"] = dtype
    try:
        with foreign(), _at_most(stored), _quiet():
            _try_on_meta(kind, config)
            made, found = kind.from_pretrained(
                path, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
            )
    except _TooLargeError as error:
        raise FolderError(f"{path} cannot be loaded: {error}") from None
    except Exception as error:  # the libraries raise errors of any type for a configuration that makes no network
        raise FolderError(f"{path} cannot be loaded: {brief(error)}") from error
    for key, said in (
        ("missing_keys", "lack"),
        ("unexpected_keys", "have"),
        ("mismatched_keys", "have other shapes of"),
    ):
        names = sorted(str(each[0] if isinstance(each, tuple) else each) for each in found.get(key) or ())
        if names:
            further = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            unlike = f" that {kind.__name__} has not" if key == "unexpected_keys" else ""
            raise FolderError(f"the weights in {path} {said} {', '.join(names[:_LISTED])}{further}{unlike}")
    network: torch.nn.Module = made
    # diffusers leaves a tensor as it is stored.
    mixed = any(each.is_floating_point() and each.dtype != dtype for each in network.parameters())
    return network.to(dtype) if of_diffusers and mixed else network


def _try_on_meta(kind: Any, config: Mapping[str, Any]) -> None:
    """Make the network without memory, so that a configuration that asks for too much is found out."""
    try:
        with torch.device("meta"):
            if hasattr(kind, "from_config"):
                kind.from_config(dict(config))
            elif getattr(kind, "config_class", None) is not None:
                kind(kind.config_class.from_dict(dict(config)))
    except _TooLargeError:
        raise
    except Exception:  # some cannot be made without numbers; loading says what is wrong with the others
        pass


@contextlib.contextmanager
def _at_most(stored: Stored) -> Iterator[None]:
    """Within a ``with`` block, stop the making of a network with more parameters than files can determine."""
    tensors = modules = 0
    numbers = 0

    def count(_module: torch.nn.Module, _name: str, parameter: torch.nn.Parameter | None) -> None:
        nonlocal tensors, numbers
        tensors, numbers = tensors + 1, numbers + (0 if parameter is None else parameter.numel())
        if tensors > 2 * (_FACTOR * stored.tensors + _TENSORS) or numbers > 2 * (_FACTOR * stored.numbers + _NUMBERS):
            raise _TooLargeError(
                f"config.json asks for more than {numbers:,} numbers in {tensors:,} tensors, and its weights are "
                f"{stored.numbers:,} in {stored.tensors:,}"
            )

    def count_modules(_module: torch.nn.Module, _name: str, _part: torch.nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > 4 * (_FACTOR * stored.tensors + _TENSORS):
            raise _TooLargeError(
                f"config.json asks for more than {modules:,} layers, and its weights are {stored.tensors:,} tensors"
            )

    hooks = (
        register_module_parameter_registration_hook(count),
        register_module_module_registration_hook(count_modules),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within a ``with`` block, the libraries do not warn of what is refused afterwards."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
