r"""The end of a chain as one least-squares problem in the state before it, for steps that do not contract.

Where steps amplify some directions, turn others over and drop the rest, as the last steps under guidance do, neither
the fixed point of one step nor that of several contracts. And taken one by one they go astray: what the inverse of the
last step chooses in the directions that it drops need not be anything that the step before can make. So the last steps
are taken as one map ``F(x) = Phi_{N-1}(... Phi_{N-m}(x))``, and

    |F(x) - x_N|^2

is minimised over ``x``, by damped Gauss-Newton steps (Levenberg 1944; Marquardt 1963). Their linear least-squares
problems are solved by Golub-Kahan bidiagonalisation, whose first few dozen vectors hold the directions that the end
depends on. Each damping that is tried costs one run of the steps, and a step is taken only if it comes nearer.

Products with the Jacobian are differences of two runs, those with its transpose are autograd's; forward mode is not
provided by every network (attention on CPUs, for one).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.inversion.bidiagonal import Bidiagonalisation
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.counts import Counts
from fixedpoint.gradients.recorded import products, severed

__all__ = ["Shooting", "Shot", "difference_share"]

# Vectors of the first bidiagonalisation of a row, the fewest and the most. More of them resolve weaker directions, in
# which a step is long and the linear model soon wrong: their number follows how well the model was met.
_FIRST, _FEWEST, _MOST = 12, 8, 128
_MET, _MISSED = 0.75, 0.25
# Damping, in units of the largest squared singular value: the first one, the least, and the factor of a change.
_DAMPING, _LEAST, _CHANGE = 1e-6, 1e-10, 30.0
_TRIALS = 4
# Two steps in succession that leave more than this share of the distance, and promise no better, end a row.
_SLOW = 0.9


@dataclass(frozen=True)
class Shot:
    """The states that were found.

    Attributes
    ----------
    states
        The states before each of the steps, shape ``(B, m, *event)``; consecutive, so that only the end is missed.
    end
        What the last step makes of them, shape ``(B, *event)``.
    distance
        Shape ``(B,)``, float64: rms of ``end - x_N``.
    """

    states: Float[Tensor, "B m *event"]
    end: Float[Tensor, "B *event"]
    distance: Float[Tensor, " B"]


class Shooting:
    """The last steps of a range of a chain as one map.

    Parameters
    ----------
    problem
        The chain with its rows; its start is the state after the last step, ``x_N``.
    steps
        The steps, consecutive.
    tell
        Called after every Gauss-Newton step with its number and the largest distance; None: not called.
    """

    def __init__(self, problem: ChainProblem, steps: range, tell: Callable[[int, float], None] | None = None) -> None:
        self.problem, self.steps, self._tell = problem, steps, tell
        self.target = problem.x0
        none = np.zeros(len(self.target), dtype=np.int64)
        self.counts = Counts(rounds=0, calls=0, evaluations=none, computed=0, products=none.copy())

    def run(self, start: Float[Tensor, "B *event"]) -> Shot:
        """Run the steps from a state."""
        rows = torch.arange(len(start), device=start.device)
        states, end = self._run(start, rows)
        return Shot(states, end, self._distance(end, rows))

    def minimise(self, start: Float[Tensor, "B *event"], enough: float, vectors: int) -> Shot:
        """Minimise the distance of the end.

        A row takes ``2 m`` evaluations for each vector, a half of them under autograd, and at most ``4 m`` for each
        Gauss-Newton step. Its course does not depend on the other rows.

        Parameters
        ----------
        start
            The state before the first step to start from.
        enough
            The rms at which a row is done.
        vectors
            Largest number of vectors of all bidiagonalisations together.

        Returns
        -------
        Shot
            The nearest that was found; never farther than ``start``.
        """
        shot = self.run(start)
        states, end, distance = shot.states, shot.end, shot.distance
        damping = torch.full_like(distance, _DAMPING)
        sizes = torch.full(distance.shape, _FIRST, device=start.device)
        used, slow, number = torch.zeros_like(sizes), torch.zeros_like(sizes), 0
        while True:
            sizes = torch.minimum(sizes, vectors - used)
            going = (distance > enough) & distance.isfinite() & (slow < 2) & (sizes > 0)
            rows = going.nonzero().flatten()
            if not len(rows):
                return Shot(states, end, distance)
            before, size = distance[rows].clone(), sizes[rows]
            model = self._linear(states[rows], end[rows], rows, size)
            predicted = model.remaining(damping[rows]) / start[0].numel() ** 0.5
            self._step(model, rows, states, end, distance, damping)
            used[rows] += size
            met = (before - distance[rows]) / (before - predicted).clamp(min=torch.finfo(torch.float64).tiny)
            grows, shrinks = (met >= _MET) & (size < _MOST), met < _MISSED
            sizes[rows] = torch.where(grows, 2 * size, torch.where(shrinks, size // 2, size)).clamp(_FEWEST, _MOST)
            slow[rows] = torch.where((distance[rows] > _SLOW * before) & ~grows, slow[rows] + 1, 0)
            number += 1
            if self._tell is not None:
                self._tell(number, float(distance.nan_to_num(nan=0.0).max()))

    def _linear(
        self,
        states: Float[Tensor, "b m *event"],
        end: Float[Tensor, "b *event"],
        rows: Int[Tensor, " b"],
        sizes: Tensor,
    ) -> Bidiagonalisation:
        """Bidiagonalise the Jacobian at the present states, with its own number of vectors for each row."""
        after = torch.cat([states[:, 1:], end.unsqueeze(1)], dim=1)
        model = Bidiagonalisation(
            lambda v: self._pushed(states, after, v.view_as(end), rows).flatten(1),
            lambda u: self._pulled(states, u.view_as(end), rows).flatten(1),
            (self.target[rows] - end).flatten(1),
            sizes,
        )
        for _ in range(int(sizes.max())):
            model.extend()
            if bool(model.ended.all()):  # fewer unknowns than vectors
                break
        return model

    def _step(
        self,
        model: Bidiagonalisation,
        rows: Int[Tensor, " b"],
        states: Tensor,
        end: Tensor,
        distance: Tensor,
        damping: Tensor,
    ) -> None:
        """Take the longest damped step that comes nearer, row by row, in place."""
        places = torch.arange(len(rows), device=rows.device)
        for _ in range(_TRIALS):
            at = rows[places]
            moved = model.step(damping[rows])[places].view(len(at), *states.shape[2:])
            trial, reached = self._run(states[at, 0] + moved, at)
            off = self._distance(reached, at)
            nearer = off < distance[at]
            taken = at[nearer]
            states[taken], end[taken], distance[taken] = trial[nearer], reached[nearer], off[nearer]
            damping[taken] = (damping[taken] / _CHANGE).clamp(min=_LEAST)
            damping[at[~nearer]] *= _CHANGE
            places = places[~nearer]
            if not len(places):
                return

    def _run(self, x: Float[Tensor, "b *event"], rows: Int[Tensor, " b"]) -> tuple[Tensor, Tensor]:
        states = []
        for step in self.steps:
            states.append(x)
            x = self._evaluated(x, step, rows)
        return torch.stack(states, dim=1), x

    def _distance(self, end: Float[Tensor, "b *event"], rows: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        return (end - self.target[rows]).flatten(1).double().square().mean(dim=1).sqrt()

    def _pushed(
        self, states: Float[Tensor, "b m *event"], after: Tensor, v: Float[Tensor, "b *event"], rows: Int[Tensor, " b"]
    ) -> Float[Tensor, "b *event"]:
        """Return ``J v`` by differences, one step after another."""
        share = difference_share(v.dtype)
        for place, step in enumerate(self.steps):
            length = v.flatten(1).norm(dim=1)
            factor = share * states[:, place].flatten(1).norm(dim=1) / torch.where(length > 0, length, 1.0)
            factor = factor.view(-1, *[1] * (v.ndim - 1))
            v = (self._evaluated(states[:, place] + factor * v, step, rows) - after[:, place]) / factor
        return v

    def _pulled(
        self, states: Float[Tensor, "b m *event"], u: Float[Tensor, "b *event"], rows: Int[Tensor, " b"]
    ) -> Float[Tensor, "b *event"]:
        """Return ``J^T u``, one step after another; zero if autograd sees no dependence on the state."""
        for place in reversed(range(len(self.steps))):
            with torch.enable_grad():
                z = severed(states[:, place])
                value = self._evaluated(z, self.steps[place], rows)
            u = products(value, z, u) if value.requires_grad else torch.zeros_like(u)
            self.counts.products[rows.cpu().numpy()] += 1
        return u

    def _evaluated(self, x: Tensor, step: int, rows: Int[Tensor, " b"]) -> Tensor:
        value = self.problem.pairs(x, torch.full_like(rows, step), rows)
        self.counts.rounds += 1
        self.counts.calls += self.problem.calls(len(rows))
        self.counts.computed += len(rows)
        self.counts.evaluations[rows.cpu().numpy()] += 1
        return value


def difference_share(dtype: torch.dtype) -> float:
    """Return the length of a difference as a share of the state: small beside it, and large beside its rounding."""
    return 1e-6 if dtype == torch.float64 else 3e-3
