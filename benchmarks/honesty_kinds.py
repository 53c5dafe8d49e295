"""Kinds of input on which a wrong claim or a wrong gradient is most likely, each with an independent reference.

``KINDS`` has a function for each kind: it draws a case, solves it, and returns a :class:`Verdict`. No solver of this
library computes the references. ``benchmarks/honesty.py`` draws from these kinds. The docstring of each function says
what is expected.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fixedpoint
from fixedpoint import Termination
from fixedpoint.layers import EquilibriumLayer

__all__ = ["KINDS", "Verdict"]

QUASI_NEWTON = ("broyden", "anderson", "auto", "newton-krylov", "anderson-type1", "aitken", "squarem")
STEPPING = ("picard", "anderson", "broyden", "aitken", "squarem", "anderson-type1")


@dataclass(frozen=True)
class Verdict:
    """Numbers of rows reported as converged and of false ones among them; the same for gradients and wrong ones."""

    claimed: int = 0
    false: int = 0
    gradients: int = 0
    wrong: int = 0


def equations_without_roots(r: random.Random) -> Verdict:
    """No row may be reported as a root, except where ``g`` underflows to zero at the start."""
    least = 10 ** -r.uniform(0, 1)
    shape = r.choice(
        [
            lambda x: x * x + 1,
            lambda x: x * x + least,
            torch.exp,
            lambda x: torch.exp(-x * x),
            torch.cosh,
            torch.sigmoid,
            lambda x: torch.atan(x) + 2,
            lambda x: torch.sqrt(x * x + 1),
            lambda x: torch.log(2 + x * x),
            lambda x: torch.where(x < 0, -1.0, 2.0).to(x),
            lambda x: 1 / (1 + x * x),
            torch.nn.functional.softplus,
        ]
    )
    g, z0 = _moved(r, shape)
    sign = r.choice([None, None, 1.0, -1.0])
    found = fixedpoint.find_root(g, z0, solver=r.choice(QUASI_NEWTON), sign=sign, rtol=_rtol(r, z0), max_rounds=60)
    claimed = found.converged & (g(z0)[:, 0] != 0).numpy()
    return Verdict(int(claimed.sum()), int(claimed.sum()))


def equations_with_roots(r: random.Random) -> Verdict:
    """Every row that is reported as a root must be close to one."""
    shape, roots = r.choice(
        [
            (lambda x: x**3 - 5, [5 ** (1 / 3)]),
            (lambda x: torch.exp(x) - 10, [math.log(10)]),
            (lambda x: torch.cos(x) - x, [0.7390851332151607]),
            (lambda x: torch.atan(x - 1), [1.0]),
            (lambda x: x * x - 2, [math.sqrt(2), -math.sqrt(2)]),
            (lambda x: (x - 3) ** 3, [3.0]),
            (lambda x: x - 1e5, [1e5]),
        ]
    )
    shift, width = r.choice([0.0, r.uniform(-20, 20)]), 10 ** r.uniform(-3, 3)
    g, z0 = _moved(r, shape, shift, width)
    rtol = _rtol(r, z0)
    found = fixedpoint.find_root(g, z0, solver=r.choice(QUASI_NEWTON), rtol=rtol, max_rounds=60)
    z = found.z[:, 0].double().numpy()
    wanted = np.array([(root + shift) * width for root in roots])
    off = np.abs(z[:, None] - wanted).min(axis=1)
    # At a root of multiplicity three, the distance is three times the step, and the value is lost in rounding.
    slack = 20 * rtol * np.abs(z) + 200 * torch.finfo(z0.dtype).eps ** (
        1 / 3 if len(roots) and roots[0] == 3.0 else 1
    ) * (np.abs(z) + width)
    return Verdict(int(found.converged.sum()), int((found.converged & (off > slack)).sum()))


def runaway_maps(r: random.Random) -> Verdict:
    """Maps without a fixed point: no row may converge that has run away from its first two points.

    Running away means growing to four times their size, or to twice their size without being within the tolerance of
    that size. Near its start a row may truly be within its tolerance.
    """
    step = 10 ** r.uniform(-2, 2)
    f = r.choice(
        [
            lambda z: z + step,
            lambda z: z - step,
            lambda z: torch.sqrt(z * z + step),
            lambda z: z + step / (1 + z.abs()),
            lambda z: z + step * torch.log(2 + z.abs()),
            lambda z: 1.001 * z.abs() + step,
        ]
    )
    z0 = r.choice([0.0, 1.0, 10.0]) * torch.rand(3, r.randint(1, 4), generator=_generator(r), dtype=_dtype(r))
    solver = r.choice([*STEPPING, "auto", "newton-krylov"])
    rtol, rounds = 10 ** -r.uniform(2, 7), r.choice([40, 100])
    found = fixedpoint.solve(f, z0, solver=solver, rtol=rtol, max_rounds=rounds)
    size, first = found.z.norm(dim=1), torch.maximum(z0.norm(dim=1), f(z0).norm(dim=1))
    wide = (f(found.z) - found.z).norm(dim=1) > rtol * first
    claimed = found.converged & ((size > 4 * first) | ((size > 2 * first) & wide)).numpy()
    return Verdict(int(found.converged.sum()), int(claimed.sum()))


def slow_maps(r: random.Random) -> Verdict:
    """Plain iteration that converges slowly, or after a rise, must not be reported as stalled; claims must hold."""
    rate = 1 - 10 ** -r.uniform(1, 2)
    dtype, rtol = torch.float64, 10 ** -r.uniform(3, 6)
    growth = r.random() < 0.5
    gain = r.uniform(0.1, 0.5)
    z0 = torch.full((1, 1), 10 ** -r.uniform(1, 5) if growth else 0.0, dtype=dtype)

    def f(z: Tensor) -> Tensor:
        return z + gain * z * (1 - z) if growth else rate * z + 1

    relaxation = 1.0 if growth else r.choice([1.0, 0.5])
    found = fixedpoint.solve(f, z0, solver={"name": "picard", "relaxation": relaxation}, rtol=rtol, max_rounds=2000)
    stalled = found.status[0].label == "stalled"
    off = abs(float(f(found.z) - found.z)) > rtol * abs(float(f(found.z))) * (1 + 1e-9)
    return Verdict(1, int(stalled or (bool(found.converged.all()) and off)))


def warm_starts(r: random.Random) -> Verdict:
    """``z = z W + b``, each row from the solution, near it, or zero: gradients must equal the closed form."""
    size, rows = r.randint(1, 6), r.randint(1, 4)
    weight = _contraction(r, size)
    offset = torch.randn(rows, size, generator=_generator(r), dtype=torch.float64)
    inverse = torch.linalg.inv(torch.eye(size, dtype=torch.float64) - weight)
    solved = offset @ inverse
    wrong_by = torch.tensor([[r.choice([0.0, 1.0, 10 ** -r.uniform(1, 14)])] for _ in range(rows)], dtype=torch.float64)
    start = solved + wrong_by * torch.randn(rows, size, generator=_generator(r), dtype=torch.float64)
    rtol = 10 ** -r.uniform(4, 11)
    gradient = r.choice(["implicit", "unrolled", "checkpointed-unrolled"])
    w, b = weight.clone().requires_grad_(), offset.clone().requires_grad_()
    with torch.enable_grad():
        found = fixedpoint.solve(
            lambda z: z @ w + b, start, solver=r.choice(STEPPING), gradient=gradient, rtol=rtol, max_rounds=500,
            rows="independent",
        )  # fmt: skip
        g = torch.randn(rows, size, generator=_generator(r), dtype=torch.float64)
        g = g * torch.from_numpy(found.converged).unsqueeze(1)
        one = torch.autograd.grad((g * found.z).sum(), (w, b)) if found.state.requires_grad else None
        w2, b2 = weight.clone().requires_grad_(), offset.clone().requires_grad_()
        other = torch.autograd.grad(
            (g * (b2 @ torch.linalg.inv(torch.eye(size, dtype=torch.float64) - w2))).sum(), (w2, b2)
        )
    if not found.converged.any():
        return Verdict()
    condition = float(torch.linalg.matrix_norm(inverse, 2)) * (1 + float(torch.linalg.matrix_norm(weight, 2)))
    size_of = sum(float(each.norm()) ** 2 for each in other) ** 0.5
    off = math.inf if one is None else sum(float((a - c).norm()) ** 2 for a, c in zip(one, other, strict=True)) ** 0.5
    bad = off > (50 * rtol * condition**2 + 1e-11 * condition**2) * max(size_of, 1e-300)
    return Verdict(int(found.converged.sum()), 0, 1, int(bad))


class _Memory(nn.Module):
    """A cell with memory tokens that every row attends to."""

    def forward(self, z: Tensor, x: Tensor, memory: Tensor) -> Tensor:
        return 0.3 * z + torch.softmax(z @ memory.T, -1) @ memory * 0.4 + x


class _Mixing(nn.Module):
    """Cells whose rows depend on one another."""

    def __init__(self, how: str, rows: int) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("adjacency", torch.eye(rows).roll(1, 0).double())

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        if self.how == "graph":
            return 0.9 * self.adjacency.to(z) @ z + x
        if self.how == "normalised":
            return 0.5 * (z - z.mean(0)) / (z.std(0) + 0.5) + x
        return 0.5 * torch.softmax(z @ z.T / 4, -1) @ z + x


def shared_inputs(r: random.Random) -> Verdict:
    """A shared memory of about as many tokens as the batch has rows, declared or not: claims hold on the batch."""
    rows, size = r.randint(2, 8), r.randint(2, 5)
    generator = _generator(r)
    x = torch.randn(rows, size, generator=generator) * torch.logspace(-2, 1, rows).unsqueeze(1)
    memory = torch.randn(rows + r.choice([-1, 0, 0, 0, 1]), size, generator=generator)
    stated = r.random() < 0.3
    rule = Termination(rtol=10 ** -r.uniform(2, 5), max_rounds=200)
    layer = EquilibriumLayer(
        _Memory(), solver=r.choice(STEPPING), training=rule, evaluation=rule, on_failure="ignore",
        shared=["memory"] if stated else None,
    ).train(r.random() < 0.5)  # fmt: skip
    return _on_the_whole(r, layer, rule, (x,), {"memory": memory} if r.random() < 0.5 else (memory,))


def mixed_rows(r: random.Random) -> Verdict:
    """Cells that mix rows: a row reported as converged must be within the tolerance on the whole batch."""
    rows, size = r.randint(2, 8), r.randint(2, 5)
    x = torch.randn(rows, size, generator=_generator(r)) * torch.logspace(-2, 1, rows).unsqueeze(1)
    rule = Termination(rtol=10 ** -r.uniform(2, 5), max_rounds=200)
    cell = _Mixing(r.choice(["graph", "normalised", "attention"]), rows)
    layer = EquilibriumLayer(
        cell, solver=r.choice(STEPPING), training=rule, evaluation=rule, on_failure="ignore",
        rows=r.choice(["independent", "independent", "joint"]),
    ).train(r.random() < 0.5)  # fmt: skip
    return _on_the_whole(r, layer, rule, (x,), ())


def static_buffers(r: random.Random) -> Verdict:
    """A function that fills one to four buffers in turn: same results, bit for bit, and calls as with new memory."""
    size, rows = r.randint(1, 30), r.randint(1, 3)
    weight = _contraction(r, size)
    offset = torch.randn(rows, size, generator=_generator(r), dtype=torch.float64)
    solver = r.choice([*QUASI_NEWTON, "picard"])
    count, one = r.randint(1, 4), r.random() < 0.5
    large = torch.empty(count, rows, size, dtype=torch.float64)
    buffers = list(large) if one else [torch.empty(rows, size, dtype=torch.float64) for _ in range(count)]
    calls = [0, 0]

    def fresh(z: Tensor) -> Tensor:
        calls[0] += 1
        return torch.tanh(z @ weight) + offset

    def filled(z: Tensor) -> Tensor:
        calls[1] += 1
        return buffers[calls[1] % count].copy_(torch.tanh(z @ weight) + offset)

    z0 = torch.zeros(rows, size, dtype=torch.float64)
    wanted, found = (
        fixedpoint.solve(f, z0, solver=solver, rtol=1e-9, max_rounds=200, rows="independent") for f in (fresh, filled)
    )
    same = torch.equal(wanted.z, found.z) and calls[0] == calls[1] == found.counts.calls
    return Verdict(int(found.converged.sum()), 0 if same else int(found.converged.sum()) or 1)


def complex_states(r: random.Random) -> Verdict:
    """``z = A z + c`` and ``z = a conj(z) + c``, in torch, in numpy and as a number, against closed forms."""
    size, rtol = r.randint(1, 6), 10 ** -r.uniform(4, 10)
    rng = np.random.default_rng(r.randrange(10**6))
    matrix = rng.standard_normal((size, size)) + 1j * rng.standard_normal((size, size))
    matrix *= r.uniform(0.1, 0.95) / np.linalg.norm(matrix, 2)
    c = rng.standard_normal(size) + 1j * rng.standard_normal(size)
    solver = r.choice([*QUASI_NEWTON, "picard"])
    if r.random() < 0.5:
        a = r.uniform(0.1, 0.9) * np.exp(1j * r.uniform(0, 6))
        right = (c + a * c.conj()) / (1 - abs(a) ** 2)
        gain, f = abs(a), lambda z: a * z.conj() + (c if isinstance(z, np.ndarray) else torch.from_numpy(c))
    else:
        right = np.linalg.solve(np.eye(size) - matrix, c)
        tensor, there = torch.from_numpy(matrix), torch.from_numpy(c)
        gain = float(np.linalg.norm(matrix, 2))
        f = lambda z: matrix @ z + c if isinstance(z, np.ndarray) else tensor @ z + there  # noqa: E731
    start: Any = np.zeros(size, complex)
    start = start if r.random() < 0.5 else torch.from_numpy(start)
    found = fixedpoint.solve(f, start, solver=solver, rtol=rtol, max_rounds=400)
    off = np.linalg.norm(np.asarray(found.z) - right)
    false = found.converged.all() and off > (1.01 * rtol / (1 - gain) + 1e-13) * np.linalg.norm(right) * 2
    return Verdict(int(found.converged.sum()), int(bool(false)))


def entries_of_all_sizes(r: random.Random) -> Verdict:
    """``z = rate z + (1 - rate) size`` with sizes over ninety orders of magnitude, with a tolerance for every entry."""
    count, rtol = r.randint(2, 12), 10 ** -r.uniform(2, 8)
    sizes = torch.tensor([[10 ** r.uniform(-45, 45) for _ in range(count)]], dtype=torch.float64)
    rates = torch.tensor([[r.uniform(0.05, 0.95) for _ in range(count)]], dtype=torch.float64)
    found = fixedpoint.solve(
        lambda z: rates * z + (1 - rates) * sizes, torch.ones_like(sizes), solver=r.choice(STEPPING), rtol=rtol,
        per="entry", max_rounds=400,
    )  # fmt: skip
    off = ((found.z - sizes).abs() / sizes / (1.01 * rtol / (1 - rates) + 1e-12)).max()
    return Verdict(int(found.converged.sum()), int(bool(found.converged.all()) and float(off) > 2))


def counts(r: random.Random) -> Verdict:
    """Maps with an operation that has no forward mode: all calls must be counted, and stay within the limit."""
    size, limit = r.randint(2, 20), r.randint(5, 60)
    weight = _contraction(r, size)
    calls = [0]

    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return torch.tanh(z @ weight) + 1

    def f(z: Tensor) -> Tensor:
        calls[0] += 1
        return Opaque.apply(z) if opaque else torch.tanh(z @ weight) + 1

    opaque = r.random() < 0.7
    z0 = torch.zeros(2, size, dtype=torch.float64)
    found = fixedpoint.solve(f, z0, solver=r.choice(["newton-krylov", "auto"]), rtol=1e-12, max_rounds=limit)
    honest = found.counts.calls == calls[0] and found.counts.rounds <= limit
    return Verdict(1, int(not honest))


KINDS: dict[str, Callable[[random.Random], Verdict]] = {
    "equations without roots": equations_without_roots,
    "equations with roots": equations_with_roots,
    "maps that run away": runaway_maps,
    "slow maps, errors that rise first": slow_maps,
    "warm starts, under every exact gradient": warm_starts,
    "inputs shared by all rows": shared_inputs,
    "cells that mix rows": mixed_rows,
    "static buffers": static_buffers,
    "complex states": complex_states,
    "entries of all sizes": entries_of_all_sizes,
    "counts without forward mode": counts,
}


def _on_the_whole(
    r: random.Random, layer: EquilibriumLayer, rule: Termination, inputs: tuple[Tensor, ...], more: Any
) -> Verdict:
    """The claims of a layer, checked with its cell on the whole batch."""
    positional, keywords = (inputs, more) if isinstance(more, dict) else ((*inputs, *more), {})
    with torch.set_grad_enabled(r.random() < 0.5), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        solution = layer.solve(*positional, **keywords).solution
    with torch.no_grad():
        z = solution.z.detach()
        value = layer.cell(z, *positional, **keywords)
    joint = layer.rows == "joint"
    residual, size = (each.flatten(0 if joint else 1).norm(dim=-1).double() for each in (value - z, value))
    over = residual > (rule.rtol + 64 * torch.finfo(z.dtype).eps) * size
    claimed = solution.converged
    return Verdict(int(claimed.sum()), int((over.numpy() & claimed).sum()))


def _moved(
    r: random.Random, shape: Callable[[Tensor], Tensor], shift: float | None = None, width: float | None = None
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The function ``shape`` shifted and in other units of ``g`` and ``z``, and starts for it."""
    shift = r.choice([0.0, r.uniform(-20, 20)]) if shift is None else shift
    width = 10 ** r.uniform(-3, 3) if width is None else width
    units, dtype = 10 ** r.uniform(-12, 12), _dtype(r)
    starts = [[width * r.choice([0.0, 1.0, -3.0, r.uniform(-50, 50), 10 ** r.uniform(-3, 4)])] for _ in range(3)]
    return lambda x: units * shape(x / width - shift), torch.tensor(starts, dtype=dtype)


def _contraction(r: random.Random, size: int) -> Tensor:
    """A random matrix of norm below one, symmetric or not."""
    weight = torch.randn(size, size, generator=_generator(r), dtype=torch.float64)
    weight = weight + weight.T if r.random() < 0.5 else weight
    return weight * (r.uniform(0.05, 0.97) / float(torch.linalg.matrix_norm(weight, 2)))


def _generator(r: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(r.randrange(10**6))


def _dtype(r: random.Random) -> torch.dtype:
    return r.choice([torch.float32, torch.float64])


def _rtol(r: random.Random, z0: Tensor) -> float:
    return 10 ** -r.uniform(2, 5 if z0.dtype == torch.float32 else 9)
