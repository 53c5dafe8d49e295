r"""Methods of inversion: they find the states of a chain that lead to a given last one.

**Jointly.** If a chain ends in data, its last steps nearly project onto the data: whatever leads off the data is
removed. The inverse equation ``Phi_i(x) = x_{i+1}`` then hardly determines these directions, or has no solution. The
residual of these steps is carried to every earlier step. So the *clean end* is inverted first, one step after another,
each by an accelerated fixed point that keeps its best point. All steps before it are then inverted as one joint fixed
point (``fixedpoint.chains.inversion.problem``), which contracts. Where it does not (much guidance), ``rescue`` inverts
the rows that are left step by step, all steps like those of the clean end. What then still misses the tolerance is
inverted anew: the last steps, as many as are measured not to contract, by least squares over all of them, and those
before jointly (``fixedpoint.chains.inversion.rescue``).

The chain itself provides which steps these are (``HasGaussianSlopes``). For data with zero variance, the slope of a
step is the share of a change off the data that the step passes on. Where this share is below two fifths, plain rounds
converge slowly.

**Step by step**, as in other software. With the coefficients of the epsilon form and one evaluation per step this is
"DDIM inversion" (Song, Meng & Ermon 2021; diffusers' ``DDIMInverseScheduler``): the network is evaluated at the state
that the inverse step starts from, not at the one it leads to. More evaluations per step make it a fixed-point iteration
(Pan et al. 2023, "Effective real image editing with accelerated iterative diffusion inversion", plain or with Anderson
acceleration; Meiri et al. 2023, "Fixed-point inversion for text-to-image diffusion models").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from fixedpoint.chains.capabilities import HasGaussianSlopes
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.inversion.rescue import solve_ends
from fixedpoint.chains.inversion.workbench import AnySlope, Workbench
from fixedpoint.chains.slope.preconditioner import Coefficient, Identity
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import OptionError, Options, option
from fixedpoint.core.solver import Solver
from fixedpoint.core.termination import Termination
from fixedpoint.solvers.anderson import Anderson
from fixedpoint.solvers.picard import Picard

__all__ = ["Inverter", "JointInversion", "StepwiseInversion", "clean_end_of"]

# The clean end consists of the steps that pass on less than this share of a change off the data.
_PROJECTS = 0.4
# Stands for zero variance; slopes require a positive one.
_NO_VARIANCE = 1e-12
# A step of the clean end ends after this many rounds without progress.
_PATIENCE = 10


def clean_end_of(chain: Chain) -> int:
    """Return how many steps at the end of a chain nearly project; 0 if the chain provides no Gaussian slopes."""
    if not isinstance(chain, HasGaussianSlopes):
        return 0
    passing = chain.gaussian_slopes(_NO_VARIANCE) >= _PROJECTS
    return int((passing.flip(0).cumsum(0) == 0).sum())


class Inverter(Options, ABC):
    """Base class of the methods that find the states of a chain from its last one."""

    @abstractmethod
    def fill(self, work: Workbench) -> None:
        """Find all states and store them in ``work``."""

    @abstractmethod
    def clean_steps(self, chain: Chain) -> int:
        """Return the number of steps of the clean end, whose residual is reported separately (``misfit``)."""


@dataclass(frozen=True)
class JointInversion(Inverter):
    """The clean end step by step, then all steps before it as one joint fixed point."""

    variant = "joint"

    clean_end: int | None = option(None, ge=0, help="steps of the clean end; default: from the Gaussian slopes")
    clean_rounds: int = option(20, ge=1, help="largest number of evaluations of each clean step")
    clean_solver: Solver = option(factory=lambda: Anderson(memory=3), help="solver of the clean end")
    solver: Solver = option(factory=lambda: Anderson(memory=3), help="solver of the joint part")
    preconditioner: AnySlope = option(factory=Identity, help="slopes of the steps, by which defects are swept back")
    rtol: float = option(1e-5, ge=0.0, lt=1.0, help="relative change of any state at which a row is done")
    max_rounds: int = option(40, ge=1, help="largest number of rounds of the joint part")
    rescue: bool = option(False, help="invert rows that miss the tolerance again, step by step and by least squares")
    vectors: int = option(288, ge=0, help="largest number of vectors of least squares, from each of two starts")

    def check(self) -> None:
        for name in ("clean_solver", "solver"):
            if "chain" in getattr(self, name).needs:
                solver = getattr(self, name)
                raise OptionError(type(self).__name__, name, f"must not be a solver of chains, got {solver!r}")

    def clean_steps(self, chain: Chain) -> int:
        known = clean_end_of(chain) if self.clean_end is None else self.clean_end
        return min(known, chain.length)

    def fill(self, work: Workbench) -> None:
        clean = self.clean_steps(work.chain)
        rule = Termination(rtol=self.rtol, max_rounds=self.clean_rounds, patience=_PATIENCE)
        for step in reversed(range(work.chain.length - clean, work.chain.length)):
            work.solve_apart("clean end", step, self.clean_solver, rule, self.preconditioner)
        if clean < work.chain.length:
            rule = Termination(rtol=self.rtol, max_rounds=self.max_rounds)
            steps = range(work.chain.length - clean)
            work.joint = work.solve("joint", steps, self.solver, rule, self.preconditioner)
            left = np.flatnonzero(~work.joint.converged)
            if self.rescue and len(left):
                rule = Termination(rtol=self.rtol, max_rounds=self.clean_rounds, patience=_PATIENCE)
                for step in reversed(steps):
                    work.solve_again("step by step", step, self.clean_solver, rule, self.preconditioner, left)
        if self.rescue and self.vectors:
            rule = Termination(rtol=self.rtol, max_rounds=self.max_rounds)
            solve_ends(work, self.solver, rule, self.preconditioner, self.vectors)


@dataclass(frozen=True)
class StepwiseInversion(Inverter):
    """One step after another, each by a fixed number of evaluations of its own fixed point; meant for comparison.

    With ``iterations=1`` and the coefficients of the epsilon form this is DDIM inversion, as implemented in diffusers
    for models that predict epsilon.
    """

    variant = "stepwise"

    iterations: int = option(1, ge=1, help="k: evaluations of every step")
    solver: StepSolver = option(factory=Picard, help="solver of every step")  # type: ignore[type-arg]  # of any state
    preconditioner: AnySlope = option(factory=Coefficient, help="slope of every step")

    def clean_steps(self, chain: Chain) -> int:
        return clean_end_of(chain)

    def fill(self, work: Workbench) -> None:
        rule = Termination(rtol=0.0, max_rounds=self.iterations)
        for step in reversed(range(work.chain.length)):
            work.step_on("step by step", step, self.solver, rule, self.preconditioner)
        work.look("residuals")
