"""Power flow of the IEEE 14-bus network by Gauss and Seidel's method.

    V_i <- ((P_i - j Q_i) / conj(V_i) - sum_{k != i} Y_ik V_k) / Y_ii,    one bus after another

(Ward & Hale 1956; Grainger & Stevenson 1994, "Power system analysis", section 9.2.) At a bus with a generator
``Q_i`` is that of the present voltages and the magnitude is set back. The data are those of the IEEE 14-bus test case
(University of Washington archive, 1962; the numbers of MATPOWER's case14), whose solution has the published angles.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from map_suite.suite import Map, Vector, fresh

__all__ = ["ANGLES", "maps", "voltages"]

# From, to, resistance, reactance, charging, ratio of the transformer.
_BRANCHES = """
1 2 .01938 .05917 .0528 1
1 5 .05403 .22304 .0492 1
2 3 .04699 .19797 .0438 1
2 4 .05811 .17632 .0340 1
2 5 .05695 .17388 .0346 1
3 4 .06701 .17103 .0128 1
4 5 .01335 .04211 0 1
4 7 0 .20912 0 .978
4 9 0 .55618 0 .969
5 6 0 .25202 0 .932
6 11 .09498 .19890 0 1
6 12 .12291 .25581 0 1
6 13 .06615 .13027 0 1
7 8 0 .17615 0 1
7 9 0 .11001 0 1
9 10 .03181 .08450 0 1
9 14 .12711 .27038 0 1
10 11 .08205 .19207 0 1
12 13 .22092 .19988 0 1
13 14 .17093 .34802 0 1
"""
# Active and reactive load in MW and MVAr, active generation, set magnitude (0: none).
_BUSES = """
0 0 0 1.06
21.7 12.7 40 1.045
94.2 19 0 1.01
47.8 -3.9 0 0
7.6 1.6 0 0
11.2 7.5 0 1.07
0 0 0 0
0 0 0 1.09
29.5 16.6 0 0
9 5.8 0 0
3.5 1.8 0 0
6.1 1.6 0 0
13.5 5.8 0 0
14.9 5 0 0
"""
ANGLES = (0, -4.98, -12.72, -10.33, -8.78, -14.22, -13.37, -13.36, -14.94, -15.10, -14.79, -15.07, -15.16, -16.04)
"""The published angles of the voltages, in degrees."""


def maps() -> Iterator[Map]:
    admittance = np.zeros((14, 14), dtype=complex)
    for a, b, resistance, reactance, charging, ratio in _table(_BRANCHES):
        i, k, y = int(a) - 1, int(b) - 1, 1 / complex(resistance, reactance)
        admittance[i, i] += (y + 0.5j * charging) / ratio**2
        admittance[k, k] += y + 0.5j * charging
        admittance[i, k] -= y / ratio
        admittance[k, i] -= y / ratio
    admittance[8, 8] += 0.19j  # the capacitor at bus 9
    load, reactive, generated, magnitude = _table(_BUSES).T
    active, reactive = (generated - load) / 100, -reactive / 100

    def f(z: Vector) -> Vector:
        v = np.append(1.06, z[:13] + 1j * z[13:])
        with np.errstate(all="ignore"):
            for i in range(1, 14):
                current = admittance[i] @ v
                power = active[i] + 1j * (reactive[i] if magnitude[i] == 0 else (v[i] * current.conj()).imag)
                v[i] = (power.conj() / v[i].conj() - current + admittance[i, i] * v[i]) / admittance[i, i]
                if magnitude[i]:
                    v[i] *= magnitude[i] / abs(v[i])
        return np.concatenate([v[1:].real, v[1:].imag])

    flat = np.where(magnitude[1:] > 0, magnitude[1:], 1.0)
    angle = fresh(1).uniform(-0.5, 0.5, 13)
    yield Map(
        name="power-flow-14",
        source="power flow by Gauss-Seidel (Grainger & Stevenson 1994, section 9.2), IEEE 14-bus",
        f=f,
        starts=(
            np.concatenate([flat, np.zeros(13)]),
            np.concatenate([0.6 * flat, -0.6 * flat]),
            np.concatenate([flat * np.cos(angle), flat * np.sin(angle)]),
        ),
        domain="voltages other than 0; solutions with low voltages exist, too",
        settling=1500,
    )


def voltages(z: Vector) -> tuple[Vector, Vector]:
    """The magnitudes and the angles in degrees of all 14 buses, each of shape ``(14,)``."""
    v = np.append(1.06, z[:13] + 1j * z[13:])
    return np.abs(v), np.degrees(np.angle(v))


def _table(text: str) -> Vector:
    return np.array([line.split() for line in text.strip().splitlines()], dtype=np.float64)
