"""Whole Jacobians of the residual, for few unknowns: by products in one call, one by one, or by differences."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.calls import Calls, cost_of
from fixedpoint.core.point import Evaluated
from fixedpoint.core.problem import HasExactResidual, HasProduct, Problem
from fixedpoint.core.reduce import row_norms
from fixedpoint.core.tangents import Way, tangents

__all__ = ["Jacobians"]


class Jacobians(Calls):
    """Evaluates a problem and the Jacobian matrices of its residual ``f(z) - z``, and counts all of it."""

    _batches_products = True  # until torch refuses to batch the products of this function

    def learn(self, other: Calls) -> None:
        """Take over what another one has learnt of the same function, also whether its products go into one call."""
        super().learn(other)
        if isinstance(other, Jacobians):
            self._batches_products = other._batches_products

    @property
    def jacobian_rounds(self) -> int:
        """The rounds that :meth:`jacobian` takes: 1 where the products go into one call, else one for each unknown."""
        return 1 if self._in_one_call else self.layout.size

    def jacobian(self, at: Evaluated, exact: bool | None = None) -> Float[Tensor, "B D D"] | None:
        """Return the Jacobian of ``f(z) - z`` at a point, in the running rows, zero in the others.

        In forward mode, the ``D`` products of a row are made by one call where ``torch.func.vmap`` supports all
        operations of ``f``: a round, and ``D`` products of each row. Elsewhere each product is a call and a round
        (:meth:`product`). Where forward mode fails, column ``j`` is the difference of two residuals at a distance of
        ``sqrt(eps) |z_j|`` (``sqrt(eps)`` times the root mean square of ``z``, or 1, where ``z_j`` is zero): a round
        and an evaluation each. A failed attempt counts as evaluations.

        Parameters
        ----------
        at
            The point.
        exact
            True: use forward mode, and raise its exception if it fails; False: use differences; None: what works.

        Returns
        -------
        Tensor or None
            Shape ``(B, D, D)``, float64: entry ``(i, j)`` is the derivative of ``i`` by ``j``. None if the limit leaves
            no round for the point to be computed from it.
        """
        if exact is not False and self._in_one_call:
            if self.remaining < 2:
                return None
            found = self._products_of_one_call(at, strict=bool(exact))
            if found is not None:
                return found
        if self.remaining < self.layout.size + 1:
            return None
        if exact is not False and not self.differs:
            columns = self._columns_by_products(at, exact)
            if columns is not None:
                return columns
        if self.remaining < self.layout.size + 1:
            return None
        return self._differences(at)

    @property
    def _in_one_call(self) -> bool:
        return self._batches_products and self._way is Way.TRANSFORM and not isinstance(self.problem, HasProduct)

    def _products_of_one_call(self, at: Evaluated, strict: bool) -> Tensor | None:
        """Return the Jacobian by ``vmap`` over all unit vectors; None, for good, where torch cannot batch them."""
        size = self.layout.size
        self.counts.rounds += 1
        tried = np.zeros(self.layout.rows, dtype=np.int64)

        def of(problem: Problem, z: Tensor, rows: NDArray[np.int64]) -> Tensor:
            found = []
            for part, own in self._batches(problem, z):
                evaluations = self._count(own, len(z[part]))
                self.counts.computed += (size - 1) * evaluations * len(z[part])
                tried[rows[part]] += evaluations
                found.append(tangents(own, z[part], strict))
            return found[0] if len(found) == 1 else torch.cat(found)

        live = self._live
        try:
            with self._with_round_note():
                if live.index is None or live.problem is None:
                    matrix = of(self.problem, at.z, np.arange(self.layout.rows))
                else:
                    part = of(live.problem, at.z[live.index], np.flatnonzero(live.host))
                    matrix = part.new_zeros(self.layout.rows, size, size).index_copy(0, live.index, part)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError):
            # Whatever torch cannot batch, single products may support; a function that is at fault fails there, too.
            self._batches_products = False
            self.counts.evaluations += np.where(live.host, size * tried, 0)
            return None
        self.counts.products += np.where(live.host, size * tried, 0)
        return torch.where(self._live.mask[:, None, None], matrix.double(), 0.0)

    def _columns_by_products(self, at: Evaluated, exact: bool | None) -> Tensor | None:
        """Return the Jacobian column by column; None if forward mode turns out to fail."""
        columns = []
        for j in range(self.layout.size):
            unit = torch.zeros_like(at.z)
            unit[:, j] = 1.0
            columns.append(self.product(at, unit, exact))
            if self.differs:  # this column is a difference along a long vector: the others had better be their own
                return None
        unit = torch.eye(self.layout.size, dtype=torch.float64, device=at.z.device)
        return torch.where(self._live.mask[:, None, None], torch.stack(columns, dim=2).double() - unit, 0.0)

    def _differences(self, at: Evaluated) -> Float[Tensor, "B D D"]:
        """Return the Jacobian by one evaluation for each unknown."""
        problem, columns = self.problem, []
        eps = math.sqrt(torch.finfo(at.z.dtype).eps)
        mean = row_norms(at.z).unsqueeze(1) / math.sqrt(self.layout.size)
        reach = at.z.double().abs()
        reach = torch.where(reach > 0, reach, torch.where(mean > 0, mean, 1.0))
        before = at.residual.double()
        for j in range(self.layout.size):
            moved = at.z.clone()
            moved[:, j] += (eps * reach[:, j]).to(moved.dtype)
            width = moved[:, j].double() - at.z[:, j].double()
            self.counts.rounds += 1
            self.counts.evaluations[self._live.host] += cost_of(self.problem, self.layout.rows).evaluations
            with self._with_round_note():
                value = self._values(moved)
            residual = problem.exact_residual() if isinstance(problem, HasExactResidual) else value - moved
            columns.append((residual.double() - before) / torch.where(width != 0, width, 1.0).unsqueeze(1))
        return torch.where(self._live.mask[:, None, None], torch.stack(columns, dim=2), 0.0)
