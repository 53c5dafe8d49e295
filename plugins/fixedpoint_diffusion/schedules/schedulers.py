"""Converts schedulers of diffusers to schedules, and decides which schedulers are supported.

A chain steps as ``diffusers.DDIMScheduler`` does. Of scheduler objects only that class is accepted, with the timesteps
that were set on it. All others raise an error that says what to pass instead, since none of them makes the same steps:
``DDIMParallelScheduler`` ignores ``final_alpha_cumprod``, and others only share the configuration. Model folders with a
``DDPMScheduler``, as public models often have, are also accepted. They are sampled by DDIM with the configuration that
``DDIMScheduler.from_config`` derives, and a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from torch import Tensor

from fixedpoint.core.options import option
from fixedpoint_diffusion.recognition import is_of_diffusers, is_pipeline
from fixedpoint_diffusion.schedules.schedule import NoiseSchedule

__all__ = [
    "SUPPORTED_SCHEDULERS",
    "AssignedSchedule",
    "DDIMSchedule",
    "levels_of_config",
    "schedule_of",
    "schedule_of_config",
]


@dataclass(frozen=True)
class DDIMSchedule(NoiseSchedule):
    """The configuration of a ``diffusers.DDIMScheduler``, field for field.

    :meth:`from_scheduler` copies the configuration of a scheduler.
    """

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> DDIMSchedule:
        """The schedule of a ``diffusers.DDIMScheduler``, including timesteps that were set on it.

        Raises
        ------
        TypeError
            For any other object, including instances of subclasses. The message says what to pass.
        ValueError
            If tables or methods of the scheduler were replaced, or if its timesteps are not valid for a chain.
        """
        return schedule_of(scheduler)


@dataclass(frozen=True)
class AssignedSchedule(DDIMSchedule):
    """The schedule of a scheduler on which timesteps were set, by ``set_timesteps`` or by assignment.

    A chain uses these timesteps unless others are requested.
    """

    num_inference_steps: int = option(50, ge=1, help="number of steps, as for set_timesteps")
    assigned_timesteps: tuple[int, ...] | None = option(
        None, help="timesteps assigned to the scheduler instead of those of set_timesteps"
    )

    def check(self) -> None:
        super().check()
        if self.assigned_timesteps is not None:
            self.checked_timesteps(self.assigned_timesteps)

    @property
    def stride(self) -> int:
        """The number of timesteps that each step leads down; ``scheduler.step`` uses it whatever the timesteps are."""
        return self.num_train_timesteps // self.num_inference_steps

    def route(self) -> tuple[int, ...]:
        """The timesteps of the chain, from noise to image."""
        return self.assigned_timesteps or tuple(self.timesteps(self.num_inference_steps).tolist())


# Schedulers whose configurations are accepted; of scheduler objects, only the first.
SUPPORTED_SCHEDULERS = ("DDIMScheduler", "DDPMScheduler")
_DDIM = SUPPORTED_SCHEDULERS[0]
_FIELDS = {field.name: field.default for field in fields(DDIMSchedule)}
# Fields that DDIM uses and that other schedulers lack or define differently.
_ADOPTED = ("clip_sample", "timestep_spacing", "set_alpha_to_one", "steps_offset")
# Fields with the same meaning in all schedulers.
_LEVELS = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("rescale_betas_zero_snr", "prediction_type"),
)
# With other values than these, the noise levels are not those of the betas, or the model is evaluated at other times.
_OTHER_LEVELS = {"use_flow_sigmas": (None, False), "timestep_type": (None, "discrete"), "snr_shift_scale": (None, 1.0)}
# The end of a refusal.
_ITSELF = "; for the scheduler itself, if its steps are affine, take sampling_problem"
# Methods that determine a step; an instance on which one was replaced is refused.
_STEPPING = ("step", "scale_model_input", "_get_variance", "_threshold_sample")


def is_ddim(given: Any) -> bool:
    """Whether an object is a ``diffusers.DDIMScheduler`` itself, or a schedule of one."""
    return isinstance(given, DDIMSchedule) or (type(given).__name__ == _DDIM and is_of_diffusers(type(given)))


def schedule_of(given: Any) -> DDIMSchedule:
    """The schedule of a chain, from a schedule or a scheduler.

    Parameters
    ----------
    given
        A :class:`DDIMSchedule`, which is returned unchanged, or a ``diffusers.DDIMScheduler``. If timesteps were set on
        the scheduler, the result is an :class:`AssignedSchedule`.

    Raises
    ------
    TypeError
        For any other object. The message says what to pass.
    ValueError
        If tables or methods of the scheduler were replaced, so that its configuration no longer describes its steps, or
        if its timesteps are not valid for a chain.
    """
    if isinstance(given, DDIMSchedule):
        return given
    config = getattr(given, "config", None)
    if not (is_ddim(given) and isinstance(config, Mapping)):
        raise TypeError(f"the schedule requires a diffusers {_DDIM}, got {_refusal(given)}")
    # The scheduler itself reads the attributes of its configuration, which ``scheduler.config.clip_sample = False``
    # changes, and not the entries, which that assignment leaves as they were.
    effective = {name: getattr(config, name, value) for name, value in config.items()}
    schedule = DDIMSchedule(**_options(effective))
    _check_unchanged(given, schedule)
    return _assigned(given, schedule)


def schedule_of_config(config: Mapping[str, Any]) -> tuple[DDIMSchedule, str]:
    """The schedule of a ``scheduler_config.json``, and a note on how it is sampled; empty for a ``DDIMScheduler``.

    Missing values take the default of diffusers, as in ``DDIMScheduler.from_config``.

    Raises
    ------
    ValueError
        For any scheduler other than those of DDIM and DDPM. The message is a sentence without its subject ("the
        scheduler"), which the caller puts in front.
    """
    name = config.get("_class_name")
    if name not in SUPPORTED_SCHEDULERS:
        if "beta_schedule" not in config:
            raise ValueError(f"({name or 'unnamed'}) has no beta_schedule, so it has no DDIM chain")
        if name is None:
            DDIMSchedule(**_options(config))  # errors in its values are reported first
            raise ValueError(f"does not name its class (_class_name); a chain requires a {_DDIM}")
        carried = _ddim_replacement(config)
        hint = f"; to have it sampled by DDIM, save in its place one {carried}" * bool(carried)
        raise ValueError(f"is a {name}, whose steps are not those of a {_DDIM}{hint}")
    schedule = DDIMSchedule(**_options(config))
    if name == _DDIM:
        return schedule, ""
    how = _clipping(schedule, "clip_sample" in config)
    return schedule, f"the scheduler is a {name}; sampled by DDIM, as {_DDIM}.from_config takes it, {how}"


def levels_of_config(config: Mapping[str, Any]) -> DDIMSchedule | None:
    """The noise levels of any scheduler's configuration by training timesteps, with its own settings where DDIM has
    them; None for a scheduler whose levels are not those of betas, or of betas that DDIM does not have.
    """
    other = any(config.get(name) not in plain for name, plain in _OTHER_LEVELS.items())
    if "beta_schedule" not in config or other:
        return None
    try:
        return DDIMSchedule(**_options(config))
    except ValueError:
        return None


def _clipping(schedule: DDIMSchedule, said: bool) -> str:
    """How the predicted image is clipped, for a note; ``said``: whether the configuration contains ``clip_sample``."""
    if schedule.thresholding:
        return "with dynamic thresholding of the predicted image"
    if not schedule.clip_sample:
        return "without clipping (clip_sample=False)"
    whose = "its own" if said else "diffusers' default, filled in"
    return f"with the predicted image clipped to +-{schedule.clip_sample_range:g} (clip_sample=True, {whose})"


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a configuration that are fields of a schedule, with ``trained_betas`` as a list of floats."""
    given = {name: config[name] for name in _FIELDS if name in config}
    betas = given.get("trained_betas")
    if isinstance(betas, (np.ndarray, Tensor)):
        given["trained_betas"] = [float(beta) for beta in betas]
    return given


def _check_unchanged(scheduler: Any, schedule: DDIMSchedule) -> None:
    """Raise a ``ValueError`` if the scheduler's tables or methods differ from those of its configuration."""
    for name in ("alphas_cumprod", "final_alpha_cumprod"):
        theirs, own = getattr(scheduler, name), getattr(schedule, name).numpy()
        theirs = np.asarray(theirs.detach().cpu().double() if isinstance(theirs, Tensor) else theirs)
        if theirs.shape != own.shape or not np.allclose(theirs, own, rtol=1e-5, atol=1e-9):
            raise ValueError(
                f"the scheduler's {name} was changed by hand and is not that of its configuration; make the scheduler "
                "with trained_betas (and set_alpha_to_one), so that its configuration says what it steps with"
            )
    changed = [name for name in _STEPPING if name in vars(scheduler)]
    if changed:
        raise ValueError(f"the scheduler's {changed[0]} was replaced by hand; a chain steps as the {_DDIM}'s own does")


def _assigned(scheduler: Any, schedule: DDIMSchedule) -> DDIMSchedule:
    """The schedule with the timesteps that were set on the scheduler; unchanged if none were set."""
    count, total = scheduler.num_inference_steps, schedule.num_train_timesteps
    timesteps = scheduler.timesteps
    found = np.asarray(timesteps.detach().cpu() if isinstance(timesteps, Tensor) else timesteps)
    if count is None:
        if np.array_equal(found, np.arange(total)[::-1]):
            return schedule
        raise ValueError(
            "the scheduler's timesteps were assigned by hand, and its num_inference_steps, by which scheduler.step "
            "reckons where a step leads, is None; set it, too, or give the timesteps to the chain (timesteps=)"
        )
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or not 1 <= count <= total:
        raise ValueError(f"the scheduler's num_inference_steps must be from 1 to {total}, got {count!r}")
    given = {name: getattr(schedule, name) for name in _FIELDS}
    laid_out = AssignedSchedule(**given, num_inference_steps=int(count))
    # Trailing spacing may end with a timestep below 0, at which no model can be evaluated; see NoiseSchedule.timesteps.
    if found.ndim == 1 and found.dtype.kind in "iu" and np.array_equal(_cut(found), schedule.timesteps(int(count))):
        return laid_out
    return AssignedSchedule(
        **given, num_inference_steps=int(count), assigned_timesteps=schedule.checked_timesteps(timesteps)
    )


def _cut(timesteps: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The timesteps without a last one below 0."""
    return timesteps[:-1] if len(timesteps) and timesteps[-1] < 0 else timesteps


def _refusal(given: Any) -> str:
    """The end of an error message: what was passed, and what to pass instead."""
    name = type(given).__name__
    if isinstance(given, type):
        return f"the class {given.__name__} itself; pass an instance, {_DDIM}(...)"
    if is_pipeline(given):
        return f"a whole {name}; pass {_DDIM}.from_config(pipeline.scheduler.config), and its network as the denoiser"
    if isinstance(given, Mapping):
        return f"{name}, a configuration; pass {_DDIM}.from_config(config)"
    if isinstance(given, str) or hasattr(given, "__fspath__"):
        return f"{name} {str(given)!r}; pass {_DDIM}.from_pretrained(folder)"
    config = getattr(given, "config", None)
    if not isinstance(config, Mapping) or not hasattr(given, "set_timesteps"):
        return f"{name}; a DDIMSchedule will do, too"
    if any(base.__name__ == _DDIM for base in type(given).__mro__[1:]):
        return (
            f"{name}, a class of its own derived from it, whose steps may be others; where they are not, pass "
            f"{_DDIM}.from_config(scheduler.config)"
        )
    carried = _ddim_replacement(config)
    if not carried:
        return f"{name}, of other noise levels than a {_DDIM} can have, so that its models have no DDIM chain{_ITSELF}"
    also = "; the way from images to noise is fixedpoint_diffusion.invert" * ("Inverse" in name)
    return f"{name}; to sample by DDIM instead, {carried}{also or _ITSELF}"


def _ddim_replacement(config: Mapping[str, Any]) -> str:
    """What ``DDIMScheduler.from_config`` keeps of a configuration, and that call; empty if no DDIM chain exists."""
    if "beta_schedule" not in config:
        return ""
    if any(config.get(name) not in plain for name, plain in _OTHER_LEVELS.items()):
        return ""
    # For values that were not set explicitly, from_config uses DDIM's default instead of that of the other class.
    defaults = config.get("_use_default_values", ())
    kept = {name: value for name, value in _options(config).items() if name not in defaults}
    try:
        schedule, theirs = DDIMSchedule(**kept), DDIMSchedule(**_options(config))
    except ValueError:
        return ""
    levels = [
        f"{name}={getattr(theirs, name)!r}" for name in _LEVELS if getattr(theirs, name) != getattr(schedule, name)
    ]
    if levels:
        schedule = replace(schedule, **{name: getattr(theirs, name) for name in _LEVELS})
    others = [
        f"{name}={getattr(schedule, name)!r}"
        for name in _ADOPTED
        if (config[name] != getattr(schedule, name) if name in config else name == "clip_sample")
    ]
    said = f" but {', '.join(others)}" * bool(others)
    if schedule.clip_sample and not config.get("clip_sample"):
        said += " (clip_sample=False as an argument leaves the clipping out)"
    made = f"{_DDIM}.from_config(scheduler.config)" + f" with the arguments {', '.join(levels)}" * bool(levels)
    return f"with the same noise levels and prediction type{said}: {made}"
