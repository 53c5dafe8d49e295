"""Which samplers have an inverse that can be found: those whose every step depends on the input before it alone."""

from __future__ import annotations

import torch

from fixedpoint_diffusion.samplers.recurrence import SamplerTables

__all__ = ["check_invertible"]

# A step that keeps less of the noise in its input than this share of the noise in its output forgets its input.
_KEEPS = 1e-3


def check_invertible(tables: SamplerTables, noise: bool) -> None:
    """Refuse a sampler without an inverse.

    Parameters
    ----------
    tables
        The sampler.
    noise
        Whether the noise that its steps add is given.

    Raises
    ------
    ValueError
        For a sampler with a memory, whose result does not determine its start; for one whose steps replace the noise of
        their input, as those of consistency models do; for a stochastic one without its noise. The message says what to
        do.
    """
    name = tables.scheduler
    if tables.history != 1:
        raise ValueError(
            f"{name} makes its steps of several evaluations, so that an image alone does not lead back to one start; "
            "a scheduler without a memory can be inverted: DDIMScheduler, say, or EulerDiscreteScheduler"
        )
    if _forgets(tables):
        raise ValueError(
            f"{name} replaces the noise of its input at every step, so that its start cannot be found from an image; "
            "with the same noise levels, DDIMScheduler can be inverted"
        )
    if tables.stochastic and not noise:
        raise ValueError(
            f"{name} as it is set adds noise at every step; give this noise, or invert a deterministic scheduler such "
            "as DDIMScheduler"
        )


def _forgets(tables: SamplerTables) -> bool:
    """Whether the steps before the last keep nothing of the noise in their input.

    With ``u = s D + r e``, the clean image ``D`` and the noise ``e`` that an output implies, the next input is ``p D +
    k e`` and new noise; ``k`` follows from the coefficients of ``u`` and of the output.
    """
    form, levels = tables.local, tables.levels
    if form is None or levels is None or tables.evaluations < 2:
        return False
    share = form.outputs[:, 0] / levels.clean_output  # p - k s / r
    kept = levels.noise * (form.inputs[:, 0] - share * levels.clean_input)
    return bool((kept[:-1].abs() <= _KEEPS * levels.noise[1:].clamp(min=torch.finfo(torch.float64).tiny)).all())
