"""The task ``recurrent-network``: runs a random cell over random sequences.

Recurrent weights are Gaussian, scaled to a given spectral radius. With a spectral radius below 1, an Elman network
without input forgets its start; 1 is the boundary. Input saturates the units and makes the network forget faster.
(Jaeger 2001, "The echo state approach to analysing and training recurrent neural networks".)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.options import option
from fixedpoint_sequences.recurrent import recurrent_problem
from fixedpoint_sequences.task import SequenceTask

__all__ = ["RecurrentNetwork"]


@dataclass(frozen=True)
class RecurrentNetwork(SequenceTask):
    """A recurrent network with random weights over sequences of normal inputs, from the state zero."""

    cell: Literal["tanh", "gru"] = option("tanh", help="Elman's cell, or the gated recurrent unit")
    size: int = option(16, ge=1, help="d: units of the network")
    features: int = option(4, ge=1, help="unknowns of an input")
    spectral_radius: float = option(
        0.9, ge=0.0, help="spectral radius of the recurrent weights, for a GRU of each gate"
    )
    input_scale: float = option(0.1, ge=0.0, help="standard deviation of the inputs; small ones saturate no unit")

    def problem(self, seed: int) -> ChainProblem:
        generator = torch.Generator().manual_seed(seed)
        cell = self._cell(generator)
        inputs = [self.input_scale * _normal(generator, self.length, self.features) for _ in range(self.batch)]
        dtype = getattr(torch, self.dtype)
        return recurrent_problem(
            cell.to(self.device, dtype), torch.stack(inputs).to(self.device, dtype), max_batch=self.max_batch
        )

    def _cell(self, generator: torch.Generator) -> torch.nn.RNNCell | torch.nn.GRUCell:
        kind = torch.nn.RNNCell if self.cell == "tanh" else torch.nn.GRUCell
        # Without torch's initialisation, which would draw from the global generator.
        cell: torch.nn.RNNCell | torch.nn.GRUCell = torch.nn.utils.skip_init(
            kind, self.features, self.size, dtype=torch.float64
        ).requires_grad_(False)
        gates = cell.weight_hh.shape[0] // self.size
        cell.weight_hh.copy_(torch.cat([self._recurrent_weight(generator) for _ in range(gates)]))
        cell.weight_ih.copy_(_normal(generator, *cell.weight_ih.shape) / self.features**0.5)
        cell.bias_ih.copy_(0.1 * _normal(generator, *cell.bias_ih.shape))
        cell.bias_hh.zero_()
        return cell

    def _recurrent_weight(self, generator: torch.Generator) -> Float[Tensor, "d d"]:
        """A Gaussian matrix scaled to the spectral radius."""
        weight = _normal(generator, self.size, self.size)
        scaled: Tensor = weight * (self.spectral_radius / torch.linalg.eigvals(weight).abs().amax())
        return scaled


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
