r"""Value iteration on random Markov decision processes.

The values of an optimal policy are the fixed point of the Bellman operator,

    v(s) = max_a [ r(s, a) + gamma sum_s' P(s' | s, a) v(s') ]

which is a contraction by ``gamma`` in the maximum norm (Puterman 1994, "Markov decision processes", section 6.2).
Policy iteration computes them exactly. With the optimal policy ``pi``, the gradient of their sum with respect to the
rewards is the number of discounted visits: ``(I - gamma P_pi^T)^{-1} 1`` for the actions taken, zero for the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint import Problem, Solution, solve
from fixedpoint.plugin import Context, GradientEstimator, HasTake, Judgement, Layout, SolveTask, option

__all__ = ["BellmanProblem", "RandomMDP"]


@dataclass(eq=False)
class BellmanProblem(Problem, HasTake):
    """The Bellman operator of a batch of decision processes.

    Attributes
    ----------
    transitions
        Probabilities of the next state, shape ``(B, states, actions, states)``.
    rewards
        Shape ``(B, states, actions)``.
    discount
        ``gamma``, at least 0 and below 1.
    """

    transitions: Float[Tensor, "B s a s"]
    rewards: Float[Tensor, "B s a"]
    discount: float

    def __post_init__(self) -> None:
        self.layout = Layout.of(self.rewards[:, :, 0].detach(), "independent")

    def __call__(self, z: Float[Tensor, "B s"]) -> Float[Tensor, "B s"]:
        return self.returns(z).amax(dim=-1)

    def initial(self) -> Float[Tensor, "B s"]:
        return torch.zeros_like(self.rewards[:, :, 0])

    def take(self, rows: Int[Tensor, " k"]) -> BellmanProblem:
        return replace(self, transitions=self.transitions[rows], rewards=self.rewards[rows])

    def returns(self, values: Float[Tensor, "B s"]) -> Float[Tensor, "B s a"]:
        """The expected return of every action if the next states have the values ``values``."""
        return self.rewards + self.discount * (self.transitions * values[:, None, None]).sum(-1)

    def policy_iteration(self) -> tuple[Float[Tensor, "B s"], Float[Tensor, "B s a"]]:
        """The exact values, and the discounted visits of every state and action, summed over a start in each state."""
        rows, states, _, _ = self.transitions.shape
        policy = torch.zeros(rows, states, dtype=torch.int64)
        while True:
            matrix = torch.eye(states, dtype=self.rewards.dtype) - self.discount * _chosen(self.transitions, policy)
            values = torch.linalg.solve(matrix, _chosen(self.rewards, policy))
            better = self.returns(values).argmax(dim=-1)
            if torch.equal(better, policy):
                visits = torch.linalg.solve(matrix.mT, torch.ones_like(values))
                return values, torch.zeros_like(self.rewards).scatter(2, policy.unsqueeze(2), visits.unsqueeze(2))
            policy = better


@dataclass(frozen=True)
class RandomMDP(SolveTask):
    """Values of random decision processes; with a gradient estimator, also the gradient with respect to the rewards."""

    states: int = option(20, ge=1, help="states of each process")
    actions: int = option(4, ge=1, help="actions in each state")
    discount: float = option(0.9, ge=0.0, lt=1.0, help="gamma: what a reward is worth a step later")
    batch: int = option(4, ge=1, help="processes solved at once")

    def problem(self, seed: int) -> BellmanProblem:
        generator = torch.Generator().manual_seed(seed)
        shape = (self.batch, self.states, self.actions)
        rates = -torch.rand(*shape, self.states, generator=generator, dtype=torch.float64).log()
        rewards = torch.rand(shape, generator=generator, dtype=torch.float64)
        return BellmanProblem(rates / rates.sum(-1, keepdim=True), rewards, self.discount)

    def judge(self, problem: Problem, solution: Solution, context: Context) -> Judgement:
        assert isinstance(problem, BellmanProblem)  # made by ``problem``
        values, visits = context.once(("random-mdp", self, context.seed), problem.policy_iteration)
        metrics = {"relative_error": _relative(solution.state, values)}
        if context.gradient is not None:
            metrics["gradient_error"] = _relative(_gradient(problem, context, context.gradient), visits)
        return Judgement(metrics)


def _gradient(problem: BellmanProblem, context: Context, estimator: GradientEstimator) -> Float[Tensor, "B s a"]:
    """The gradient of the sum of all values with respect to the rewards, by the estimator."""
    with torch.enable_grad():
        rewards = problem.rewards.clone().requires_grad_()
        solution = solve(
            replace(problem, rewards=rewards),
            solver=context.solver,
            gradient=estimator,
            termination=context.termination,
        )
        (gradient,) = torch.autograd.grad(solution.state.sum(), rewards)
    return gradient


def _chosen(table: Tensor, policy: Int[Tensor, "B s"]) -> Tensor:
    """The entries ``table[b, s, policy[b, s]]``."""
    rows = torch.arange(policy.shape[0]).unsqueeze(1)
    return table[rows, torch.arange(policy.shape[1]), policy]


def _relative(found: Tensor, exact: Tensor) -> float:
    """The largest relative error of a row."""
    difference, size = (found - exact).flatten(1), exact.flatten(1)
    return float((difference.norm(dim=1) / size.norm(dim=1)).max())
