"""Registers the tasks of the classic problems."""

from __future__ import annotations

from fixedpoint.registry import Component, hookimpl

_TASKS = (
    (
        "h-equation",
        "h_equation:HEquation",
        "Chandrasekhar's H-equation of radiative transfer",
        ("Chandrasekhar 1960", "Toth & Kelley 2015"),
    ),
    ("bratu", "bratu:Bratu", "Bratu's ignition problem on a square", ("Glowinski, Keller & Reinhart 1985",)),
    (
        "linear-contraction",
        "linear:LinearContraction",
        "affine maps with a given spectrum, normal or not",
        ("Walker & Ni 2011",),
    ),
    (
        "tanh-cell",
        "tanh_cell:TanhCell",
        "the cell of the simplest deep equilibrium model",
        ("Bai, Kolter & Koltun 2019",),
    ),
    (
        "poisson-mixture-em",
        "poisson_mixture:PoissonMixtureEM",
        "EM of two Poisson distributions, on the data of The Times",
        ("Hasselblad 1969", "Varadhan & Roland 2008"),
    ),
    (
        "gaussian-mixture-em",
        "gaussian_mixture:GaussianMixtureEM",
        "EM of a Gaussian mixture",
        ("Dempster, Laird & Rubin 1977",),
    ),
    (
        "value-iteration",
        "value_iteration:ValueIteration",
        "optimal values of random Markov decision processes",
        ("Puterman 1994",),
    ),
    ("pagerank", "pagerank:PageRank", "PageRank of random graphs", ("Brin & Page 1998",)),
    (
        "power-iteration",
        "power_iteration:PowerIteration",
        "the dominant eigenvector of symmetric matrices",
        ("Golub & Van Loan 2013",),
    ),
    ("nnls", "nnls:NNLS", "non-negative least squares by projected gradients", ("Lawson & Hanson 1974",)),
    ("elastic-net", "elastic_net:ElasticNet", "sparse regression by proximal gradients", ("Zou & Hastie 2005",)),
    ("cp-als", "cp_als:CPALS", "tensor decomposition by alternating least squares", ("Kolda & Bader 2009",)),
)


@hookimpl
def fixedpoint_tasks() -> list[Component]:
    return [
        Component(name, f"fixedpoint_classic.{factory}", summary, papers) for name, factory, summary, papers in _TASKS
    ]
