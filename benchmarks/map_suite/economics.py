"""Maps of economics: demand inversion, dynamic programs, consumption and saving, growth, games."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from map_suite.suite import Map, Vector, fresh

__all__ = ["maps"]


def maps() -> Iterator[Map]:
    yield demand()
    yield bus_engine()
    yield optimal_growth()
    yield endogenous_grid()
    yield growth()
    yield quantal_response()


def demand() -> Map:
    """Inversion of market shares in a random-coefficients logit model: ``d + log s - log s(d)``.

    (Berry, Levinsohn & Pakes 1995, eq. 6.8; synthetic markets in the manner of Conlon & Gortmaker 2020.)
    Five markets of 24 products, a random coefficient of standard deviation 3 on price, 100 draws a market. The mean
    utilities that made the shares are the solution. The outside good has a small share, which makes it slow.
    """
    draws = fresh(0)
    markets, products = 5, 24
    price = draws.uniform(0.0, 1.0, (markets, products)) + 1.0
    taste = 3.0 * draws.standard_normal((markets, 100))
    true = 4.0 - 2.0 * price + 0.5 * draws.standard_normal((markets, products))
    away = price[:, :, None] * taste[:, None, :]

    def shares(utility: Vector) -> Vector:
        with np.errstate(all="ignore"):  # exp overflows above 709, as it does for users
            value = np.exp(utility[:, :, None] + away)
            return np.asarray((value / (1 + value.sum(1, keepdims=True))).mean(2))

    observed = shares(true)
    logit = np.log(observed) - np.log(1 - observed.sum(1, keepdims=True))

    def f(z: Vector) -> Vector:
        utility = z.reshape(markets, products)
        with np.errstate(all="ignore"):
            return np.asarray(utility + np.log(observed) - np.log(shares(utility))).ravel()

    return Map(
        name="blp",
        source="the contraction of Berry, Levinsohn & Pakes 1995, eq. 6.8; markets as Conlon & Gortmaker 2020",
        f=f,
        starts=(logit.ravel(), np.full(markets * products, 20.0), 2.0 * fresh(1).standard_normal(markets * products)),
        domain="utilities below about 690; NaN above",
        exact=lambda: true.ravel(),
    )


def bus_engine() -> Map:
    """Replacement of bus engines: expected values by state of mileage, with the published estimates.

    (Rust 1987, "Optimal replacement of GMC bus engines", table IX, all groups: cost of replacement
    9.7558, 2.6275 a step of mileage, in thousandths, transitions .3489 and .6394; 90 states.) The discount is .99
    instead of .9999, with which plain iteration takes hundreds of thousands of rounds.
    """
    cost = 1e-3 * 2.6275 * np.arange(90)
    steps = (0.3489, 0.6394, 1 - 0.3489 - 0.6394)
    law = np.zeros((90, 90))
    for j, share in enumerate(steps):
        for i in range(90):
            law[i, min(i + j, 89)] += share

    def f(z: Vector) -> Vector:
        keep, renew = -cost + 0.99 * z, -9.7558 - cost[0] + 0.99 * z[0]
        top = np.maximum(keep, renew)
        return np.asarray(law @ (top + np.log(np.exp(keep - top) + np.exp(renew - top))))

    return Map(
        name="rust-bus",
        source="the expected value of Rust 1987, estimates of table IX, discount .99",
        f=f,
        starts=(np.zeros(90), np.full(90, 1e4), fresh(1).uniform(0.0, 100.0, 90)),
        settling=100,
    )


def optimal_growth() -> Map:
    """Value iteration of the deterministic growth model on a grid of 200 stocks, with the grid as choices.

    (Stokey & Lucas 1989, section 2.1; Aruoba & Fernandez-Villaverde 2015 for the parameters: alpha 1/3, beta .95,
    full depreciation, logarithmic utility.)
    """
    alpha, beta = 1 / 3, 0.95
    steady = (alpha * beta) ** (1 / (1 - alpha))
    stock = np.linspace(0.5 * steady, 1.5 * steady, 200)
    left = stock[:, None] ** alpha - stock[None]
    reward = (1 - beta) * np.log(left)

    return Map(
        name="value-iteration-growth",
        source="value iteration of the growth model (Stokey & Lucas 1989, section 2.1; Aruoba et al. 2015)",
        f=lambda z: (reward + beta * z[None]).max(1),
        starts=(np.zeros(200), np.full(200, 1e3), fresh(1).uniform(-2.0, 0.0, 200)),
        settling=1500,
    )


def endogenous_grid() -> Map:
    """Consumption of a buffer-stock saver by endogenous grid points.

    (Carroll 2006, "The method of endogenous gridpoints".) The state is consumption at 60 levels of assets
    held at the end of a period; utility has constant relative risk aversion 2, beta .96, interest 1.02, seven levels of
    income. A power of a negative consumption is NaN.
    """
    rho, beta, interest = 2.0, 0.96, 1.02
    assets = 20.0 * np.linspace(0.0, 1.0, 60) ** 3
    income = np.exp(0.2 * np.linspace(-1.5, 1.5, 7))
    chance = np.exp(-0.5 * np.linspace(-1.5, 1.5, 7) ** 2)
    income, chance = income / (income @ chance / chance.sum()), chance / chance.sum()
    cash = interest * assets[:, None] + income[None]

    def f(z: Vector) -> Vector:
        # Consumption is that of the constraint, all cash, below the first point.
        known = np.interp(cash, np.append(0.0, assets + z), np.append(0.0, z))
        slope = (z[-1] - z[-2]) / (assets[-1] + z[-1] - assets[-2] - z[-2])
        known = known + np.maximum(cash - assets[-1] - z[-1], 0.0) * slope
        with np.errstate(all="ignore"):
            return np.asarray((beta * interest * (known**-rho) @ chance) ** (-1 / rho))

    return Map(
        name="endogenous-grid",
        source="the method of endogenous grid points (Carroll 2006)",
        f=f,
        starts=(1.0 + assets, 1e-2 + 1e-3 * assets, np.sort(fresh(1).uniform(0.2, 3.0, 60))),
        domain="consumption above 0 that rises with assets; NaN or disordered elsewhere",
        settling=2000,
    )


def growth() -> Map:
    """Iteration on the Euler equation of the growth model with full depreciation, whose solution is known.

    (Brock & Mirman 1972; Judd 1998, "Numerical methods in economics", chapter 16.) The state is the logarithm of
    consumption at 12 Chebyshev points of the logarithm of the stock, between a fifth and five times the steady one.
    The solution is ``c = (1 - alpha beta) k^alpha``. A consumption above output leaves a negative stock: NaN.
    """
    alpha, beta = 0.36, 0.95
    middle = np.log(alpha * beta) / (1 - alpha)
    nodes = np.cos(np.pi * (np.arange(12) + 0.5) / 12)
    stock = middle + np.log(5.0) * nodes
    fit = np.linalg.inv(np.polynomial.chebyshev.chebvander(nodes, 11))

    def f(z: Vector) -> Vector:
        with np.errstate(all="ignore"):
            later = np.log(np.exp(alpha * stock) - np.exp(z))
            rule = np.polynomial.chebyshev.chebval((later - middle) / np.log(5.0), fit @ z)
            return np.asarray(rule - np.log(alpha * beta) - (alpha - 1) * later)

    # One plain step maps c to c' = c(k') k'^(1 - alpha) / (alpha beta): the relaxed map is the stable one.
    return Map(
        name="growth-euler",
        source="the Euler equation of Brock & Mirman 1972 (Judd 1998, chapter 16), relaxed by a half",
        f=lambda z: 0.5 * z + 0.5 * f(z),
        starts=(
            np.log(0.5) + alpha * stock,
            np.log(0.05) + alpha * stock,
            np.log(fresh(1).uniform(0.4, 0.9, 12)) + alpha * stock,
        ),
        domain="consumption below output; NaN where it is above",
        exact=lambda: np.log(1 - alpha * beta) + alpha * stock,
    )


def quantal_response() -> Map:
    """The logit equilibrium of a random game of four players with five actions each.

    (McKelvey & Palfrey 1995, "Quantal response equilibria for normal form games".) Precision 4, payoffs up to 3.
    """
    payoff = 3.0 * fresh(0).uniform(0.0, 1.0, (4, 5, 5, 5, 5))

    def f(z: Vector) -> Vector:
        p = z.reshape(4, 5)
        values = np.stack(
            [
                np.einsum("abcd,b,c,d->a", payoff[0], p[1], p[2], p[3]),
                np.einsum("abcd,a,c,d->b", payoff[1], p[0], p[2], p[3]),
                np.einsum("abcd,a,b,d->c", payoff[2], p[0], p[1], p[3]),
                np.einsum("abcd,a,b,c->d", payoff[3], p[0], p[1], p[2]),
            ]
        )
        odds = np.exp(4.0 * (values - values.max(1, keepdims=True)))
        return np.asarray(odds / odds.sum(1, keepdims=True)).ravel()

    return Map(
        name="quantal-response",
        source="logit equilibrium (McKelvey & Palfrey 1995) of a random game, precision 4",
        f=f,
        starts=(np.full(20, 0.2), np.tile(np.eye(5)[0], 4), fresh(1).dirichlet(np.ones(5), 4).ravel()),
        settling=2000,
    )
