"""``auto`` on maps of the suite that plain iteration or SQUAREM solves, and on which Anderson acceleration is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_suite import all_maps

import fixedpoint

# The evaluations to a relative error of 1e-8 that must do, about twice those of the best solver on each map.
LOST = {
    ("em-iris", "random"): 100,
    ("equilibrium-cell", "far"): 90,
    ("equilibrium-cell", "reference"): 110,  # two and a half times SQUAREM's
    ("gaussian-mixture-em", "far"): 120,
    ("irls-diabetes", "far"): 130,
    ("irls-diabetes", "random"): 200,  # 240 and more if SQUAREM went on from the best point, not the last
    ("k-means-hard", "far"): 40,
    ("k-means-soft", "random"): 75,
    ("k-means-soft", "reference"): 100,
    ("log-ratio-float", "reference"): 12,
    ("newton-schulz-root", "far"): 40,
    ("newton-schulz-sign", "far"): 60,
    ("power-float", "random"): 45,
    ("power-iteration", "reference"): 90,
    ("smacof-digits", "far"): 400,
    ("smacof-digits", "random"): 450,
}


@pytest.mark.parametrize(("name", "start"), LOST, ids=["-".join(each) for each in LOST])
def test_what_plain_iteration_solves_auto_solves_at_little_more_cost(name, start):
    (made,) = (each for each in all_maps() if each.name == name)
    with np.errstate(all="ignore"), torch.no_grad():
        found = fixedpoint.solve(made.f, made.start(start), solver="auto", rtol=1e-8)
    assert found.converged.all(), found.message
    assert found.evaluations[0] <= LOST[name, start]


def test_rows_change_solvers_one_by_one():
    """Rows in a batch, some of which stay with Anderson: each is what it is alone, to the bit."""
    (made,) = (each for each in all_maps() if each.name == "power-iteration")
    starts = torch.stack([torch.from_numpy(start.copy()) for start in made.starts])

    def batched(z):
        return torch.stack([made.f(row) for row in z])

    together = fixedpoint.solve(batched, starts, solver="auto", rtol=1e-8)
    assert together.converged.all(), together.message
    assert len(set(together.evaluations.tolist())) > 1
    for row in range(3):
        alone = fixedpoint.solve(batched, starts[row : row + 1], solver="auto", rtol=1e-8)
        assert torch.equal(alone.z[0], together.z[row])
        assert alone.evaluations[0] == together.evaluations[row]
