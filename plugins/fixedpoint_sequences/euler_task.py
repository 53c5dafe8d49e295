"""The task ``euler-ode``: trajectories of a known vector field by the explicit Euler method."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.options import option
from fixedpoint_sequences.euler import euler_problem
from fixedpoint_sequences.fields import Decay, Lorenz, LotkaVolterra, VanDerPol
from fixedpoint_sequences.task import SequenceTask

__all__ = ["EulerODE"]


@dataclass(frozen=True)
class EulerODE(SequenceTask):
    """Trajectories of a vector field from random starts, on a uniform grid of times."""

    field: Lorenz | VanDerPol | LotkaVolterra | Decay = option(factory=Lorenz, help="the vector field")
    duration: float = option(2.0, gt=0.0, help="T: the time covered; a step is T / N long")
    spread: float = option(0.1, ge=0.0, help="standard deviation of the starts around the centre of the field")

    def problem(self, seed: int) -> ChainProblem:
        generator = torch.Generator().manual_seed(seed)
        centre = self.field.centre
        # Drawn row by row, so that a row does not depend on the number of rows.
        noise = [
            torch.randn(len(centre), generator=generator, dtype=torch.float64, device="cpu") for _ in range(self.batch)
        ]
        starts = (centre + self.spread * torch.stack(noise)).to(self.device, getattr(torch, self.dtype))
        times = torch.linspace(0.0, self.duration, self.length + 1, dtype=torch.float64, device="cpu")
        return euler_problem(self.field, times.to(self.device), starts, max_batch=self.max_batch)
