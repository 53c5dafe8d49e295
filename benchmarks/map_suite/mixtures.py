"""EM of a Gaussian mixture (iris) and of a hidden Markov model (earthquakes); k-means, soft and hard (digits)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from sklearn.datasets import load_digits, load_iris

from map_suite.suite import Map, Vector, fresh

__all__ = ["EARTHQUAKES", "maps"]

_COUNTS = """
13 14 8 10 16 26 32 27 18 32 36 24 22 23 22 18 25 21 21 14 8 11 14 23 18 17 19 20 22 19 13 26 13 14 22 24 21 22
26 21 23 24 27 41 31 27 35 26 28 36 39 21 17 22 17 19 15 34 10 15 22 18 15 20 15 22 19 16 30 27 29 23 20 16 21
21 25 16 18 15 18 14 10 15 8 15 6 11 8 7 18 16 13 12 13 20 15 16 12 18 15 16 13 15 16 11 11
"""
EARTHQUAKES = np.array(_COUNTS.split(), dtype=np.float64)
"""Earthquakes of magnitude 7 and over in the years 1900 to 2006 (Zucchini & MacDonald 2009, table 1.1)."""


def maps() -> Iterator[Map]:
    yield iris()
    yield from (earthquakes(2), earthquakes(3))
    yield soft_means()
    yield hard_means()


def iris() -> Map:
    """EM of three Gaussians with full covariances; the state holds weights, means and covariances as they are.

    (Dempster, Laird & Rubin 1977, section 4.3; Bishop 2006, eqs. 9.23 to 9.26.) The reference start has equal
    weights, the means of the three species, and the covariance within species, as published (Fisher 1936, "The use of
    multiple measurements in taxonomic problems"). The far start has the same means and the covariance of all flowers,
    which leads elsewhere, slowly. The random one has the means of three flowers and that covariance.
    """
    data = load_iris()
    x = data.data
    whole = np.cov(x.T, bias=True)
    within = sum(np.cov(x[data.target == k].T, bias=True) for k in range(3)) / 3
    fisher = np.array([[5.006, 3.428, 1.462, 0.246], [5.936, 2.770, 4.260, 1.326], [6.588, 2.974, 5.552, 2.026]])

    def f(z: Vector) -> Vector:
        weights, means, covariances = z[:3], z[3:15].reshape(3, 4), z[15:].reshape(3, 4, 4)
        apart = x[None] - means[:, None]
        with np.errstate(all="ignore"):  # NaN where a determinant or a weight is negative
            distance = (apart @ np.linalg.inv(covariances) * apart).sum(2)
            joint = np.log(weights)[:, None] - 0.5 * (distance + np.log(np.linalg.det(covariances))[:, None])
            share = np.exp(joint - joint.max(0))
            share /= share.sum(0)
        mass = share.sum(1)
        means = share @ x / mass[:, None]
        apart = x[None] - means[:, None]
        covariances = np.swapaxes(apart * share[:, :, None], 1, 2) @ apart / mass[:, None, None]
        return np.concatenate([mass / len(x), means.ravel(), covariances.ravel()])

    def start(means: Vector, covariance: Vector) -> Vector:
        return np.concatenate([np.full(3, 1 / 3), means.ravel(), np.tile(covariance.ravel(), 3)])

    return Map(
        name="em-iris",
        source="EM of a Gaussian mixture (Bishop 2006, eqs. 9.23 to 9.26) on iris, from the means of Fisher 1936",
        f=f,
        starts=(
            start(fisher, within),
            start(fisher, whole),
            start(x[fresh(1).choice(len(x), 3, replace=False)], whole),
        ),
        domain="weights above 0, covariances positive definite; elsewhere NaN, or no longer a mixture",
        settling=1000,
    )


def earthquakes(states: int) -> Map:
    """EM (Baum and Welch) of a hidden Markov model with Poisson counts; the state holds transitions, means, first law.

    (Zucchini & MacDonald 2009, "Hidden Markov models for time series", section 4.2.2; scaled forward and backward
    probabilities: Rabiner 1989, section V.A.) The reference starts are those of the book: means 10, 30 or 10, 20, 30,
    and probabilities of 0.1 to change. The far start has almost equal means, next to the saddle at which all are equal.
    """
    x = EARTHQUAKES
    factorials = np.array([np.log(np.arange(1, count + 1)).sum() for count in x])

    def f(z: Vector) -> Vector:
        change, means, first = z[: states**2].reshape(states, states), z[states**2 : -states], z[-states:]
        with np.errstate(all="ignore"):  # NaN where a mean is negative
            law = np.exp(x[:, None] * np.log(means) - means - factorials[:, None])
            forward, scales = np.empty_like(law), np.empty(len(x))
            for t, likelihood in enumerate(law):
                joint = (first if t == 0 else forward[t - 1] @ change) * likelihood
                scales[t] = joint.sum()
                forward[t] = joint / scales[t]
            backward = np.ones_like(law)
            for t in range(len(x) - 2, -1, -1):
                backward[t] = change @ (law[t + 1] * backward[t + 1]) / scales[t + 1]
            share = forward * backward
            pairs = change * (forward[:-1].T @ (law[1:] * backward[1:] / scales[1:, None]))
            means = share.T @ x / share.sum(0)
            return np.concatenate([(pairs / pairs.sum(1, keepdims=True)).ravel(), means, share[0]])

    def start(means: Vector, stay: float) -> Vector:
        change = np.full((states, states), (1 - stay) / (states - 1))
        np.fill_diagonal(change, stay)
        return np.concatenate([change.ravel(), means, np.full(states, 1 / states)])

    book = np.array({2: [10.0, 30.0], 3: [10.0, 20.0, 30.0]}[states])
    draws = fresh(1)
    return Map(
        name=f"em-hmm-{states}",
        source="EM of a Poisson hidden Markov model (Zucchini & MacDonald 2009, section 4.2.2), earthquakes",
        f=f,
        starts=(
            start(book, 1 - 0.1 * (states - 1)),
            start(x.mean() + 0.1 * np.arange(states), 0.5),
            start(np.sort(draws.uniform(5.0, 40.0, states)), draws.uniform(0.4, 0.95)),
        ),
        domain="probabilities above 0, means above 0; NaN where a mean is negative",
        settling=1500,
    )


def _digits(count: int) -> Vector:
    return np.asarray(load_digits().data[:count] / 16)


def _centres(x: Vector) -> tuple[Vector, Vector, Vector]:
    """Ten images drawn with seed 8; ten times the mean image, hardly told apart; ten random images."""
    nearly = x.mean(0) + 1e-2 * fresh(3).standard_normal((10, x.shape[1]))
    drawn = x[fresh(8).choice(len(x), 10, replace=False)]
    return drawn.ravel(), nearly.ravel(), fresh(1).uniform(0.0, 1.0, 10 * x.shape[1])


def _distances(x: Vector) -> Callable[[Vector], Vector]:
    squares = (x * x).sum(1)[:, None]
    return lambda centres: squares - 2 * x @ centres.T + (centres * centres).sum(1)


def soft_means() -> Map:
    """Soft k-means with stiffness 5 on 600 digits (MacKay 2003, "Information theory", algorithm 20.7)."""
    x = _digits(600)
    distances = _distances(x)

    def f(z: Vector) -> Vector:
        far = distances(z.reshape(10, -1))
        share = np.exp(-5.0 * (far - far.min(1, keepdims=True)))
        share /= share.sum(1, keepdims=True)
        return np.asarray(share.T @ x / np.maximum(share.sum(0)[:, None], 1e-9)).ravel()

    return Map("k-means-soft", "soft k-means (MacKay 2003, algorithm 20.7) on digits", f, _centres(x), settling=2000)


def hard_means() -> Map:
    """k-means on 600 digits (Lloyd 1982, "Least squares quantization in PCM"): constant in pieces, solved exactly."""
    x = _digits(600)
    distances = _distances(x)

    def f(z: Vector) -> Vector:
        centres = z.reshape(10, -1).copy()
        nearest = distances(centres).argmin(1)
        for k in range(10):
            if (nearest == k).any():
                centres[k] = x[nearest == k].mean(0)
        return centres.ravel()

    return Map("k-means-hard", "k-means (Lloyd 1982) on digits", f, _centres(x))
