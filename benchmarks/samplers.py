"""The samplers that are measured, each a problem of the bundled Fashion-MNIST model.

The network predicts ``v`` at variance-preserving inputs. ``FlowOfVelocity`` gives it to samplers of flow matching by an
exact change of coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

from fixedpoint.chains import ChainProblem
from fixedpoint_diffusion import (
    Denoiser,
    FashionMNISTModel,
    SamplerTables,
    draw_noise,
    row_seeds,
    sampler_tables,
    sampling_problem,
)

__all__ = ["JUDGED", "SAMPLERS", "SETTINGS", "FlowOfVelocity", "Sampler", "made", "named"]

BETAS: dict[str, Any] = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SETTINGS = {**BETAS, "prediction_type": "v_prediction"}


class FlowOfVelocity(Denoiser):
    """The flow ``n - x0`` of a network that predicts ``v`` at variance-preserving inputs.

    The input of a flow at the level ``s``, ``x = (1 - s) x0 + s n``, is ``r = sqrt((1 - s)^2 + s^2)`` times the
    variance-preserving input of the same signal-to-noise ratio. The network is evaluated at ``x / r`` and at the float
    timestep of that ratio, between training timesteps by linear interpolation of its logarithm; with more noise than
    the last of these has, at the last. Its ``v`` gives the clean image and the noise, hence the flow.

    Parameters
    ----------
    denoiser
        The denoiser of the network.
    signal
        ``alphas_cumprod`` of its training, shape ``(T,)``.
    """

    def __init__(self, denoiser: Denoiser, signal: Tensor) -> None:
        self.denoiser, self.rows = denoiser, denoiser.rows
        self.total = len(signal)
        self.log_snr = (signal.log() - (-signal).log1p()).double()

    def predict(self, x: Tensor, timestep: Tensor, row: Tensor) -> Tensor:
        level = timestep.double() / self.total
        size = ((1 - level) ** 2 + level**2).sqrt()
        a, b, r = (each.to(x).view(-1, *[1] * (x.ndim - 1)) for each in ((1 - level) / size, level / size, size))
        vp = x / r
        v = self.denoiser.predict(vp, self.timesteps(level), row)
        return (b * vp + a * v) - (a * vp - b * v)

    def timesteps(self, level: Tensor) -> Tensor:
        """The float training timesteps of the signal-to-noise ratio at levels of a flow, float32."""
        table = self.log_snr.to(level.device)
        wanted = 2 * ((1 - level).log() - level.log())
        wanted = wanted.clamp(float(table[-1]), float(table[0]))
        # The table falls; searchsorted requires one that rises.
        above = torch.searchsorted(-table, -wanted).clamp(1, self.total - 1)
        share = (table[above - 1] - wanted) / (table[above - 1] - table[above])
        return (above - 1 + share).float()

    def quick_batch(self, device: torch.device) -> int | None:
        return self.denoiser.quick_batch(device)

    def cost_key(self) -> tuple[object, Any]:
        return self.denoiser.cost_key()


@dataclass(frozen=True)
class Sampler:
    """A scheduler and its number of steps; ``limits``: rounds to 1e-1, 1e-2 and 1e-3 that it should not exceed."""

    name: str
    scheduler: Callable[[], Any]
    steps: int
    limits: tuple[int, int, int] | None = None
    flow: bool = False

    def __str__(self) -> str:
        return f"{self.name}, N = {self.steps}"

    def tables(self) -> SamplerTables:
        """Its recurrence."""
        return sampler_tables(self.scheduler(), self.steps)

    def problem(
        self, images: int, seed: int = 0, *, device: str = "cpu", model: FashionMNISTModel | None = None
    ) -> ChainProblem:
        """The problem of sampling images, the classes in turn."""
        network = FashionMNISTModel() if model is None else model
        schedule = network.own_schedule
        assert schedule is not None
        plain = network.denoiser(schedule, images, device)
        denoiser = FlowOfVelocity(plain, schedule.alphas_cumprod) if self.flow else plain
        return self.problem_of(denoiser, network.event_shape, images, seed, device)

    def problem_of(
        self, denoiser: Denoiser, shape: tuple[int, ...], images: int, seed: int = 0, device: str = "cpu"
    ) -> ChainProblem:
        """The problem of sampling from a denoiser that predicts what the scheduler takes: ``v``, or the flow."""
        tables = self.tables()
        draws = len(tables.draws) if tables.stochastic else 0
        x, noise = draw_noise(row_seeds(seed, images), shape, draws, device=device)
        return sampling_problem(denoiser, self.scheduler(), x, num_inference_steps=self.steps, noise=noise)


def made(kind: str, **settings: Any) -> Callable[[], Any]:
    """A function that makes a scheduler of diffusers with the noise levels of the model."""
    return lambda: getattr(diffusers, kind)(**{**SETTINGS, **settings})


DPM, UNIPC = made("DPMSolverMultistepScheduler", solver_order=2), made("UniPCMultistepScheduler", solver_order=2)

SAMPLERS: dict[str, Sampler] = {
    "2m-20": Sampler("DPM-Solver++ 2M", DPM, 20, (7, 9, 10)),
    "2m-50": Sampler("DPM-Solver++ 2M", DPM, 50, (7, 10, 11)),
    "unipc-20": Sampler("UniPC", UNIPC, 20, (7, 9, 10)),
    "euler-25": Sampler("Euler Karras", made("EulerDiscreteScheduler", use_karras_sigmas=True), 25, (6, 9, 11)),
    "heun-18": Sampler("Heun Karras", made("HeunDiscreteScheduler", use_karras_sigmas=True), 18, (8, 12, 14)),
    "flow-28": Sampler(
        "flow matching, shift 3",
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        28,
        (6, 8, 10),
        flow=True,
    ),
    "euler-a-25": Sampler("Euler ancestral", made("EulerAncestralDiscreteScheduler"), 25, (8, 10, 12)),
    "sde-20": Sampler(
        "DPM-Solver++ 2M SDE",
        made("DPMSolverMultistepScheduler", solver_order=2, algorithm_type="sde-dpmsolver++"),
        20,
        (10, 12, 13),
    ),
    "plms-20": Sampler("PLMS", made("PNDMScheduler", skip_prk_steps=True), 20),
    "lms-20": Sampler("LMS Karras", made("LMSDiscreteScheduler", use_karras_sigmas=True), 20),
    "ddim-50": Sampler("DDIM", made("DDIMScheduler", clip_sample=False), 50),
}


# Those whose reported errors are compared with the true ones.
JUDGED = ("2m-20", "unipc-20", "euler-25", "heun-18", "flow-28", "sde-20")


def named(names: list[str] | None, default: tuple[str, ...] = tuple(SAMPLERS)) -> dict[str, Sampler]:
    """The samplers of some names; a ``ValueError`` names those that there are not."""
    if unknown := [name for name in names or () if name not in SAMPLERS]:
        raise ValueError(f"no sampler {', '.join(unknown)}; there are {', '.join(SAMPLERS)}")
    return {name: SAMPLERS[name] for name in names or default}
