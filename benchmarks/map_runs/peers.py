"""Solvers of other libraries: torchdeq, SciPy and, where they are installed, jaxopt and SUNDIALS' KINSOL.

Each is called with its defaults and tolerances that it never meets. jaxopt requires JAX; KINSOL requires the shared
libraries of SUNDIALS 6 (Debian: ``libsundials-kinsol6``, ``libsundials-nvecserial6``) where the linker finds them, or
in the folder that ``SUNDIALS_LIBRARIES`` names. jaxopt's Broyden method is left out: its line search differentiates
``f``, which is not written in JAX.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from map_suite.suite import Vector
from scipy import optimize
from torchdeq.solver import anderson_solver, broyden_solver, fixed_point_iter

from map_runs import kinsol
from map_runs.counting import MOST, Peer

__all__ = ["missing", "peers"]

_TINY = 1e-300
_Map = Callable[[Vector], Vector]


def peers() -> dict[str, Peer]:
    """The solvers of the libraries that are installed."""
    found: dict[str, Peer] = {
        "torchdeq fixed-point": partial(_torchdeq, fixed_point_iter),
        "torchdeq anderson": partial(_torchdeq, anderson_solver),
        "torchdeq broyden": partial(_torchdeq, broyden_solver),
        "scipy anderson": partial(_root, "anderson", {}),
        "scipy anderson a=1": partial(_root, "anderson", {"jac_options": {"alpha": 1.0, "M": 6}}),
        "scipy broyden1": partial(_root, "broyden1", {}),
        "scipy broyden2": partial(_root, "broyden2", {}),
        "scipy krylov": partial(_root, "krylov", {}),
        "scipy hybr": _hybr,
        "scipy df-sane": _df_sane,
        "scipy del2": _del2,
    }
    if importlib.util.find_spec("jaxopt") is not None:
        found |= {
            "jaxopt fixed-point": partial(_jaxopt, "FixedPointIteration"),
            "jaxopt anderson": partial(_jaxopt, "AndersonAcceleration"),
        }
    if kinsol.installed():
        found |= {"kinsol m=0": partial(kinsol.solve, 0), "kinsol m=5": partial(kinsol.solve, 5)}
    return found


def missing() -> list[str]:
    """The libraries that are not installed."""
    absent = [] if importlib.util.find_spec("jaxopt") is not None else ["jaxopt"]
    return absent if kinsol.installed() else [*absent, "SUNDIALS (KINSOL)"]


def _torchdeq(solver: Callable[..., Any], f: _Map, z: Vector) -> None:
    def batched(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(f(x[0].numpy())).unsqueeze(0)

    solver(batched, torch.from_numpy(z).unsqueeze(0), max_iter=MOST, tol=_TINY, stop_mode="rel")


def _defect(f: _Map) -> _Map:
    return lambda z: f(z) - z


def _root(method: str, options: dict[str, Any], f: _Map, z: Vector) -> None:
    optimize.root(_defect(f), z, method=method, options={"fatol": _TINY, "maxiter": MOST, **options})


def _hybr(f: _Map, z: Vector) -> None:
    optimize.root(_defect(f), z, method="hybr", options={"xtol": 1e-15, "maxfev": MOST})


def _df_sane(f: _Map, z: Vector) -> None:
    optimize.root(_defect(f), z, method="df-sane", options={"fatol": _TINY, "ftol": 0.0, "maxfev": MOST})


def _del2(f: _Map, z: Vector) -> None:
    optimize.fixed_point(f, z, xtol=_TINY, maxiter=MOST)


def _jaxopt(name: str, f: _Map, z: Vector) -> None:
    import jax
    import jaxopt

    jax.config.update("jax_enable_x64", True)
    logging.getLogger("jax").setLevel(logging.CRITICAL)  # the exception that ends a solve is no news

    def value(x: Any) -> Any:
        shape = jax.ShapeDtypeStruct(z.shape, jax.numpy.float64)
        return jax.pure_callback(lambda point: f(np.array(point, dtype=np.float64)), shape, x)

    solver = getattr(jaxopt, name)(value, maxiter=MOST, tol=_TINY, implicit_diff=False)
    solver.run(jax.numpy.asarray(z))
