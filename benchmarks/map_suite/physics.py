"""Maps of physics and engineering: self-consistent fields, spins, radiation, tomography, flow, power networks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from map_suite.suite import Map, Vector, fresh

__all__ = ["maps"]


def maps() -> Iterator[Map]:
    yield from (kohn_sham(0.5), kohn_sham(2.0))
    yield hartree_fock()
    yield spins()
    yield radiation()
    yield tomography()
    yield cavity()


def kohn_sham(coupling: float) -> Map:
    """The density of the simple Kohn-Sham model: ``H(rho) = L + coupling diag(L^{-1} rho)``, the two lowest orbitals.

    (Liu, Wang, Wen & Yuan 2014, "On the convergence of the self-consistent field iteration in Kohn-Sham density
    functional theory", with their ``n = 10``; the model is that of Yang, Gao & Meza 2009.) Plain
    iteration converges for a coupling of 0.5, and not from 1 on.
    """
    laplacian = 2 * np.eye(10) - np.eye(10, k=1) - np.eye(10, k=-1)
    inverse = np.linalg.inv(laplacian)

    def f(z: Vector) -> Vector:
        orbitals = np.linalg.eigh(laplacian + coupling * np.diag(inverse @ z))[1][:, :2]
        return np.asarray((orbitals**2).sum(1))

    drawn = fresh(1).dirichlet(np.ones(10)) * 2
    return Map(
        name=f"kohn-sham-{coupling:g}",
        source="the simple Kohn-Sham model of Liu, Wang, Wen & Yuan 2014",
        f=f,
        starts=(f(np.zeros(10)), 50.0 * np.eye(10)[0], drawn),
        domain="all states; LinAlgError where the density is not finite",
        settling=1000,
    )


def hartree_fock() -> Map:
    """Restricted Hartree-Fock of HeH+ in the basis STO-3G; the state is the density matrix, 2 x 2.

    (Roothaan 1951; the integrals at R = 1.4632 are those of Szabo & Ostlund 1989, "Modern quantum chemistry", section
    3.5.3, tables 3.5 and 3.6. Their iteration starts from zero and ends at an electronic energy of -4.2275.)
    """
    overlap = np.array([[1.0, 0.4508], [0.4508, 1.0]])
    core = np.array([[-2.6527, -1.3472], [-1.3472, -1.7318]])
    two = np.empty((2, 2, 2, 2))
    known = {"0000": 1.3072, "1000": 0.4373, "1010": 0.1773, "1100": 0.6057, "1110": 0.3118, "1111": 0.7746}
    for key, value in known.items():
        i, j, k, m = map(int, key)
        for a, b in ((i, j), (j, i)):
            for c, d in ((k, m), (m, k)):
                two[a, b, c, d] = two[c, d, a, b] = value
    values, vectors = np.linalg.eigh(overlap)
    root = vectors / np.sqrt(values) @ vectors.T

    def f(z: Vector) -> Vector:
        density = z.reshape(2, 2)
        fock = core + np.einsum("kl,ijlk->ij", density, two) - 0.5 * np.einsum("kl,iklj->ij", density, two)
        lowest = root @ np.linalg.eigh(root @ fock @ root)[1][:, 0]
        return 2 * np.outer(lowest, lowest).ravel()

    drawn = fresh(1).standard_normal(2)
    return Map(
        name="hartree-fock-heh",
        source="Hartree-Fock of HeH+, STO-3G (Szabo & Ostlund 1989, section 3.5.3)",
        f=f,
        starts=(np.zeros(4), np.array([0.0, 0.0, 0.0, 100.0]), np.outer(drawn, drawn).ravel()),
    )


def spins() -> Map:
    """Belief propagation of an Ising model on a grid of 8 x 8 with random fields, all messages at once.

    (Yedidia, Freeman & Weiss 2005; in cavity fields: Mooij & Kappen 2007, "Sufficient conditions for
    convergence of the sum-product algorithm".) Couplings 0.5 times normal, fields 0.2 times normal.
    """
    size, draws = 8, fresh(0)
    index = np.arange(size * size).reshape(size, size)
    ends = np.concatenate(
        [np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()]), np.stack([index[:-1].ravel(), index[1:].ravel()])], 1
    )
    coupling, field = 0.5 * draws.standard_normal(ends.shape[1]), 0.2 * draws.standard_normal(size * size)
    source, target = np.concatenate([ends, ends[::-1]], 1)
    weight = np.tanh(np.concatenate([coupling, coupling]))
    back = np.concatenate([np.arange(len(coupling)) + len(coupling), np.arange(len(coupling))])

    def f(z: Vector) -> Vector:
        total = field + np.bincount(target, weights=z, minlength=size * size)
        return np.arctanh(weight * np.tanh(total[source] - z[back]))

    count = len(weight)
    return Map(
        name="belief-propagation",
        source="belief propagation of an Ising model (Mooij & Kappen 2007), 8 x 8",
        f=f,
        starts=(np.zeros(count), np.full(count, 20.0), fresh(1).standard_normal(count)),
        settling=2000,
    )


def radiation() -> Map:
    """Lambda iteration: the source function of a slab of two-level atoms, ``S = (1 - e) Lambda S + e B``.

    (Mihalas 1978, "Stellar atmospheres", sections 2-2 and 6-1; Hubeny 2003 for its slow convergence.) Optical depth 20,
    destruction probability 1e-2, 80 points; the mean intensity is made from the exact integrals of the kernel
    ``E_1(|t - t'|) / 2`` over cells of constant source.
    """
    from scipy.special import expn

    edges = np.linspace(0.0, 20.0, 81)
    points = 0.5 * (edges[1:] + edges[:-1])

    def part(distance: Vector) -> Vector:  # integral of E_1 from 0 to the distance, odd
        return np.asarray(np.sign(distance) * (1 - expn(2, np.abs(distance))))

    kernel = 0.5 * (part(edges[None, 1:] - points[:, None]) - part(edges[None, :-1] - points[:, None]))
    left = np.eye(80) - 0.99 * kernel
    return Map(
        name="lambda-iteration",
        source="Lambda iteration of a two-level atom (Mihalas 1978, section 6-1)",
        f=lambda z: 0.99 * kernel @ z + 0.01,
        starts=(np.ones(80), np.full(80, 1e4), fresh(1).uniform(0.0, 1.0, 80)),
        exact=lambda: np.linalg.solve(left, np.full(80, 0.01)),
    )


def tomography() -> Map:
    """SIRT on an image of a digit, 8 x 8, from the sums along rows, columns and both diagonals, kept non-negative.

    (Gilbert 1972; Gregor & Benson 2008, "Computational analysis and improvement of SIRT".) The data are
    consistent, but fewer than the pixels, so that solutions are not isolated.
    """
    from sklearn.datasets import load_digits

    image = load_digits().images[0] / 16
    rows, columns = np.indices((8, 8))
    lines = [key == value for key in (rows, columns, rows + columns, rows - columns) for value in np.unique(key)]
    matrix = np.array([line.ravel() for line in lines], dtype=np.float64)
    data = matrix @ image.ravel()
    by_row, by_column = 1 / matrix.sum(1), 1 / matrix.sum(0)
    return Map(
        name="sirt",
        source="SIRT (Gregor & Benson 2008) with non-negative pixels, a digit",
        f=lambda z: np.maximum(z + by_column * (matrix.T @ (by_row * (data - matrix @ z))), 0.0),
        starts=(np.zeros(64), np.full(64, 100.0), fresh(1).uniform(0.0, 1.0, 64)),
        exact=lambda: image.ravel().copy(),
    )


def cavity() -> Map:
    """The flow in a cavity with a moving lid at Reynolds number 100, on a grid of 17 x 17: one implicit step in time.

    (Ghia, Ghia & Shin 1982, the stream function and vorticity; Thom 1933 for the vorticity at walls.) The
    state is the vorticity in the interior. A step solves for the stream function, sets walls, and advances the
    vorticity by 0.05 with velocities of before and central differences. Its fixed point is the steady flow.
    """
    n, reynolds, span = 15, 100.0, 0.05
    h = 1 / (n + 1)
    eye, second = np.eye(n), (np.eye(n, k=1) + np.eye(n, k=-1) - 2 * np.eye(n)) / h**2
    slope = (np.eye(n, k=1) - np.eye(n, k=-1)) / (2 * h)
    # The first index of a grid goes along x, the second along y.
    laplacian = np.kron(second, eye) + np.kron(eye, second)
    along_x, along_y = np.kron(slope, eye), np.kron(eye, slope)
    inverse, fixed = np.linalg.inv(laplacian), np.eye(n * n) / span - laplacian / reynolds

    def f(z: Vector) -> Vector:
        stream = -inverse @ z
        u, v = along_y @ stream, -along_x @ stream
        stream, u_grid, v_grid = stream.reshape(n, n), u.reshape(n, n), v.reshape(n, n)
        # The vorticity at a wall enters the equation of the point next to it, by diffusion and by convection.
        known, viscous = np.zeros((n, n)), 1 / (reynolds * h**2)
        for side, sign in ((0, 1.0), (-1, -1.0)):
            known[side] -= 2 * stream[side] / h**2 * (viscous + sign * u_grid[side] / (2 * h))
            lid = 0.0 if side == 0 else 2 / h
            known[:, side] -= (2 * stream[:, side] / h**2 + lid) * (viscous + sign * v_grid[:, side] / (2 * h))
        return np.linalg.solve(fixed + u[:, None] * along_x + v[:, None] * along_y, z / span + known.ravel())

    return Map(
        name="cavity",
        source="lid-driven cavity, Reynolds number 100 (Ghia, Ghia & Shin 1982), 17 x 17",
        f=f,
        starts=(np.zeros(n * n), np.full(n * n, 50.0), fresh(1).standard_normal(n * n)),
        settling=100,
    )
