"""Maps of numerical linear algebra: matrix roots and signs, PageRank of real graphs, Gauss-Seidel sweeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import networkx as nx
import numpy as np
import torch
from scipy.sparse import csc_array, diags_array, eye_array, kron, tril, triu
from scipy.sparse.linalg import splu
from sklearn.datasets import load_digits
from torch import Tensor

from map_suite.suite import Map, Vector, fresh

__all__ = ["maps"]


def maps() -> Iterator[Map]:
    yield square_root()
    yield sign()
    yield pagerank("karate", 0.85)
    yield pagerank("les-miserables", 0.99)
    yield sweep_poisson()
    yield sweep_bratu()
    yield balanced()


def _covariance(size: int) -> Tensor:
    """The covariance of the pixels around the centre of the digits, with norm below 1: positive definite."""
    images = torch.from_numpy(load_digits().images[:, 2:6, 2:6]).flatten(1)
    whole = torch.cov(images.T)[:size, :size]
    return whole / torch.linalg.matrix_norm(whole, 2) / 1.01


def _random(size: int) -> Tensor:
    """A positive definite matrix with eigenvalues between 0.1 and 0.9 and a random basis."""
    draws = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(size, size, generator=draws, dtype=torch.float64)).Q
    return basis * torch.linspace(0.1, 0.9, size, dtype=torch.float64) @ basis.T


def square_root() -> Map:
    """Newton-Schulz iteration for the root of a matrix and its inverse: ``Y (3 - Z Y) / 2``, ``(3 - Z Y) Z / 2``.

    (Higham 2008, "Functions of matrices", eq. 6.35; the coupled iteration from ``Y = A``, ``Z = I`` ends at both roots
    of ``A``.) All pairs with ``Z Y = I`` are fixed points, so the one reached depends on the start. The far start is a
    thousandth of the matrix.
    """
    size = 16

    def f(z: Tensor) -> Tensor:
        y, x = z.view(2, size, size)
        middle = 1.5 * torch.eye(size, dtype=z.dtype) - 0.5 * x @ y
        return torch.stack([y @ middle, middle @ x]).flatten()

    def start(matrix: Tensor) -> Vector:
        return torch.stack([matrix, torch.eye(size, dtype=torch.float64)]).flatten().numpy().copy()

    matrix = _covariance(size)
    return Map(
        name="newton-schulz-root",
        source="coupled Newton-Schulz iteration (Higham 2008, eq. 6.35), covariance of digits",
        f=f,
        starts=(start(matrix), start(1e-3 * matrix), start(_random(size))),
        kind="torch",
        domain="||Z Y - I|| below 1; cubic growth elsewhere",
    )


def sign() -> Map:
    """Newton-Schulz iteration for the sign of a symmetric matrix: ``X (3 - X^2) / 2`` (Higham 2008, eq. 5.22)."""
    size = 16

    def f(z: Tensor) -> Tensor:
        x = z.view(size, size)
        return (x @ (1.5 * torch.eye(size, dtype=z.dtype) - 0.5 * x @ x)).flatten()

    def shifted(matrix: Tensor) -> Vector:
        values = torch.linalg.eigvalsh(matrix)
        moved = matrix - 0.5 * (values[size // 2] + values[size // 2 - 1]) * torch.eye(size, dtype=torch.float64)
        return (moved / torch.linalg.matrix_norm(moved, 2)).flatten().numpy().copy()

    return Map(
        name="newton-schulz-sign",
        source="Newton-Schulz iteration for the sign (Higham 2008, eq. 5.22), covariance of digits",
        f=f,
        starts=(shifted(_covariance(size)), 0.01 * shifted(_covariance(size)), shifted(_random(size))),
        kind="torch",
        domain="||X^2 - I|| below 1 in the spectrum's sense; cubic growth elsewhere",
    )


def pagerank(name: str, damping: float) -> Map:
    """PageRank (Brin & Page 1998, section 2.1.1) of a graph of networkx, with its weights.

    Zachary's karate club (Zachary 1977), or the characters of Les Miserables (Knuth 1993).
    """
    graph = nx.karate_club_graph() if name == "karate" else nx.les_miserables_graph()
    links = nx.to_numpy_array(graph)
    step = (links / links.sum(1, keepdims=True)).T
    count = len(step)
    left = np.eye(count) - damping * step
    return Map(
        name=f"pagerank-{name}",
        source=f"PageRank (Brin & Page 1998, section 2.1.1), damping {damping:g}, {name}",
        f=lambda z: damping * step @ z + (1 - damping) / count,
        starts=(np.full(count, 1 / count), 1e3 * np.eye(count)[0], fresh(1).dirichlet(np.ones(count))),
        exact=lambda: np.linalg.solve(left, np.full(count, (1 - damping) / count)),
    )


def _laplacian(size: int) -> csc_array:
    one = diags_array([np.full(size - 1, -1.0), np.full(size, 2.0), np.full(size - 1, -1.0)], offsets=[-1, 0, 1])
    return csc_array(kron(one, eye_array(size)) + kron(eye_array(size), one))


def _swept(size: int) -> tuple[Callable[[Vector], Vector], csc_array]:
    """The solution with the lower triangle of the Laplacian, and the upper triangle with its sign changed."""
    matrix = _laplacian(size)
    lower = splu(csc_array(tril(matrix)), permc_spec="NATURAL", diag_pivot_thresh=0.0)
    return lower.solve, csc_array(-triu(matrix, 1))


def sweep_poisson() -> Map:
    """A sweep of Gauss and Seidel for Poisson's equation with unit source, 20 x 20 (Golub & Van Loan 2013, 11.2)."""
    size = 20
    solve, upper = _swept(size)
    source = np.full(size**2, 1 / (size + 1) ** 2)
    return Map(
        name="gauss-seidel-poisson",
        source="Gauss-Seidel for Poisson's equation (Golub & Van Loan 2013, section 11.2), 20 x 20",
        f=lambda z: solve(upper @ z + source),
        starts=(np.zeros(size**2), np.full(size**2, 1e3), fresh(1).standard_normal(size**2)),
        exact=lambda: splu(_laplacian(size)).solve(source),
    )


def sweep_bratu() -> Map:
    """A sweep of Gauss and Seidel for Bratu's problem, lambda 6, 20 x 20, with ``e^u`` of the point before its change.

    (Glowinski, Keller & Reinhart 1985 for the problem; Lepage-Saucier 2024, "Alternating cyclic vector extrapolation
    technique for accelerating nonlinear optimization algorithms", for this map.)
    """
    size = 20
    solve, upper = _swept(size)
    weight = 6.0 / (size + 1) ** 2

    def f(z: Vector) -> Vector:
        with np.errstate(over="ignore"):
            return solve(upper @ z + weight * np.exp(z))

    return Map(
        name="gauss-seidel-bratu",
        source="Gauss-Seidel for Bratu's problem, lambda 6 (Lepage-Saucier 2024), 20 x 20",
        f=f,
        starts=(np.zeros(size**2), np.full(size**2, -20.0), fresh(1).uniform(0.0, 1.0, size**2)),
        domain="below the upper solution; divergence, then inf, above it",
        settling=4000,
    )


def balanced() -> Map:
    """Symmetric scaling of the coappearances in Les Miserables, plus 1e-3, to row sums of 1: ``x = sqrt(x / A x)``.

    (Knight & Ruiz 2013, "A fast algorithm for matrix balancing"; Knight, Ruiz & Ucar 2014.) The
    root of a negative ratio is NaN.
    """
    links = nx.to_numpy_array(nx.les_miserables_graph()) + 1e-3
    count = len(links)

    def f(z: Vector) -> Vector:
        with np.errstate(all="ignore"):
            return np.sqrt(z / (links @ z))

    return Map(
        name="balancing",
        source="symmetric scaling to unit row sums (Knight, Ruiz & Ucar 2014), Les Miserables",
        f=f,
        starts=(np.ones(count), np.full(count, 1e6), fresh(1).uniform(0.1, 2.0, count)),
        domain="positive vectors; NaN elsewhere",
        settling=5000,
    )
