"""Complex states: solved as real ones of twice the unknowns, row by row, in whatever they came."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fixedpoint import NewtonKrylov, Termination, find_root, solve
from fixedpoint.core.layout import Layout
from fixedpoint.core.yardstick import Yardstick
from fixedpoint.testing.problems import Constant

N = 5
RNG = np.random.default_rng(0)
A = RNG.standard_normal((N, N)) + 1j * RNG.standard_normal((N, N))
A *= 0.8 / np.abs(np.linalg.eigvals(A)).max()
C = RNG.standard_normal(N) + 1j * RNG.standard_normal(N)
RIGHT = np.linalg.solve(np.eye(N) - A, C)
At, Ct = torch.tensor(A), torch.tensor(C)
SOLVERS = ["picard", "anderson", "broyden", "auto", "newton-krylov", "krylov", "squarem"]


def close(found: Any, right: Any, rtol: float = 1e-7) -> bool:
    found = found.detach().numpy() if isinstance(found, Tensor) else np.asarray(found)
    return bool(np.abs(found - right).max() <= rtol * np.abs(right).max())


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_affine_map_in_every_form(solver: str) -> None:
    kwargs: dict[str, Any] = {"solver": solver, "rtol": 1e-10}
    vector = solve(lambda z: A @ z + C, np.zeros(N, complex), **kwargs)
    assert isinstance(vector.z, np.ndarray)
    assert vector.z.dtype == np.complex128
    assert vector.state.shape == (1, 2 * N)
    assert close(vector.z, RIGHT)
    assert close(vector.fz, RIGHT)
    torch_vector = solve(lambda z: At @ z + Ct, torch.zeros(N, dtype=torch.complex128), **kwargs)
    assert torch_vector.z.dtype == torch.complex128
    assert close(torch_vector.z, RIGHT)
    batch = solve(lambda z: z @ At.T + Ct, torch.zeros(3, N, dtype=torch.complex128), **kwargs)
    assert len(batch.status) == 3
    assert close(batch.z, RIGHT)
    number = solve(lambda z: 0.5j * z + 1, 0j, **kwargs)
    assert isinstance(number.z, complex)
    assert close(number.z, 1 / (1 - 0.5j))


def test_tuples_and_dicts_of_complex_tensors() -> None:
    def f(z: dict[str, Any]) -> dict[str, Any]:
        return {"a": 0.3j * z["b"][0] + 1, "b": (0.5 * z["a"].conj(),)}

    start = {"a": torch.zeros(2, 3, dtype=torch.complex128), "b": (torch.zeros(2, 3, dtype=torch.complex128),)}
    z = solve(f, start, rtol=1e-12).z
    # a = 0.15j conj(a) + 1
    right = (1 + 0.15j) / (1 - 0.15**2)
    assert close(z["a"], right)
    assert close(z["b"][0], 0.5 * np.conj(right))


def test_rows_are_those_of_the_value_and_alone_as_in_a_batch() -> None:
    start = torch.randn(4, N, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
    gains = torch.tensor([[0.9j], [0.2], [-0.5 + 0.5j], [0.7]], dtype=torch.complex128)
    whole = solve(lambda z: gains * z.sin() * 0.9 + 0.3, start, solver="anderson", rtol=1e-9)
    assert len(whole.status) == 4
    for row in range(4):
        one = slice(row, row + 1)
        alone = solve(lambda z, one=one: gains[one] * z.sin() * 0.9 + 0.3, start[one], solver="anderson", rtol=1e-9)
        assert torch.equal(alone.z[0], whole.z[row])
        assert alone.rounds[0] == whole.rounds[row]
    single = solve(lambda z: 0.5j * z + 1, start[0], rows="independent")
    assert (single.state.shape, len(single.status)) == ((N, 2), N)


@pytest.mark.parametrize("solver", [NewtonKrylov(jacobian="forward"), NewtonKrylov(jacobian="difference")], ids=str)
def test_newtons_method_of_a_map_that_is_not_holomorphic(solver: NewtonKrylov) -> None:
    """``z = 0.5 conj(z)^2 + c``: its Jacobian is one of real and imaginary parts alone."""
    c = torch.tensor([0.2 + 0.1j, -0.3j, 0.1], dtype=torch.complex128)
    solution = solve(
        lambda z: 0.5 * z.conj() ** 2 + c, torch.zeros(3, dtype=torch.complex128), solver=solver, rtol=1e-9
    )
    plain = solve(
        lambda z: 0.5 * z.conj() ** 2 + c, torch.zeros(3, dtype=torch.complex128), solver="picard", rtol=1e-12
    )
    assert solution.converged.all()
    assert torch.allclose(solution.z, plain.z, rtol=1e-8)
    assert solution.counts.rounds < 20


@pytest.mark.parametrize("gradient", ["implicit", "unrolled"])
def test_gradients_are_those_of_the_closed_form(gradient: str) -> None:
    """By complex parameters, of a real loss, in torch's convention."""
    matrix, shift = At.clone().requires_grad_(), Ct.clone().requires_grad_()
    start = torch.zeros(2, N, dtype=torch.complex128)
    solution = solve(lambda z: z @ matrix.T + shift, start, gradient=gradient, solver="anderson", rtol=1e-13)
    weights = torch.randn(2, N, generator=torch.Generator().manual_seed(1), dtype=torch.complex128)

    def loss(z: Tensor) -> Tensor:
        return (z * weights).real.sum() + z.abs().square().sum() + (z.conj() * z**2).imag.sum()

    found = torch.autograd.grad(loss(solution.z), (matrix, shift))
    exact = torch.linalg.solve(torch.eye(N) - matrix, shift).expand(2, N)
    right = torch.autograd.grad(loss(exact), (matrix, shift))
    for one, other in zip(found, right, strict=True):
        assert torch.allclose(one, other, rtol=1e-4 if gradient == "implicit" else 1e-8, atol=1e-5)


def test_the_gradient_of_a_map_that_is_not_holomorphic() -> None:
    """``z = a conj(z) + 1``, solved by hand in real and imaginary parts."""
    a = torch.tensor([0.3 + 0.4j, -0.5j], dtype=torch.complex128, requires_grad=True)
    rule = {"name": "implicit", "termination": Termination(rtol=1e-12)}
    z = solve(lambda z: a * z.conj() + 1, torch.zeros(2, dtype=torch.complex128), gradient=rule, rtol=1e-13).z
    exact = (1 + a) / (1 - a * a.conj())
    assert torch.allclose(z, exact)
    (found,) = torch.autograd.grad((z**2).real.sum() + z.imag.sum(), a)
    (right,) = torch.autograd.grad((exact**2).real.sum() + exact.imag.sum(), a)
    assert torch.allclose(found, right, rtol=1e-9)


def test_single_precision_and_values_that_are_no_plain_memory() -> None:
    narrow = A.astype(np.complex64)
    solution = solve(lambda z: narrow @ z + C.astype(np.complex64), np.zeros(N, np.complex64), rtol=1e-6)
    assert solution.z.dtype == np.complex64
    assert close(solution.z, RIGHT, 1e-4)
    start = torch.zeros(N, 2, dtype=torch.complex128).T  # not contiguous
    turned = solve(lambda z: ((z.conj() @ At.T.conj()) + Ct.conj()).conj(), start, rtol=1e-10)
    assert close(turned.z, RIGHT)


def test_a_root() -> None:
    assert close(find_root(lambda z: z**2 + 1, 0.2 + 0.9j, solver="newton-krylov", rtol=1e-11).z, 1j)
    start = np.array([0.5 + 0.5j, 0.3 - 0.8j])
    roots = find_root(lambda z: z**2 + 1, start, solver="newton-krylov", rtol=1e-11).z
    assert close(roots, np.array([1j, -1j]))


@pytest.mark.parametrize("norm", ["l2", "rms", "max"])
def test_norms_are_those_of_complex_numbers(norm: str) -> None:
    z = torch.tensor([[3 + 4j, 1j, 0], [1, -2, 2j]], dtype=torch.complex128)
    layout = Layout.of(z)
    found = Yardstick(norm).norms(layout.pack(z), layout)[:, 0]
    right = {
        "l2": torch.linalg.vector_norm(z, dim=1),
        "rms": z.abs().square().mean(1).sqrt(),
        "max": z.abs().amax(1),
    }
    assert torch.allclose(found, right[norm])
    assert torch.allclose(Yardstick(per="entry").norms(layout.pack(z), layout), z.abs())


REFUSED = {
    "real and complex": (
        lambda: solve(lambda z: z, (torch.zeros(2, dtype=torch.complex64), torch.zeros(2))),
        r"one dtype: z0\[0\] is torch.complex64, z0\[1\] is torch.float32",
    ),
    "numbers of both kinds": (lambda: solve(lambda z: z, [1.0, 1j]), r"z0\[0\] is float64, z0\[1\] is complex128"),
    "a value that turned real": (
        lambda: solve(lambda z: z.real, np.ones(3, complex)),
        "f.z. must have the dtype of z0, complex128, got float64\n",
    ),
    "a value that turned complex": (
        lambda: solve(lambda z: np.sqrt(z + 0j), np.ones(3)),
        r"the dtype of z0, float64, got complex128; for complex states start from a complex z0",
    ),
    "a number that turned complex": (
        lambda: solve(lambda z: z**0.5, -1.0),
        r"f\(z\) must be a float like z0, got complex128; for complex states start from a complex z0",
    ),
    "a problem": (
        lambda: solve(Constant(torch.ones(2, 3) * 1j, torch.ones(2, 3) * 1j)),
        "the states of a problem are real; its layout packs complex values",
    ),
    "half precision": (
        lambda: solve(lambda z: z, torch.zeros(2, dtype=torch.float16).to(torch.float32).to(torch.complex32)),
        "z0 must be complex128 or complex64, got torch.complex32",
    ),
    "NaN": (lambda: solve(lambda z: z, np.array([1j, complex(0, np.nan)])), "z0 must be finite, got 1 entries"),
}


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("name", REFUSED)
def test_mixtures_are_refused_with_a_sentence(name: str) -> None:
    act, sentence = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=sentence):
        act()


def test_a_float_is_a_complex_number_in_python() -> None:
    assert solve(lambda z: 0.5 * abs(z) + 1, 1 + 0j, rtol=1e-12).z == pytest.approx(2.0)
