r"""PageRank of random graphs.

    x = d P^T x + ((1 - d) + d sum_{i dangling} x_i) / n

where ``P_ij = 1 / outdegree(i)`` for a link from ``i`` to ``j`` (Brin & Page 1998, "The anatomy of a large-scale
hypertextual Web search engine", section 2.1.1; dangling pages link to all: Langville & Meyer 2004,
"Deeper inside PageRank"). The map is a contraction by ``d`` in the 1-norm. If the start sums to one, so does every
iterate. The solution also solves a linear system.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.options import option
from fixedpoint_classic.problem import ClassicProblem, RandomTask, apply

__all__ = ["PageRank", "PageRankProblem"]


@dataclass(eq=False)
class PageRankProblem(ClassicProblem):
    """PageRank on a dense matrix of links.

    Attributes
    ----------
    inflow
        ``P^T``, shape ``(B, D, D)``, with dangling pages linking to all pages, so that columns sum to one.
    damping
        ``d``, at least 0 and below 1.
    """

    inflow: Float[Tensor, "B D D"]
    damping: float

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return self.damping * apply(self.inflow, z) + (1 - self.damping) / z.shape[1]

    def jacobian(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D D"]:
        return self.damping * self.inflow

    def reference(self) -> Float[Tensor, "B D"]:
        """The solution of the linear system, by elimination."""
        size = self.start.shape[1]
        matrix = torch.eye(size, dtype=self.inflow.dtype, device="cpu") - self.damping * self.inflow
        solved: Tensor = torch.linalg.solve(matrix, torch.full_like(self.start, (1 - self.damping) / size))
        return solved

    def checks(self, z: Float[Tensor, "B D"]) -> dict[str, Float[Tensor, " B"]]:
        return {"mass_defect": (z.double().sum(1) - 1).abs()}


@dataclass(frozen=True)
class PageRank(RandomTask):
    """PageRank of random graphs, from equal ranks."""

    pages: int = option(500, ge=2, help="pages of a graph: the unknowns")
    links: int = option(5, ge=1, help="links of a page, on average (random) or at most (preferential)")
    graph: Literal["random", "preferential"] = option(
        "preferential",
        help="random: each link exists with the same probability (Erdos & Renyi 1959); preferential: a new page links "
        "to earlier ones, the likelier the more links they have (Barabasi & Albert 1999), and some links go back",
    )
    damping: float = option(0.85, ge=0.0, lt=1.0, help="d: the probability of following a link; hard towards 1")

    def draw(self, generator: torch.Generator) -> PageRankProblem:
        linked = self._random(generator) if self.graph == "random" else self._preferential(generator)
        degree = linked.sum(1, keepdim=True)
        flow = torch.where(degree > 0, linked / degree.clamp(min=1), 1 / self.pages)
        start = torch.full((1, self.pages), 1 / self.pages, dtype=torch.float64, device="cpu")
        return PageRankProblem(start, flow.T.contiguous().unsqueeze(0), self.damping)

    def _random(self, generator: torch.Generator) -> Float[Tensor, "D D"]:
        chance = torch.rand(self.pages, self.pages, generator=generator, dtype=torch.float64, device="cpu")
        return (chance < min(self.links / (self.pages - 1), 1.0)).double().fill_diagonal_(0)

    def _preferential(self, generator: torch.Generator) -> Float[Tensor, "D D"]:
        linked = torch.zeros(self.pages, self.pages, dtype=torch.float64, device="cpu")
        popularity = torch.ones(self.pages, dtype=torch.float64, device="cpu")
        for page in range(1, self.pages):
            targets = torch.multinomial(popularity[:page], min(self.links, page), generator=generator)
            linked[page, targets] = 1
            popularity[targets] += 1
        # With links to earlier pages only, the graph would have no cycle, and the iteration would end after finitely
        # many rounds.
        back = torch.rand(self.pages, self.pages, generator=generator, dtype=torch.float64, device="cpu") < 0.5
        return torch.maximum(linked, linked.T * back)
