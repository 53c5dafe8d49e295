"""Maps of one number, as users of fixed-point functions report them; two of them raise or turn complex."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy.optimize import brentq

from map_suite.suite import Map, Vector

__all__ = ["maps"]

_RATE = 3.7477525683


def maps() -> Iterator[Map]:
    yield _scalar(
        "log-ratio",
        "issue 5460 of SciPy, a map of logarithms with the fixed point 1.3, in numpy",
        _log_ratio(np.log),
        (1.001, 2.9, 1.05),
        "numpy",
        "between 1 and 3; NaN elsewhere",
        (1.2, 1.5),
    )
    yield _scalar(
        "log-ratio-float",
        "issue 5460 of SciPy, the same with the module math",
        _log_ratio(math.log),
        (1.001, 2.9, 1.05),
        "float",
        "between 1 and 3; raises ValueError (math domain error) elsewhere",
        (1.2, 1.5),
    )
    yield _scalar(
        "power-float",
        "a power of a float with the fixed point 1.5, as users report it beside issue 5460 of SciPy",
        lambda x: x**0.9 * 1.5**0.1,
        (0.001, 1e6, 0.3),
        "float",
        "above 0; a complex number elsewhere",
        (1.4, 1.6),
    )
    yield _scalar(
        "kepler",
        "Kepler's equation, mean anomaly 0.2, eccentricity 0.95 (Danby 1988, section 6.6)",
        lambda x: 0.2 + 0.95 * np.sin(x),
        (0.2, 100.0, 3.0),
        "numpy",
        "all numbers",
        (0.1, 2.5),
    )
    yield _scalar(
        "colebrook",
        "friction in a rough pipe, Reynolds number 1e5, roughness 1e-3 (Colebrook 1939), for 1 / sqrt(f)",
        lambda x: -2 * math.log10(1e-3 / 3.7 + 2.51e-5 * x),
        (8.0, 1e4, 0.5),
        "float",
        "above -10.8; raises ValueError elsewhere",
        (1.0, 20.0),
    )


def _log_ratio(log: Callable[[float], float]) -> Callable[[float], float]:
    def f(n: float) -> float:
        with np.errstate(all="ignore"):
            return log(3 / n) / log(_RATE * n / (n - 1)) + 1

    return f


def _scalar(
    name: str,
    source: str,
    f: Callable[[float], float],
    starts: tuple[float, float, float],
    kind: str,
    domain: str,
    bracket: tuple[float, float],
) -> Map:
    def exact() -> Vector:
        return np.array([brentq(lambda x: float(f(x)) - x, *bracket, xtol=1e-15, rtol=1e-15)])

    begin, far, other = (np.array([start]) for start in starts)
    return Map(name, source, f, (begin, far, other), kind=kind, domain=domain, exact=exact)  # type: ignore[arg-type]
