r"""Value iteration on random Markov decision processes.

    v(s) = max_a [ r(s, a) + gamma sum_k P(s, a, k) v(next(s, a, k)) ]

This is the Bellman operator, which is piecewise affine and a contraction by ``gamma`` in the maximum norm (Puterman
1994, "Markov decision processes", sections 6.2, 6.3). The processes are Garnets: every state and action leads to
``branching`` random states, with the gaps between sorted uniform numbers as probabilities (Archibald, McKinnon & Thomas
1995, "On the generation of Markov decision processes"). Policy iteration finds the exact solution (Puterman 1994,
section 6.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.core.options import option
from fixedpoint_classic.problem import ClassicProblem, RandomTask

__all__ = ["ValueIteration", "ValueIterationProblem"]


@dataclass(eq=False)
class ValueIterationProblem(ClassicProblem):
    """The Bellman operator; the state holds the value of every state of the process.

    Attributes
    ----------
    rewards
        Shape ``(B, states, actions)``.
    successors
        The states that each action may lead to, shape ``(B, states, actions, branching)``, int64.
    probabilities
        Their probabilities, of the same shape; they sum to 1 along the last dimension.
    discount
        ``gamma``, at least 0 and below 1.
    """

    rewards: Float[Tensor, "B s a"]
    successors: Int[Tensor, "B s a k"]
    probabilities: Float[Tensor, "B s a k"]
    discount: float

    def __call__(self, z: Float[Tensor, "B s"]) -> Float[Tensor, "B s"]:
        return self.returns(z).amax(-1)

    def returns(self, values: Float[Tensor, "B s"]) -> Float[Tensor, "B s a"]:
        """The expected return of every action if the next states have the values ``values``."""
        ahead = values.gather(1, self.successors.flatten(1)).view_as(self.probabilities)
        return self.rewards + self.discount * (self.probabilities * ahead).sum(-1)

    def reference(self) -> Float[Tensor, "B s"]:
        """The optimal values, by policy iteration. It terminates, since a policy changes only if its value improves."""
        policy = self.rewards.argmax(-1)
        values = self.policy_values(policy)
        while True:
            returns = self.returns(values)
            kept = returns.gather(2, policy.unsqueeze(2)).squeeze(2)
            best, action = returns.max(-1)
            better = best > kept + 1e-12 * kept.abs().amax()  # by more than rounding, else ties could alternate
            if not bool(better.any()):
                return values
            policy = torch.where(better, action, policy)
            values = self.policy_values(policy)

    def policy_values(self, policy: Int[Tensor, "B s"]) -> Float[Tensor, "B s"]:
        """The values of a policy: ``(I - gamma P_pi) v = r_pi``."""
        rows, states = policy.shape
        choice = policy.view(rows, states, 1, 1).expand(-1, -1, 1, self.successors.shape[3])
        target, chance = (table.gather(2, choice).squeeze(2) for table in (self.successors, self.probabilities))
        matrix = torch.zeros(rows, states, states, dtype=chance.dtype, device="cpu").scatter_add(2, target, chance)
        reward = self.rewards.gather(2, policy.unsqueeze(2)).squeeze(2)
        solved: Tensor = torch.linalg.solve(
            torch.eye(states, dtype=chance.dtype, device="cpu") - self.discount * matrix, reward
        )
        return solved


@dataclass(frozen=True)
class ValueIteration(RandomTask):
    """Optimal values of random decision processes, from zero."""

    states: int = option(100, ge=1, help="states of a process: the unknowns")
    actions: int = option(4, ge=1, help="actions in each state")
    branching: int = option(5, ge=1, help="states an action may lead to")
    discount: float = option(0.99, ge=0.0, lt=1.0, help="gamma: what a reward is worth a step later; hard towards 1")

    def check(self) -> None:
        if self.branching > self.states:
            raise self.refuse("branching", f"must be at most the number of states, {self.states}, got {self.branching}")

    def draw(self, generator: torch.Generator) -> ValueIterationProblem:
        shape = (1, self.states, self.actions)
        rewards = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
        order = torch.rand(*shape, self.states, generator=generator, dtype=torch.float64, device="cpu")
        successors = order.argsort(-1)[..., : self.branching].contiguous()
        cuts = (
            torch.rand(*shape, self.branching - 1, generator=generator, dtype=torch.float64, device="cpu")
            .sort(-1)
            .values
        )
        ends = torch.zeros(*shape, 1, dtype=torch.float64, device="cpu")
        chances = torch.cat((ends, cuts, ends + 1), dim=-1).diff(dim=-1)
        return ValueIterationProblem(torch.zeros_like(rewards[..., 0]), rewards, successors, chances, self.discount)
