"""The twelve classic problems of ``fixedpoint_classic``, whose modules cite their sources, one row each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from fixedpoint.plugin import registry
from fixedpoint_classic.problem import ClassicProblem, ClassicTask
from map_suite.suite import Map, Vector, fresh

__all__ = ["maps"]

# Options of the tasks; then the far start as a function of the reference start, and the random start.
_Far = Callable[[Vector], Vector]
_Random = Callable[[Vector, np.random.Generator], Vector]
_CASES: dict[str, tuple[dict[str, object], str, _Far, _Random]] = {
    "h-equation": (
        {"size": 256, "c": (0.99,)},
        "positive functions below the pole of 1 / (1 - x)",
        lambda z: 0.0 * z + 2.5,
        lambda z, g: g.uniform(0.0, 2.0, z.shape),
    ),
    "bratu": (
        {"size": 24, "lam": (6.0,)},
        "all; e^u overflows above 700",
        lambda z: z + 1.5,
        lambda z, g: g.uniform(0.0, 1.0, z.shape),
    ),
    "linear-contraction": (
        {"size": 200, "radius": 0.99},
        "all states",
        lambda z: z + 1e6,
        lambda z, g: g.standard_normal(z.shape),
    ),
    "tanh-cell": (
        {"size": 100, "gain": 1.5},
        "all states",
        lambda z: z + 100.0,
        lambda z, g: g.uniform(-1.0, 1.0, z.shape),
    ),
    "poisson-mixture-em": (
        {},
        "0 < p < 1, means above 0; NaN elsewhere",
        lambda _: np.array([0.9, 0.2, 9.0]),
        lambda _, g: np.array([g.uniform(0.05, 0.95), g.uniform(0.1, 2.0), g.uniform(2.0, 8.0)]),
    ),
    "gaussian-mixture-em": (
        {},
        "all states: weights and variances are logarithms",
        lambda z: np.concatenate([z[:3], 3.0 * z[3:9], z[9:] + 3.0]),
        lambda z, g: np.concatenate([z[:3], z[3:9] + g.standard_normal(6), g.uniform(-1, 1, 6)]),
    ),
    "value-iteration": (
        {},
        "all states",
        lambda z: z + 1e3,
        lambda z, g: g.uniform(0.0, 20.0, z.shape),
    ),
    "pagerank": (
        {},
        "all states",
        lambda z: np.eye(len(z))[0],
        lambda z, g: g.dirichlet(np.ones(len(z))),
    ),
    "power-iteration": (
        {},
        "all but 0",
        lambda z: np.eye(len(z))[0],
        lambda z, g: g.standard_normal(z.shape),
    ),
    "nnls": (
        {},
        "all states",
        lambda z: z + 1e3,
        lambda z, g: g.uniform(0.0, 1.0, z.shape),
    ),
    "elastic-net": (
        {},
        "all states",
        lambda z: z + 1e3,
        lambda z, g: g.standard_normal(z.shape),
    ),
    "cp-als": (
        {},
        "factors whose Gram matrices are regular; else a division by 0",
        lambda z: z + 10.0,
        lambda z, g: g.standard_normal(z.shape),
    ),
}


def maps() -> Iterator[Map]:
    """The problems with seed 0; the random starts have the seed 1."""
    for name, (options, domain, far, random) in _CASES.items():
        task = registry.create("task", {"name": name, **options})
        assert isinstance(task, ClassicTask)
        problem = task.build(0)
        start = problem.initial()[0].numpy().copy()
        yield Map(
            name=name,
            source=f"fixedpoint_classic.{name.replace('-', '_')}, {options or 'its defaults'}",
            f=_single(problem),
            starts=(start, far(start), random(start, fresh(1))),
            kind="torch",
            domain=domain,
            exact=_reference(problem) if name not in ("cp-als", "power-iteration") else None,
            settling=2000,
        )


def _single(problem: ClassicProblem) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda z: problem(z.unsqueeze(0))[0]


def _reference(problem: ClassicProblem) -> Callable[[], Vector]:
    return lambda: problem.reference()[0].numpy().copy()
