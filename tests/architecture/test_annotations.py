"""The annotations of tensors are checked while the tests run."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from typechecker import checked, once_for_each_kind

from fixedpoint.core.reduce import row_dots


def test_the_library_is_checked() -> None:
    ones = torch.ones(3, 5)
    assert row_dots(ones[:, None], ones).shape == (3, 1)
    with pytest.raises(jaxtyping.TypeCheckError):
        row_dots(ones[:, None], torch.ones(3, 4))
    with pytest.raises(jaxtyping.TypeCheckError):
        row_dots(ones[:, None], ones.long())


def test_every_kind_of_call_is_checked() -> None:
    @once_for_each_kind(typechecker=checked)
    def first(x: Float[Tensor, "batch size"], *, keep: bool = True) -> Float[Tensor, " batch"]:
        return x[:, 0] if keep else x

    assert first(torch.ones(2, 3)).shape == (2,)
    assert first(torch.ones(2, 3)).shape == (2,)
    for bad in (torch.ones(2), torch.ones(2, 3, 4), torch.ones(2, 3).long()):
        with pytest.raises(jaxtyping.TypeCheckError, match="checking the parameters"):
            first(bad)
    for _ in range(2):
        with pytest.raises(jaxtyping.TypeCheckError, match="checking the return value"):
            first(torch.ones(2, 3), keep=False)
