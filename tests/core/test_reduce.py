"""Reductions over rows: equal to the plain formulas, and the same bits alone and in a batch, across chunk borders."""

from __future__ import annotations

import pytest
import torch

from fixedpoint.core.combine import add_combination, add_combinations
from fixedpoint.core.reduce import block_dots, block_norms, row_dots, row_norms

# (blocks, size of one): below, at and above a chunk of 4096 entries, whole and in parts.
SHAPES = [(1, 1), (1, 17), (1, 4096), (1, 4097), (1, 40001), (257, 16), (3, 5000), (100, 100), (5000, 1)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("blocks", "size"), SHAPES)
@pytest.mark.parametrize("memory", [0, 1, 3])
def test_block_dots(blocks: int, size: int, memory: int) -> None:
    columns, vector = draw(3, memory, blocks * size, seed=0), draw(3, blocks * size, seed=1)
    plain = (columns * vector.unsqueeze(1)).unflatten(-1, (blocks, size)).sum(-1).transpose(1, 2)
    assert torch.allclose(block_dots(columns, vector, blocks), plain, rtol=1e-12, atol=1e-10)
    assert torch.allclose(row_dots(columns, vector), plain.sum(1), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize(("blocks", "size"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_block_norms(blocks: int, size: int, dtype: torch.dtype) -> None:
    vector = draw(3, blocks * size, seed=2, dtype=dtype)
    parts = vector.double().unflatten(1, (blocks, size))
    assert torch.allclose(block_norms(vector, blocks, "l2"), parts.norm(dim=-1), rtol=1e-12)
    assert torch.allclose(block_norms(vector, blocks, "rms"), parts.square().mean(-1).sqrt(), rtol=1e-12)
    assert torch.equal(block_norms(vector, blocks, "max"), parts.abs().amax(-1))


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_norms_of_tiny_and_huge_states(size: float) -> None:
    assert torch.allclose(row_norms(torch.full((2, 4), size, dtype=torch.float64)) / size, torch.tensor(2.0).double())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("norm", ["l2", "rms", "max"])
def test_norms_pass_on_what_is_not_finite(bad: float, norm: str) -> None:
    vector = torch.ones(2, 6, dtype=torch.float64)
    vector[1, 4] = bad
    found = block_norms(vector, 2, norm)
    assert found[0].isfinite().all()
    assert found[1, 0].isfinite()
    assert not found[1, 1].isfinite()


@pytest.mark.parametrize(("blocks", "size"), SHAPES)
@pytest.mark.parametrize("memory", [0, 1, 3])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("where", ["new", "given", "base", "recorded"])
def test_add_combination(blocks: int, size: int, memory: int, rows: int, where: str) -> None:
    base, columns = draw(rows, blocks * size, seed=3), draw(rows, memory, blocks * size, seed=4)
    weights = draw(rows, blocks, memory, seed=5)
    plain = base + torch.einsum("bim,bmid->bid", weights, columns.unflatten(-1, (blocks, size))).flatten(1)
    out = {"given": torch.full_like(base, torch.nan), "base": base}.get(where)
    with torch.set_grad_enabled(where == "recorded"):
        found = add_combination(base, columns, weights, out=out)
    assert torch.allclose(found, plain, rtol=1e-12, atol=1e-12)
    assert out is None or found is out


@pytest.mark.parametrize(("blocks", "size"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_alone_has_the_same_bits_as_in_a_batch(blocks: int, size: int, dtype: torch.dtype) -> None:
    vector = draw(5, blocks * size, seed=6, dtype=dtype)
    columns, weights = draw(5, 3, blocks * size, seed=7, dtype=dtype), draw(5, blocks, 3, seed=8)
    for row in range(5):
        alone, own, weight = (tensor[row : row + 1].clone() for tensor in (vector, columns, weights))
        assert torch.equal(block_dots(own, alone, blocks)[0], block_dots(columns, vector, blocks)[row])
        assert torch.equal(block_norms(alone, blocks, "l2")[0], block_norms(vector, blocks, "l2")[row])
        with torch.no_grad():
            assert torch.equal(add_combination(alone, own, weight)[0], add_combination(vector, columns, weights)[row])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "count", "size"), [(1, 1, 4097), (3, 5, 70_000), (40, 2, 9_000), (2, 0, 5_000)])
def test_dots_of_long_rows_are_exact_and_a_rows_own(dtype: torch.dtype, rows: int, count: int, size: int) -> None:
    generator = torch.Generator().manual_seed(rows * size + count)
    columns = torch.randn(rows, count, size, generator=generator, dtype=torch.float64).to(dtype)
    vector = torch.randn(rows, size, generator=generator, dtype=torch.float64).to(dtype)
    with torch.no_grad():
        found = row_dots(columns, vector)
        alone = torch.cat([row_dots(columns[i : i + 1], vector[i : i + 1]) for i in range(rows)])
    exact = (columns.double() * vector.double().unsqueeze(1)).sum(-1)
    scale = columns.double().norm(dim=2) * vector.double().norm(dim=1, keepdim=True)
    precision = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    assert bool(((found - exact).abs() <= 4 * precision * scale).all())
    assert torch.equal(found, alone)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [7, 40_000])
@pytest.mark.parametrize("count", [0, 1, 6])
def test_combinations_made_together_are_those_made_apart(dtype: torch.dtype, size: int, count: int) -> None:
    generator = torch.Generator().manual_seed(size + count)
    bases = [torch.randn(33, size, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]
    columns = torch.randn(33, count, size, generator=generator, dtype=torch.float64).to(dtype)
    weights = [torch.randn(33, 1, count, generator=generator, dtype=torch.float64) for _ in range(2)]
    apart = [add_combination(base, columns, each) for base, each in zip(bases, weights, strict=True)]
    recorded = [base.clone() for base in bases]
    with torch.no_grad():
        into = [add_combination(base, columns, each) for base, each in zip(bases, weights, strict=True)]
        together = add_combinations(tuple(base.clone() for base in bases), columns, tuple(weights))
    for one, two, three, base, kept in zip(apart, into, together, bases, recorded, strict=True):
        assert torch.equal(two, three)
        # While autograd records, the base is not added last.
        assert torch.allclose(one, two, rtol=0.0, atol=32 * torch.finfo(dtype).eps)
        assert torch.equal(base, kept)  # nothing was written into what was given
