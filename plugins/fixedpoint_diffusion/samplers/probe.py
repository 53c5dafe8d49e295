"""Finds the recurrence of any scheduler by running it on unit vectors; no formula of a scheduler is known here.

A ``step`` treats every entry of an image alike and is affine in the sample, the output of the network and the noise. So
let the image have ``1 + K + M`` entries, the start be ``e_0``, output ``j`` be ``e_{1+j}`` and draw ``k`` be
``e_{1+K+k}``: one pass of the scheduler's own loop yields every coefficient. A second pass, on random images of another
shape, shows whether the scheduler is affine at all. Both run on copies of the scheduler.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint_diffusion.samplers.draws import Draws, NotAffineError
from fixedpoint_diffusion.samplers.levels import noise_levels
from fixedpoint_diffusion.samplers.recurrence import AffineRows, SamplerTables
from fixedpoint_diffusion.samplers.refusals import (
    check_count,
    check_is_scheduler,
    check_settings,
    check_step,
    check_timesteps,
)
from fixedpoint_diffusion.schedules.timesteps import DEFAULT_STEPS

__all__ = ["sampler_tables", "tables_as_set"]

_T = TypeVar("_T")

# What the second pass may differ by, relative to the sizes that are added up: a scheduler may round to float32 inside.
# Those of diffusers differ by less than 1e-12, since Draws keeps their images in float64.
AFFINE = 2e-6


def sampler_tables(
    scheduler: Any,
    num_inference_steps: int | None = None,
    *,
    timesteps: Sequence[float] | Tensor | NDArray[Any] | None = None,
    sigmas: Sequence[float] | Tensor | NDArray[Any] | None = None,
    step_kwargs: Mapping[str, Any] | None = None,
    **set_timesteps_kwargs: Any,
) -> SamplerTables:
    """The recurrence of a diffusers scheduler: its inputs and its sample in terms of start, network outputs and noise.

    The tables come from the scheduler's own ``set_timesteps``, ``scale_model_input`` and ``step``, called as its
    pipelines call them, on copies: the scheduler itself is not changed. They are checked against a run on random
    images.

    Parameters
    ----------
    scheduler
        A scheduler of diffusers, or any object with its interface. Settings changed on it by attribute
        (``scheduler.config.use_karras_sigmas = True``) hold, as they do for its own steps.
    num_inference_steps
        ``N``, as ``set_timesteps`` takes it. Default, unless ``timesteps`` or ``sigmas`` are given: what the scheduler
        was set to; else 50.
    timesteps, sigmas
        The timesteps or noise levels themselves, for schedulers whose ``set_timesteps`` takes them; passed on as given.
    step_kwargs
        Further arguments of every ``step``, such as ``{"eta": 1.0}``; numbers and the like, no tensors.
    **set_timesteps_kwargs
        Further arguments of ``set_timesteps``, such as ``mu``.

    Returns
    -------
    SamplerTables
        The recurrence; all of its tables are float64, CPU.

    Raises
    ------
    TypeError
        For an object that is no scheduler.
    ValueError
        For a scheduler that is not affine (clipping, thresholding, a learned variance, draws that are not normal
        noise), for one that was changed by hand, and for whatever the scheduler itself refuses, with its own reason.
    """
    check_is_scheduler(scheduler)
    check_settings(scheduler)
    check_step(scheduler, step_kwargs or {})
    check_count(num_inference_steps)
    asked = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas}
    settings = {name: value for name, value in asked.items() if value is not None}
    check_timesteps(scheduler, {**settings, **set_timesteps_kwargs})
    recipe = _Recipe(scheduler, {**settings, **set_timesteps_kwargs}, dict(step_kwargs or {}))
    if not settings:
        recipe = _as_it_was_set(recipe)
    recipe.check_unchanged()
    return _probed(recipe)


def tables_as_set(scheduler: Any, timesteps: Sequence[Any], step_kwargs: Mapping[str, Any]) -> SamplerTables:
    """As :func:`sampler_tables`, for a scheduler whose timesteps are set, and the loop over some timesteps.

    Raises
    ------
    ValueError
        As for :func:`sampler_tables`.
    """
    check_is_scheduler(scheduler)
    check_settings(scheduler)
    check_step(scheduler, step_kwargs)
    return _probed(_AsSet(scheduler, {}, dict(step_kwargs), tuple(timesteps)))


@dataclass(frozen=True)
class _Pass:
    """Inputs and sample ``(K + 1, *image)``, states ``(K, *image)``, and the clean images that the steps returned."""

    inputs: Tensor
    states: Tensor
    clean: list[Tensor | None]


@dataclass(frozen=True)
class _Recipe:
    """How to make copies of a scheduler that are ready to step."""

    scheduler: Any
    settings: Mapping[str, Any]
    step_kwargs: Mapping[str, Any]

    @property
    def name(self) -> str:
        return type(self.scheduler).__name__

    @cached_property
    def plain(self) -> Any:
        """A new scheduler of the same configuration; not to be stepped."""
        config = self.scheduler.config
        # The attributes and not the entries: that is what ``scheduler.config.clip_sample = False`` changes, and what
        # the scheduler steps by. Without the list of values that nobody chose, since from_config would drop them.
        effective = {name: getattr(config, name, value) for name, value in config.items()}
        effective.pop("_use_default_values", None)
        made = self._own(lambda: type(self.scheduler).from_config(copy.deepcopy(effective)))
        if hasattr(made, "set_shift") and hasattr(self.scheduler, "shift"):
            made.set_shift(self.scheduler.shift)  # the one setting with a method of its own
        return made

    @cached_property
    def planned(self) -> Any:
        """One with its timesteps set; not to be stepped."""
        made = copy.deepcopy(self.plain)
        self._own(lambda: made.set_timesteps(**copy.deepcopy(dict(self.settings))))
        return made

    @property
    def timesteps(self) -> Sequence[Any]:
        """Those of the loop."""
        found: Sequence[Any] = self.planned.timesteps
        return found

    def ready(self) -> Any:
        """One to be stepped. A copy, since some constructors take longer than all of the steps."""
        return copy.deepcopy(self.planned)

    def run(self, start: Tensor, outputs: Iterable[Tensor], draws: Draws) -> _Pass:
        """The loop of the pipelines."""
        return self._own(lambda: self._looped(self.ready(), start, outputs, draws))

    def _looped(self, scheduler: Any, x: Tensor, outputs: Iterable[Tensor], draws: Draws) -> _Pass:
        inputs, states, clean = [], [], []
        for j, (t, output) in enumerate(zip(self.timesteps, outputs, strict=True)):
            with draws.during(j):
                scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
                inputs.append(scaled.clone())  # a step may overwrite what it is given
                stepped = scheduler.step(output.clone(), t, x, **self.step_kwargs)
            x = stepped.prev_sample if hasattr(stepped, "prev_sample") else stepped[0]
            if x.shape != output.shape:
                raise NotAffineError(
                    f"its step returns shape {tuple(x.shape)} for images of shape {tuple(output.shape)}"
                )
            states.append(x.clone())
            clean.append(getattr(stepped, "pred_original_sample", None))
        return _Pass(torch.stack([*inputs, x]).double(), torch.stack(states).double(), clean)

    def _own(self, call: Callable[[], _T]) -> _T:
        """What a scheduler refuses, it refuses for its own reason."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # some schedulers use numpy as it was
                return call()
        except NotAffineError as refused:
            raise ValueError(f"{self.name} is no affine recurrence: {refused}") from None
        except Exception as error:  # a stranger's code may raise anything
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            raise ValueError(f"{self.name} cannot be stepped as it is set: {reason}") from error

    def check_unchanged(self) -> None:
        """Whether the scheduler steps with what its configuration says, which is all that a copy knows."""
        for name, value in vars(self.scheduler).items():
            if callable(value) and callable(getattr(type(self.scheduler), name, None)):
                raise ValueError(f"{self.name}: its {name} was replaced by hand; derive a class that has it instead")
        before, after = vars(self.plain), vars(self.planned)
        for name, value in before.items():
            fixed = isinstance(value, (Tensor, np.ndarray, float, str)) and _same(after.get(name), value)
            if fixed and not _same(getattr(self.scheduler, name, None), value):
                raise ValueError(
                    f"{self.name}: its {name} was changed by hand and is not that of its configuration; make a "
                    "scheduler whose configuration says what it steps with"
                )


@dataclass(frozen=True)
class _AsSet(_Recipe):
    """Copies of a scheduler as it is, for a loop over some timesteps."""

    steps: tuple[Any, ...] = ()

    @property
    def plain(self) -> Any:
        return self.scheduler

    @property
    def planned(self) -> Any:
        return self.scheduler

    @property
    def timesteps(self) -> Sequence[Any]:
        return self.steps


def _probed(recipe: _Recipe) -> SamplerTables:
    """Counts the draws, finds the tables, and checks them."""
    scheduler = recipe.planned
    timesteps = torch.as_tensor(recipe.timesteps).detach().cpu().clone()
    count = len(timesteps)
    if count == 0:
        raise ValueError(f"{recipe.name} has no timesteps as it is set")
    counted = Draws((1, 1, 1, 1))
    nothing = torch.zeros(1, 1, 1, 1, dtype=torch.float64, device="cpu")
    recipe.run(nothing, [nothing] * count, counted)
    draws = tuple(counted.made)
    width = 1 + count + len(draws)

    scale = float(getattr(scheduler, "init_noise_sigma", 1.0))
    unit = torch.eye(width, dtype=torch.float64, device="cpu").view(width, 1, 1, 1, width)
    found = _pass(recipe, unit, scale, count)
    inputs, states = found.inputs.view(count + 1, width), found.states.view(count, width)
    _check_finite(recipe, inputs)
    _check_affine(recipe, torch.cat([inputs, states]), scale, count)

    split = (1, count, len(draws))
    starts, weights, noise = inputs.split(split, dim=1)
    own = states.split(split, dim=1)
    levels, predicted = noise_levels(scheduler, timesteps, inputs, found.clean)
    return SamplerTables(
        starts=starts[:, 0],
        weights=weights,
        noise=noise,
        states=AffineRows(own[0][:, 0], *own[1:]),
        timesteps=timesteps,
        draws=draws,
        init_noise_sigma=scale,
        prediction_type=predicted,
        levels=levels,
        scheduler=recipe.name,
    )


def _pass(recipe: _Recipe, images: Tensor, scale: float, count: int) -> _Pass:
    """Runs the scheduler with the first image as unit noise, the next as outputs, and the last as noise."""
    draws = Draws(tuple(images.shape[1:]), images[1 + count :].unbind())
    return recipe.run(scale * images[0], images[1 : 1 + count].unbind(), draws)


def _check_finite(recipe: _Recipe, inputs: Tensor) -> None:
    for j, row in enumerate(inputs):
        if not bool(row.isfinite().all()):
            last = j == len(inputs) - 1
            which = "the sample" if last else f"the input of evaluation {j}"
            final = getattr(recipe.plain.config, "final_sigmas_type", None)
            hint = f"; final_sigmas_type={final!r} may be the reason" * (last and final is not None)
            raise ValueError(f"{recipe.name} as it is set makes {which} of coefficients that are not finite{hint}")


def _check_affine(recipe: _Recipe, rows: Tensor, scale: float, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(rows.shape[1], 2, 3, 4, 5, dtype=torch.float64, generator=generator, device="cpu")
    run = _pass(recipe, images, scale, count)
    found = torch.cat([run.inputs, run.states]).flatten(1)
    flat = images.flatten(1)
    size = (rows.abs() @ flat.abs()).amax(dim=1)
    error = ((found - rows @ flat).abs().amax(dim=1) / size).max()
    if not bool(error <= AFFINE):
        raise ValueError(
            f"{recipe.name} is no affine recurrence: on random images its states differ from those of the tables by "
            f"{float(error):.1e} of their size"
        )


def _as_it_was_set(recipe: _Recipe) -> _Recipe:
    """With the number of steps that was set on the scheduler, provided that its timesteps are those of that number."""
    count = getattr(recipe.scheduler, "num_inference_steps", None)
    chosen = _Recipe(
        recipe.scheduler,
        {"num_inference_steps": DEFAULT_STEPS if count is None else count, **recipe.settings},
        recipe.step_kwargs,
    )
    model = recipe.plain if count is None else chosen.planned
    for name in ("timesteps", "sigmas"):
        theirs, own = (getattr(one, name, None) for one in (recipe.scheduler, model))
        if not _same(theirs, own):
            raise ValueError(
                f"{recipe.name}: its {name} are not those that set_timesteps({count}) sets; pass num_inference_steps, "
                "timesteps or sigmas, and what else set_timesteps was given"
            )
    return chosen


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    left, right = (np.asarray(each.detach().cpu() if isinstance(each, Tensor) else each) for each in (one, other))
    return left.shape == right.shape and bool(np.array_equal(left, right))
