"""The benchmark of rounds: the kernels of a round, which do not depend on the machine. No time is asserted."""

from __future__ import annotations

import pytest
import rounds
import torch


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", ["1x10", "3x100"])
@pytest.mark.parametrize("method", ["picard", "anderson", "broyden"])
def test_a_round_has_few_kernels(method: str, size: str, dtype: torch.dtype) -> None:
    with torch.no_grad():
        row = rounds.measured(method, size, dtype, solves=1)
    most = rounds.LIMITS[method][3]
    assert most is not None
    assert 0 < row.kernels <= most
    assert row.their_kernels > 30  # torchdeq 0.1; a counter that is paused for good would say 0


def test_all_of_a_table_is_there() -> None:
    with torch.no_grad():
        for method in ("squarem", "aitken", "anderson-type1", "auto"):
            assert rounds.measured(method, "1x10", torch.float64, solves=1).microseconds > 0


def test_limits_that_are_exceeded_are_told() -> None:
    row = rounds.Row("anderson", "1x10", 500.0, 100.0, ratio=5.0, kernels=300, their_kernels=50)
    assert rounds.exceeded(row) == ["ratio 5.00 > 1.4", "300 kernels > 20"]
    assert rounds.exceeded(rounds.Row("anderson", "64x1000", 5.0, 5.0, 1.0, 300, 50)) == []
    assert rounds.exceeded(rounds.Row("squarem", "1x10", 500.0, 100.0, 5.0, 300, 50)) == []
