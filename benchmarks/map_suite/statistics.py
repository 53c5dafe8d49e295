"""Maps of statistics and data analysis: sparse and robust regression, factorisation, scaling, medians, transport."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris

from map_suite.suite import Map, Vector, fresh

__all__ = ["maps"]


def maps() -> Iterator[Map]:
    yield lasso()
    yield sparse_logistic()
    yield robust()
    yield factors()
    yield scaling()
    yield median()
    yield sinkhorn()


def _standard(x: Vector) -> Vector:
    return np.asarray((x - x.mean(0)) / x.std(0))


def _shrunk(u: Vector, by: float) -> Vector:
    return np.asarray(np.sign(u) * np.maximum(np.abs(u) - by, 0.0))


def lasso() -> Map:
    """ISTA for the lasso on diabetes with pairwise products, 65 unknowns (Daubechies, Defrise & De Mol 2004).

    The penalty is a tenth of the smallest that makes the answer zero.
    """
    data = load_diabetes()
    x = _standard(data.data)
    pairs = [x[:, i] * x[:, j] for i in range(10) for j in range(i, 10)]
    x = _standard(np.column_stack([x, *pairs]))
    y = (data.target - data.target.mean()) / data.target.std()
    gram, moments = x.T @ x / len(x), x.T @ y / len(x)
    step = 1 / np.linalg.eigvalsh(gram)[-1]
    penalty = 0.1 * np.abs(moments).max()
    return Map(
        name="lasso-diabetes",
        source="ISTA (Daubechies, Defrise & De Mol 2004; Parikh & Boyd 2014, section 4.2), diabetes",
        f=lambda z: _shrunk(z - step * (gram @ z - moments), step * penalty),
        starts=(np.zeros(65), np.full(65, 100.0), fresh(1).standard_normal(65)),
        settling=5000,
    )


def sparse_logistic() -> Map:
    """Proximal gradients for logistic regression with an l1 penalty on the 30 measures of breast cancer.

    (Beck & Teboulle 2009, with the logistic loss.) The last unknown is the intercept, without a penalty.
    """
    data = load_breast_cancer()
    x = np.column_stack([_standard(data.data), np.ones(len(data.target))])
    y = data.target
    step = 4 / np.linalg.eigvalsh(x.T @ x / len(x))[-1]
    penalty = np.append(np.full(30, 0.05), 0.0)

    def f(z: Vector) -> Vector:
        odds = 0.5 * (1 + np.tanh(0.5 * (x @ z)))
        return _shrunk(z - step * (x.T @ (odds - y)) / len(x), step * penalty)

    return Map(
        name="logistic-cancer",
        source="ISTA (Beck & Teboulle 2009) with the logistic loss, breast cancer",
        f=f,
        starts=(np.zeros(31), np.full(31, 10.0), fresh(1).standard_normal(31)),
        settling=5000,
    )


def robust() -> Map:
    """Least absolute deviations on diabetes by reweighted least squares (Schlossmacher 1973), weights capped at 1e4."""
    data = load_diabetes()
    x = np.column_stack([_standard(data.data), np.ones(len(data.target))])
    y = data.target / data.target.std()

    def f(z: Vector) -> Vector:
        weights = 1 / np.maximum(np.abs(y - x @ z), 1e-4)
        return np.linalg.solve((x * weights[:, None]).T @ x, x.T @ (weights * y))

    least = np.linalg.lstsq(x, y, rcond=None)[0]
    return Map(
        name="irls-diabetes",
        source="reweighted least squares for absolute deviations (Schlossmacher 1973), diabetes",
        f=f,
        starts=(least, np.full(11, 100.0), fresh(1).standard_normal(11)),
        settling=3000,
    )


def factors() -> Map:
    """Non-negative factors of rank 2 of iris by multiplicative updates (Lee & Seung 2001, theorem 1), W then H.

    Extrapolated factors may be negative; nothing prevents it. Factors are determined up to the scale of each term.
    """
    x = load_iris().data
    rows, columns, rank = *x.shape, 2

    def f(z: Vector) -> Vector:
        w, h = z[: rows * rank].reshape(rows, rank), z[rows * rank :].reshape(rank, columns)
        h = h * (w.T @ x) / (w.T @ w @ h + 1e-12)
        w = w * (x @ h.T) / (w @ (h @ h.T) + 1e-12)
        return np.concatenate([w.ravel(), h.ravel()])

    size = (rows + columns) * rank
    return Map(
        name="nmf-iris",
        source="non-negative factorisation by multiplicative updates (Lee & Seung 2001, theorem 1), iris",
        f=f,
        starts=(
            fresh(0).uniform(0.5, 1.5, size),
            fresh(2).uniform(50.0, 150.0, size),
            fresh(1).uniform(0.0, 1.0, size),
        ),
        domain="factors of positive entries; a division by 0 where a sum of negative ones vanishes",
        settling=40000,
    )


def scaling() -> Map:
    """Multidimensional scaling of 60 digits to two dimensions by majorisation (SMACOF).

    (De Leeuw 1977; Borg & Groenen 2005, section 8.6, the Guttman transform with unit weights.) Solutions may be
    rotated. The reference start is classical scaling (Borg & Groenen 2005, section 12.1).
    """
    x = load_digits().data[:60] / 16
    wanted = np.linalg.norm(x[:, None] - x[None], axis=2)
    count = len(x)

    def f(z: Vector) -> Vector:
        points = z.reshape(count, 2)
        apart = np.linalg.norm(points[:, None] - points[None], axis=2)
        with np.errstate(all="ignore"):
            ratio = np.where(apart > 0, wanted / apart, 0.0)
        pull = np.diag(ratio.sum(1)) - ratio
        return np.asarray(pull @ points / count).ravel()

    centred = x - x.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    return Map(
        name="smacof-digits",
        source="multidimensional scaling by the Guttman transform (Borg & Groenen 2005, section 8.6), digits",
        f=f,
        starts=(
            (centred @ axes[:2].T).ravel(),
            100.0 * fresh(2).standard_normal(2 * count),
            fresh(1).standard_normal(2 * count),
        ),
        settling=20000,
    )


def median() -> Map:
    """The geometric median of iris (Weiszfeld 1937); a division by 0 exactly at an observation."""
    x = load_iris().data

    def f(z: Vector) -> Vector:
        weights = 1 / np.linalg.norm(x - z, axis=1)
        return np.asarray(weights @ x / weights.sum())

    return Map(
        name="weiszfeld-iris",
        source="the geometric median by Weiszfeld 1937, iris",
        f=f,
        starts=(x.mean(0), np.full(4, 1e3), fresh(1).uniform(0.0, 8.0, 4)),
        domain="all points but the observations",
    )


def sinkhorn() -> Map:
    """Entropic transport between the mean images of the digits 0 and 1, in logarithms.

    (Cuturi 2013, "Sinkhorn distances", algorithm 1; Peyre & Cuturi 2019, section 4.4.) The state is the first potential
    in units of the regularisation, 0.01 of the largest squared distance, normalised to mean zero so that it is unique.
    """
    digits = load_digits()
    images = [digits.data[digits.target == k].mean(0) + 0.05 for k in (0, 1)]
    first, second = (image / image.sum() for image in images)
    grid = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0)), axis=2).reshape(64, 2)
    cost = ((grid[:, None] - grid[None]) ** 2).sum(2)
    cost /= 0.01 * cost.max()

    def potential(given: Vector, target: Vector, costs: Vector) -> Vector:
        exponent = given[:, None] - costs
        top = exponent.max(0)
        return np.asarray(np.log(target) - top - np.log(np.exp(exponent - top).sum(0)))

    def f(z: Vector) -> Vector:
        value = potential(potential(z, second, cost), first, cost.T)
        return value - value.mean()

    return Map(
        name="sinkhorn-digits",
        source="entropic transport (Cuturi 2013, algorithm 1; Peyre & Cuturi 2019, section 4.4), mean digits",
        f=f,
        starts=(np.zeros(64), 100.0 * (np.arange(64) % 2), fresh(1).standard_normal(64)),
        settling=3000,
    )
