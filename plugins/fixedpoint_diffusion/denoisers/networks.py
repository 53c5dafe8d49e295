"""Decides which networks are supported, for objects and for configurations in model folders.

Objects of diffusers are recognised by their class, so diffusers itself is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fixedpoint_diffusion.recognition import is_pipeline

__all__ = ["LATENT_PARTS", "check_config", "check_index", "is_dit", "refusal"]

# Networks that model folders may hold: they take images, timesteps and possibly classes, and nothing else.
_UNCONDITIONAL = ("UNet2DModel", "DiTTransformer2DModel")
# Parts of a pipeline that do not affect what the network computes; those of LATENT_PARTS decode its samples.
LATENT_PARTS = ("vae", "vqvae")
_SILENT_PARTS = ("scheduler", "unet", "transformer", "safety_checker", "feature_extractor", *LATENT_PARTS)
_IN_PYTHON = (
    "in Python: NetworkDenoiser(network, conditioning={...}) with a DDIMScheduler, if the model has one's noise levels"
)

_AS_PIPELINE = "the whole pipeline: fixedpoint_diffusion.parallel(pipe) in Python, fixedpoint invert --prompt"


def is_dit(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of a class-conditional DiT, under its current or its former class name."""
    name = config.get("_class_name")
    return name == "DiTTransformer2DModel" or (
        name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero"
    )


def refusal(given: Any) -> str | None:
    """Why an object cannot be a denoiser, and what to pass instead; None if it may be one."""
    name = type(given).__name__
    if isinstance(given, type):
        return f"the class {given.__name__} itself; pass an instance, in evaluation mode"
    owner = getattr(given, "__self__", None)
    if owner is not None and is_pipeline(owner):
        return refusal(owner)
    if is_pipeline(given):
        part = next((part for part in ("unet", "transformer") if getattr(given, part, None) is not None), "unet")
        return (
            f"a whole {name}; pass its parts: pipeline.{part} (with what it is conditioned on as "
            f"NetworkDenoiser(pipeline.{part}, conditioning=...)) and DDIMScheduler.from_config"
            "(pipeline.scheduler.config)"
        )
    if isinstance(given, str) or hasattr(given, "__fspath__"):
        return f"{name} {str(given)!r}; a folder is fixedpoint_diffusion.DiffusersModel(path=...).denoiser(...)"
    if isinstance(given, Mapping):
        return f"{name}, which is a configuration; pass the network made of it"
    if hasattr(given, "own_schedule") and hasattr(given, "denoiser"):
        return f"{name}, the options of a model; pass model.denoiser(schedule, rows)"
    return None if callable(given) else name


def check_index(index: Mapping[str, Any]) -> None:
    """Check that the samples of a pipeline depend on its network alone.

    Parameters
    ----------
    index
        The content of its ``model_index.json``.

    Raises
    ------
    ValueError
        If other parts, such as text encoders, affect the samples. The message is a sentence without its subject, the
        folder.
    """
    parts = [name for name, value in index.items() if isinstance(value, (list, tuple)) and any(value)]
    others = [part for part in parts if part not in _SILENT_PARTS]
    if not others:
        return
    what = f"is a {index.get('_class_name', 'pipeline')}"
    if any("text" in part or "token" in part or part == "bert" for part in others):
        raise ValueError(f"{what}, conditioned on texts ({', '.join(others)}), which is not read here; {_AS_PIPELINE}")
    raise ValueError(f"{what}, whose {', '.join(others)} have a say in its samples, too; {_IN_PYTHON}")


def check_config(config: Mapping[str, Any]) -> None:
    """Check that a network requires only images, timesteps and classes.

    Parameters
    ----------
    config
        The content of its ``config.json``.

    Raises
    ------
    ValueError
        If it requires more, or is of an unknown class. The message is a sentence without its subject, the folder.
    """
    name = config["_class_name"]
    if name not in _UNCONDITIONAL and not is_dit(config):
        if _is_known(str(name)):
            read = f"folders are read of networks conditioned on classes or nothing ({', '.join(_UNCONDITIONAL)})"
            raise ValueError(f"holds a {name}, which may require texts or more; {read}; {_IN_PYTHON}")
        raise ValueError(f"names the class {name}, which diffusers has not")
    if config.get("class_embed_type") is not None:
        raise ValueError(f"embeds numbers in place of classes ({config['class_embed_type']}); {_IN_PYTHON}")
    given, predicted = config.get("in_channels"), config.get("out_channels")
    if isinstance(given, int) and isinstance(predicted, int) and predicted not in (given, 2 * given):
        raise ValueError(
            f"is given {given} channels and predicts {predicted}, so it requires more than the noisy image"
        )


def _is_known(name: str) -> bool:
    """Whether diffusers exports a name, which ``dir`` tells without loading it; True if diffusers is not installed."""
    try:
        import diffusers
    except ModuleNotFoundError:
        return True
    return name in dir(diffusers)
