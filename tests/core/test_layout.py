"""Layouts: what states are accepted, how they come back, and how others are refused."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fixedpoint.core.layout import Layout
from fixedpoint.testing.strategies import cuts


class Pair(NamedTuple):
    first: object
    second: object


def _t(*shape, dtype=torch.float64):
    return torch.arange(int(np.prod(shape)), dtype=dtype).reshape(shape)


ACCEPTED = {
    "a batch": (_t(3, 4), None, 3, 4),
    "a batch of matrices": (_t(3, 2, 2), None, 3, 4),
    "a vector is one problem": (_t(5), None, 1, 5),
    "a vector of problems": (_t(5), "independent", 5, 1),
    "a batch taken as one problem": (_t(3, 4), "joint", 1, 12),
    "a scalar tensor": (torch.tensor(1.0), None, 1, 1),
    "a float": (1.5, None, 1, 1),
    "a numpy vector": (np.ones(3), None, 1, 3),
    "a numpy batch": (np.ones((2, 3), dtype=np.float32), None, 2, 3),
    "a numpy scalar": (np.float64(2.0), None, 1, 1),
    "a tuple": ((_t(2, 3), _t(2, 1)), None, 2, 4),
    "a list": ([_t(2, 3), _t(2, 1)], None, 2, 4),
    "a named tuple": (Pair(_t(2, 3), _t(2, 2)), None, 2, 5),
    "a dict": ({"a": _t(2, 3), "b": (_t(2, 1), _t(2, 2, 2))}, None, 2, 8),
    "tensors that share no batch": ((_t(2, 3), _t(3, 2)), None, 1, 12),
    "tensors of which one is a vector": ((_t(2, 3), _t(2)), None, 1, 8),
    "a batch with a column": ((_t(2, 3), _t(2)), "independent", 2, 4),
    "complex numbers": (_t(2, 3) * (1 + 2j), None, 2, 6),
    "a complex vector": (np.arange(3) * 1j, None, 1, 6),
    "a complex number": (1j, None, 1, 2),
    "bfloat16": (_t(2, 3, dtype=torch.bfloat16), None, 2, 3),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_states_have_rows_and_unknowns_and_come_back(name):
    value, rows, count, size = ACCEPTED[name]
    layout = Layout.of(value, rows)
    assert (layout.rows, layout.size) == (count, size)
    state = layout.pack(value, "z0")
    assert state.shape == (count, size)
    back = layout.unpack(state)
    assert type(back) is type(value) or isinstance(value, np.generic)
    assert _same(back, value)
    assert torch.equal(layout.pack(back), state)


def _same(left, right) -> bool:
    if isinstance(right, dict):
        return list(left) == list(right) and all(_same(left[key], right[key]) for key in right)
    if isinstance(right, tuple | list):
        return len(left) == len(right) and all(map(_same, left, right))
    return left.shape == right.shape and bool((left == right).all()) if hasattr(right, "shape") else left == right


REFUSED = {
    "integers": (
        torch.ones(2, 3, dtype=torch.int64),
        TypeError,
        "z0 must be of a floating-point dtype, got torch.int64",
    ),
    "an integer array": (np.ones(3, dtype=int), TypeError, "z0 must be of a floating-point dtype, got int64"),
    "real and complex": (
        (_t(2, 1), _t(2, 1) * 1j),
        TypeError,
        r"one dtype: z0\[0\] is torch.float64, z0\[1\] is torch.c",
    ),
    "a string": ("start", TypeError, "z0 must be a tensor, an array or a float, got str"),
    "None inside": ({"a": _t(2, 1), "b": None}, TypeError, r"z0\['b'\] must be a tensor, an array or a float"),
    "nothing": ((), ValueError, r"z0 holds no tensor, got \(\)"),
    "no rows": (torch.ones(0, 3), ValueError, r"z0 is empty, got shape \(0, 3\)"),
    "no unknowns": (torch.ones(3, 0), ValueError, "z0 is empty"),
    "torch and numpy": ((_t(2), np.ones(2)), TypeError, "torch tensors or numpy arrays, not both"),
    "two dtypes": (
        (_t(2, 1), _t(2, 1).float()),
        TypeError,
        r"one dtype: z0\[0\] is torch.float64, z0\[1\] is torch.float32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_states_are_refused_with_a_sentence(name):
    value, kind, sentence = REFUSED[name]
    with pytest.raises(kind, match=sentence):
        Layout.of(value)


@pytest.mark.parametrize("value", [(_t(2, 3), _t(3, 3)), torch.tensor(1.0)])
def test_independent_rows_want_one_batch_size(value):
    with pytest.raises(ValueError, match="requires one batch size as the first dimension of all, got z0"):
        Layout.of(value, "independent")


def test_an_unknown_word_for_rows_is_refused():
    with pytest.raises(ValueError, match="rows must be 'independent' or 'joint', got 'both'"):
        Layout.of(_t(2, 3), "both")  # type: ignore[arg-type]


def test_blocks_must_divide_a_row():
    assert Layout.of(_t(2, 6), blocks=3).blocks == 3
    with pytest.raises(ValueError, match="a row of 6 unknowns does not divide into 4 equal blocks"):
        Layout.of(_t(2, 6), blocks=4)


DIFFERENT = {
    "another structure": ({"a": _t(2, 3)}, TypeError, r"f\(z\) must have the structure of z0"),
    "another shape": ((_t(2, 3), _t(2, 2)), ValueError, r"f\(z\)\[1\] must have the shape of z0\[1\], \(2, 1\), got"),
    "another dtype": ((_t(2, 3), _t(2, 1).float()), TypeError, r"f\(z\)\[1\] must have the dtype of z0\[1\]"),
    "None": ((_t(2, 3), None), TypeError, r"f\(z\)\[1\] must be a tensor"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_values_of_f_that_differ_are_refused_naming_the_leaf(name):
    value, kind, sentence = DIFFERENT[name]
    layout = Layout.of((_t(2, 3), _t(2, 1)))
    with pytest.raises(kind, match=sentence):
        layout.pack(value)


def test_a_dict_is_packed_by_key_and_not_by_order():
    layout = Layout.of({"a": _t(2, 1), "b": _t(2, 2)})
    turned = {"b": _t(2, 2), "a": _t(2, 1)}
    assert torch.equal(layout.pack(turned), torch.cat([_t(2, 1), _t(2, 2)], dim=1))


def test_arrays_given_to_the_user_are_read_only_and_arrays_from_the_user_are_copied():
    layout = Layout.of(np.zeros((2, 3)))
    array = np.ones((2, 3))
    state = layout.pack(array)
    array[:] = 7.0
    assert bool((state == 1).all())
    with pytest.raises(ValueError, match="read-only"):
        layout.unpack(state)[0] = 0.0


@given(st.data())
def test_any_cut_of_a_state_packs_to_the_state(data):
    rows, size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    cut = data.draw(cuts(size))
    state = _t(rows, size)
    layout = Layout.of(cut.apply(state), "independent")
    assert (layout.rows, layout.size) == (rows, size)
    assert torch.equal(layout.pack(cut.apply(state), "z0"), state)
    assert torch.equal(cut.ravel(layout.unpack(state)), state)
