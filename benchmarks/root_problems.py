"""Systems of nonlinear equations from publications, each with its standard start.

``CLASSIC`` are the 23 problems of ``test_nonlin``, the suite of NonlinearSolve.jl (``NonlinearProblemLibrary``), in its
order and with its sizes. Most are the functions of Moré, Garbow & Hillstrom 1981 ("Testing unconstrained optimization
software"). ``Watson`` is the variant of that suite, whose first equation differs from the publication. ``SCIPY`` are
the functions on which SciPy tests its own nonlinear solvers (``scipy/optimize/tests/test_nonlin.py``).

All functions take and return float64 tensors of shape ``(..., n)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CLASSIC", "SCIPY", "Equations"]


@dataclass(frozen=True)
class Equations:
    """``g(x) = 0`` with its start, shape ``(n,)``."""

    g: Callable[[Tensor], Tensor]
    start: tuple[float, ...]

    @property
    def z0(self) -> Tensor:
        """The start, shape ``(n,)``, float64."""
        return torch.tensor(self.start, dtype=torch.float64)


def rosenbrock(x: Tensor) -> Tensor:
    first, rest = x[..., :-1], x[..., 1:]
    return torch.cat([1.0 - x[..., :1], 10.0 * (rest - first**2)], dim=-1)


def powell_singular(x: Tensor) -> Tensor:
    a, b, c, d = x.unbind(-1)
    return torch.stack([a + 10 * b, math.sqrt(5) * (c - d), (b - 2 * c) ** 2, math.sqrt(10) * (a - d) ** 2], dim=-1)


def powell_badly_scaled(x: Tensor) -> Tensor:
    a, b = x.unbind(-1)
    return torch.stack([1e4 * a * b - 1, torch.exp(-a) + torch.exp(-b) - 1.0001], dim=-1)


def wood(x: Tensor) -> Tensor:
    a, b, c, d = x.unbind(-1)
    one, two = b - a**2, d - c**2
    return torch.stack(
        [
            -200 * a * one - (1 - a),
            200 * one + 20.2 * (b - 1) + 19.8 * (d - 1),
            -180 * c * two - (1 - c),
            180 * two + 20.2 * (d - 1) + 19.8 * (b - 1),
        ],
        dim=-1,
    )


def helical_valley(x: Tensor) -> Tensor:
    a, b, c = x.unbind(-1)
    safe = torch.where(a == 0, torch.ones_like(a), a)
    turn = torch.atan(b / safe) / (2 * math.pi) + torch.where(a < 0, 0.5, 0.0)
    turn = torch.where(a == 0, 0.25 * torch.sign(b), turn)
    return torch.stack([10 * (c - 10 * turn), 10 * (torch.hypot(a, b) - 1), c], dim=-1)


def watson(x: Tensor) -> Tensor:
    n = x.shape[-1]
    t = torch.arange(1, 30, dtype=x.dtype) / 29
    order = torch.arange(1, n + 1, dtype=x.dtype)
    powers = t[:, None] ** torch.arange(n, dtype=x.dtype)  # t^(j-1)
    slope = (x[..., None, 1:] * order[1:] * powers[:, :-1]).sum(-1)
    value = (x[..., None, :] * powers).sum(-1)
    inner = (slope - value**2 - 1)[..., None] * (order - 2 * t[:, None] * value[..., None]) * powers / t[:, None]
    total = inner.sum(-2)
    a, b = x[..., 0], x[..., 1]
    own = [3 * a - 2 * a**2 + 2 * a**3, b - b**2 - 1, *(torch.zeros_like(a) for _ in range(n - 2))]
    return total + torch.stack(own, dim=-1)


def chebyquad(x: Tensor) -> Tensor:
    n = x.shape[-1]
    before, now, means = torch.ones_like(x), x, []
    for degree in range(1, n + 1):
        exact = 1.0 / (degree**2 - 1) if degree % 2 == 0 else 0.0
        means.append(now.mean(-1) + exact)
        before, now = now, 2 * x * now - before
    return torch.stack(means, dim=-1)


def brown_almost_linear(x: Tensor) -> Tensor:
    n = x.shape[-1]
    linear = x[..., :-1] + x.sum(-1, keepdim=True) - (n + 1)
    product = x[..., 0]
    for i in range(1, n):  # the derivative of torch.prod divides by x
        product = product * x[..., i]
    return torch.cat([linear, (product - 1)[..., None]], dim=-1)


def _neighbours(x: Tensor) -> tuple[Tensor, Tensor]:
    """The entries before and after every entry, 0 beyond the ends."""
    zero = torch.zeros_like(x[..., :1])
    return torch.cat([zero, x[..., :-1]], dim=-1), torch.cat([x[..., 1:], zero], dim=-1)


def _points(x: Tensor) -> tuple[float, Tensor]:
    n = x.shape[-1]
    return 1.0 / (n + 1), torch.arange(1, n + 1, dtype=x.dtype) / (n + 1)


def discrete_boundary_value(x: Tensor) -> Tensor:
    h, t = _points(x)
    before, after = _neighbours(x)
    return 2 * x + 0.5 * h**2 * (x + t + 1) ** 3 - before - after


def discrete_integral_equation(x: Tensor) -> Tensor:
    h, t = _points(x)
    cube = (x + t + 1) ** 3
    lower = (t * cube).cumsum(-1)
    upper = ((1 - t) * cube).flip(-1).cumsum(-1).flip(-1)
    return x + h * ((1 - t) * lower + t * upper) / 2


def trigonometric(x: Tensor) -> Tensor:
    n = x.shape[-1]
    k = torch.arange(1, n + 1, dtype=x.dtype)
    return n - x.cos().sum(-1, keepdim=True) + k * (1 - x.cos()) - x.sin()


def variably_dimensioned(x: Tensor) -> Tensor:
    k = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    total = (k * (x - 1)).sum(-1, keepdim=True)
    return x - 1 + k * total * (1 + 2 * total**2)


def broyden_tridiagonal(x: Tensor) -> Tensor:
    before, after = _neighbours(x)
    return (3 - 2 * x) * x + 1 - before - 2 * after


def broyden_banded(x: Tensor) -> Tensor:
    n = x.shape[-1]
    k = torch.arange(n)
    distance = k - k[:, None]
    band = ((distance >= -5) & (distance <= 1) & (distance != 0)).to(x.dtype)
    return x * (2 + 5 * x**2) + 1 - ((x * (1 + x))[..., None, :] * band).sum(-1)


def hammarling(x: Tensor) -> Tensor:
    """``X^2 = A`` for the Jordan-like ``A`` with 1e-4 on the diagonal and 1 above the first entry."""
    n = math.isqrt(x.shape[-1])
    root = x.unflatten(-1, (n, n))
    square = (root[..., :, :, None] * root[..., None, :, :]).sum(-2)
    wanted = 1e-4 * torch.eye(n, dtype=x.dtype)
    wanted[0, 1] = 1.0
    return (square - wanted).flatten(-2)


def dennis_schnabel(x: Tensor) -> Tensor:
    a, b = x.unbind(-1)
    return torch.stack([a + b - 3, a**2 + b**2 - 9], dim=-1)


def sample_18(x: Tensor) -> Tensor:
    def quotient(a: Tensor) -> Tensor:
        safe = torch.where(a == 0, torch.ones_like(a), a)
        return torch.where(a == 0, torch.zeros_like(a), -torch.expm1(-safe * safe) / safe)

    a, b = x.unbind(-1)
    return torch.stack([b**2 * quotient(a), a * quotient(b)], dim=-1)


def sample_19(x: Tensor) -> Tensor:
    return x * (x**2).sum(-1, keepdim=True)


def scalar(x: Tensor) -> Tensor:
    return x * (x - 5) ** 2


def freudenstein_roth(x: Tensor) -> Tensor:
    a, b = x.unbind(-1)
    return torch.stack([a - b**3 + 5 * b**2 - 2 * b - 13, a + b**3 + b**2 - 14 * b - 29], dim=-1)


def boggs(x: Tensor) -> Tensor:
    a, b = x.unbind(-1)
    return torch.stack([a**2 - b + 1, a - torch.cos(0.5 * math.pi * b)], dim=-1)


def chandrasekhar(x: Tensor) -> Tensor:
    n = x.shape[-1]
    mu = torch.arange(1, n + 1, dtype=x.dtype) / n
    kernel = mu[:, None] / (mu[:, None] + mu)
    return x - 1 / (1 - 0.9 * (kernel * x[..., None, :]).sum(-1) / (2 * n))


_BOUNDARY = tuple(i * (i - 11) / 121 for i in range(1, 11))

CLASSIC: dict[str, Equations] = {
    "generalised Rosenbrock": Equations(rosenbrock, (-1.2, *[1.0] * 9)),
    "Powell singular": Equations(powell_singular, (3.0, -1.0, 0.0, 1.0)),
    "Powell badly scaled": Equations(powell_badly_scaled, (0.0, 1.0)),
    "Wood": Equations(wood, (-3.0, -1.0, -3.0, -1.0)),
    "helical valley": Equations(helical_valley, (-1.0, 0.0, 0.0)),
    "Watson": Equations(watson, (0.0, 0.0)),
    "Chebyquad": Equations(chebyquad, (0.0, 2 / 3)),
    "Brown almost linear": Equations(brown_almost_linear, (0.5,) * 10),
    "discrete boundary value": Equations(discrete_boundary_value, _BOUNDARY),
    "discrete integral equation": Equations(discrete_integral_equation, _BOUNDARY),
    "trigonometric": Equations(trigonometric, (0.1,) * 10),
    "variably dimensioned": Equations(variably_dimensioned, tuple(1 - i / 10 for i in range(1, 11))),
    "Broyden tridiagonal": Equations(broyden_tridiagonal, (-1.0,) * 10),
    "Broyden banded": Equations(broyden_banded, (-1.0,) * 10),
    "Hammarling 2 by 2": Equations(hammarling, (1.0, 0.0, 0.0, 1.0)),
    "Hammarling 3 by 3": Equations(hammarling, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)),
    "Dennis & Schnabel": Equations(dennis_schnabel, (1.0, 5.0)),
    "sample problem 18": Equations(sample_18, (2.0, 2.0)),
    "sample problem 19": Equations(sample_19, (3.0, 3.0)),
    "x (x - 5)^2": Equations(scalar, (1.0,)),
    "Freudenstein & Roth": Equations(freudenstein_roth, (0.5, -2.0)),
    "Boggs": Equations(boggs, (1.0, 0.0)),
    "Chandrasekhar H": Equations(chandrasekhar, (1.0,) * 10),
}


def cubic_well(x: Tensor) -> Tensor:
    d = torch.tensor([3.0, 2.0, 1.5, 1.0, 0.5], dtype=x.dtype)
    return -d * x - 0.01 * (x**2).sum(-1, keepdim=True) * x


def identity(x: Tensor) -> Tensor:
    return x.clone()


def second_difference(x: Tensor) -> Tensor:
    before, after = _neighbours(x)
    return before - 2 * x + after - torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype)


def pressure_network(x: Tensor) -> Tensor:
    pressure = 0.5 * x**2
    return torch.cat([pressure[..., 1:] - pressure[..., :1], x.sum(-1, keepdim=True) - 4], dim=-1)


def rotated(x: Tensor) -> Tensor:
    a, b = x.unbind(-1)
    v = torch.stack([(a + 3) * (b**5 - 7) + 18, torch.sin(b * torch.exp(a) - 1)], dim=-1)
    j = torch.tensor([[-4.256, 14.7], [0.8394989, 0.59964207]], dtype=x.dtype)
    return -(torch.linalg.inv(j) * v[..., None, :]).sum(-1)


SCIPY: dict[str, Equations] = {
    "F": Equations(cubic_well, (1.0,) * 5),
    "F2": Equations(identity, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)),
    "F2_lucky": Equations(identity, (0.0,) * 6),
    "F3": Equations(second_difference, (1.0, 2.0, 3.0)),
    "F4_powell": Equations(powell_badly_scaled, (-1.0, -2.0)),
    "F5": Equations(pressure_network, (2.0, 0.0, 2.0, 0.0)),
    "F6": Equations(rotated, (-0.5, 1.4)),
}
