"""Checkpoints: what comes back is what was kept, to the bit; anything else is refused with a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from fixedpoint.config.checkpoint import load_checkpoint, save_checkpoint

SETTING = {"seed": "0", "solver": "Anderson()"}


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool]))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    made = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return made.transpose(0, -1) if made.ndim > 1 and draw(st.booleans()) else made


leaves = st.one_of(tensors(), st.none(), st.booleans(), st.integers(), st.floats(), st.text())
states = st.dictionaries(
    st.text(),
    st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.text(), st.integers()), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    return type(one) is type(other) and bool(one == other)


@given(states)
def test_what_is_kept_comes_back(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "kept.safetensors"
    save_checkpoint(path, SETTING, state)
    assert same(state, load_checkpoint(path, SETTING, of="training"))


def test_tensors_that_share_memory_come_back_apart(tmp_path: Path) -> None:
    path, shared = tmp_path / "x.safetensors", torch.arange(4.0)
    save_checkpoint(path, SETTING, {"whole": shared, "half": shared[:2]})
    found = load_checkpoint(path, SETTING, of="training")
    found["whole"].zero_()
    assert found["half"].tolist() == [0.0, 1.0]


def test_the_old_one_stays_where_a_new_one_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, SETTING, {"step": 1})
    with pytest.raises(TypeError, match="JSON"):
        save_checkpoint(path, SETTING, {"step": object()})
    with pytest.raises(TypeError, match=r"keys of text or whole numbers, got \(0, 1\)"):
        save_checkpoint(path, SETTING, {"step": {(0, 1): 2}})
    assert load_checkpoint(path, SETTING, of="training") == {"step": 1}
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, SETTING, {})
    with pytest.raises(ValueError, match="belongs to another training: seed is 0 there, and 1 here"):
        load_checkpoint(path, {**SETTING, "seed": "1"}, of="training")
    with pytest.raises(ValueError, match="belongs to another inversion: seed is 0 there, and None here"):
        load_checkpoint(path, {"solver": "Anderson()"}, of="inversion")
    whole = path.read_bytes()
    for damaged in (b"", b"nothing at all", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no checkpoint, or a damaged one"):
            load_checkpoint(path, SETTING, of="training")
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="or one of an earlier version: it has no setting and no state"):
        load_checkpoint(path, SETTING, of="training")
