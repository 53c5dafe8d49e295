"""The denoising loops of Modular Diffusers that are known, and what each does besides running its leaf blocks.

A loop wrapper of ``diffusers`` (``FluxDenoiseLoopWrapper`` and its like) runs its leaf blocks once for every timestep.
What it does before the first of them is repeated here, so that only the leaf blocks of a wrapper are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fixedpoint_diffusion.recognition import is_of_diffusers

__all__ = ["FAMILIES", "preparation_of"]


def _nothing(components: Any) -> None:
    pass


def _set_guider(components: Any) -> None:
    """A distilled network (LCM) is given the guidance scale, and is not guided by two predictions."""
    if components.unet.config.time_cond_proj_dim is not None:
        components.guider.disable()
    else:
        components.guider.enable()


FAMILIES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "FluxDenoiseLoopWrapper": ("Flux", _nothing),
    "StableDiffusion3DenoiseLoopWrapper": ("Stable Diffusion 3", _nothing),
    "StableDiffusionXLDenoiseLoopWrapper": ("Stable Diffusion XL", _set_guider),
}


def preparation_of(loop: Any) -> Callable[[Any], None]:
    """Return what a loop does with the components before its first step.

    Raises
    ------
    TypeError
        If the loop is not one of those that are known; the message names those.
    """
    name, known = type(loop).__name__, ", ".join(family for family, _ in FAMILIES.values())
    runs = next(base for base in type(loop).__mro__ if "__call__" in vars(base))
    steps = next((base for base in type(loop).__mro__ if "loop_step" in vars(base)), runs)
    own = [base.__name__ for base in (runs, steps) if not is_of_diffusers(base)]
    if own:
        raise TypeError(
            f"{name} has a loop of its own ({own[0]}), which JointDenoise would leave out; "
            "put what it does into a leaf block of the family's loop"
        )
    if runs.__name__ not in FAMILIES:
        raise TypeError(f"JointDenoise does not know the loop of {name}; it knows those of {known}")
    return FAMILIES[runs.__name__][1]
