"""Chooses the solver that actually solves a problem: ``solver_for``."""

from __future__ import annotations

from fixedpoint.chains.joint.solver import accelerating
from fixedpoint.chains.planning.planned import PlannedChainSolver
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.problem import Problem
from fixedpoint.core.solver import Solver
from fixedpoint.solvers.auto import Auto

__all__ = ["solver_for"]


def solver_for(problem: Problem, solver: Solver) -> Solver:
    """Return the solver that solves ``problem`` when the user asks for ``solver``.

    For a problem that is not a chain this is ``solver`` itself. For a chain, a solver of chains is returned unchanged,
    any other step solver becomes the accelerator of a joint solve, and ``auto`` becomes the solver that plans whether
    to take the steps jointly or one by one.

    Raises
    ------
    AbilityError
        When the problem is a chain and the solver runs its own loop.
    """
    if not isinstance(problem, ChainProblem):
        return solver
    if isinstance(solver, Auto):
        return PlannedChainSolver(solver.history_limit)
    return accelerating(problem, solver)
