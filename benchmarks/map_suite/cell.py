"""A trained equilibrium cell: the hidden layer of a small deep equilibrium model that recognises digits.

    z = tanh(W z + U x + b)

(Bai, Kolter & Koltun 2019, "Deep equilibrium models", section 3.) It is trained for 100 steps of Adam on 300 digits
with 10 plain iterations recorded, seed 0, which takes seconds. The map is that of one digit which it was not trained
on; the random start is standard normal, the far one a hundred times that.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from map_suite.suite import Map, fresh

__all__ = ["accuracy", "maps"]

_UNITS = 64


def maps() -> Iterator[Map]:
    weight, into, bias, _ = _trained()
    x = torch.from_numpy(load_digits().data[1500] / 16)
    offset = into @ x + bias
    draws = fresh(1).standard_normal(_UNITS)
    yield Map(
        name="equilibrium-cell",
        source="the cell of a deep equilibrium model (Bai, Kolter & Koltun 2019), trained on digits",
        f=lambda z: torch.tanh(weight @ z + offset),
        starts=(0.0 * draws, 100.0 * draws, draws),
        kind="torch",
        settling=3000,
    )


@cache
def _trained() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    digits = load_digits()
    x, y = torch.from_numpy(digits.data[:300] / 16), torch.from_numpy(digits.target[:300])
    draws = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=draws, dtype=torch.float64) / shape[-1] ** 0.5).requires_grad_()

    weight, into, bias, out = drawn(_UNITS, _UNITS), drawn(_UNITS, 64), drawn(_UNITS), drawn(10, _UNITS)
    optimiser = torch.optim.Adam([weight, into, bias, out], lr=1e-2)
    with torch.enable_grad():
        for _ in range(100):
            z, offset = torch.zeros(len(x), _UNITS, dtype=torch.float64), x @ into.T + bias
            for _ in range(10):
                z = torch.tanh(z @ weight.T + offset)
            loss = torch.nn.functional.cross_entropy(z @ out.T, y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return weight.detach(), into.detach(), bias.detach(), out.detach()


def accuracy() -> float:
    """The share of the digits 1,000 to 1,499 that the trained model recognises after 50 plain iterations."""
    weight, into, bias, out = _trained()
    digits = load_digits()
    x, y = torch.from_numpy(digits.data[1000:1500] / 16), torch.from_numpy(digits.target[1000:1500])
    z = torch.zeros(len(x), _UNITS, dtype=torch.float64)
    for _ in range(50):
        z = torch.tanh(z @ weight.T + x @ into.T + bias)
    return float(((z @ out.T).argmax(1) == y).double().mean())
