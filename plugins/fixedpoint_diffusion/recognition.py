"""Recognises objects of diffusers by their class, without importing diffusers."""

from __future__ import annotations

from typing import Any

__all__ = ["is_guider", "is_of_diffusers", "is_pipeline"]


def is_of_diffusers(cls: type) -> bool:
    """Whether a class is defined in diffusers."""
    return cls.__module__.partition(".")[0] == "diffusers"


def is_pipeline(given: Any) -> bool:
    """Whether an object is a pipeline of diffusers, or of a class derived from one."""
    names = ("DiffusionPipeline", "ModularPipeline")
    return any(base.__name__ in names and is_of_diffusers(base) for base in type(given).__mro__)


def is_guider(given: Any) -> bool:
    """Whether an object is a guider of diffusers, or of a class derived from one."""
    return any(base.__name__ == "BaseGuidance" and is_of_diffusers(base) for base in type(given).__mro__)
