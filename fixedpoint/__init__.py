"""Solvers for fixed points ``z = f(z)``, their gradients, and chains of steps solved as joint fixed points.

Importing the package loads neither torch nor any other large dependency: each name is imported at its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fixedpoint._lazy import exported

if TYPE_CHECKING:
    from fixedpoint.api import find_root as find_root
    from fixedpoint.api import solve as solve
    from fixedpoint.chains.adjoint.gradient import ChainAdjoint as ChainAdjoint
    from fixedpoint.chains.chain import Chain as Chain
    from fixedpoint.chains.joint.solver import ChainSolver as ChainSolver
    from fixedpoint.chains.methods.deq_ddim import DEQDDIM as DEQDDIM
    from fixedpoint.chains.methods.parareal import Parareal as Parareal
    from fixedpoint.chains.methods.serial import Serial as Serial
    from fixedpoint.chains.problem import ChainProblem as ChainProblem
    from fixedpoint.core.layout import Layout as Layout
    from fixedpoint.core.loop import StepSolver as StepSolver
    from fixedpoint.core.problem import Problem as Problem
    from fixedpoint.core.progress import Progress as Progress
    from fixedpoint.core.solution import Claim as Claim
    from fixedpoint.core.solution import Solution as Solution
    from fixedpoint.core.solver import Solver as Solver
    from fixedpoint.core.status import ConvergenceError as ConvergenceError
    from fixedpoint.core.status import Status as Status
    from fixedpoint.core.termination import Termination as Termination
    from fixedpoint.gradients.checkpointed import CheckpointedUnrolled as CheckpointedUnrolled
    from fixedpoint.gradients.completed import UnrolledWarning as UnrolledWarning
    from fixedpoint.gradients.estimator import GradientEstimator as GradientEstimator
    from fixedpoint.gradients.implicit import Implicit as Implicit
    from fixedpoint.gradients.neumann import Neumann as Neumann
    from fixedpoint.gradients.one_step import OneStep as OneStep
    from fixedpoint.gradients.phantom import Phantom as Phantom
    from fixedpoint.gradients.report import AdjointReport as AdjointReport
    from fixedpoint.gradients.report import AdjointWarning as AdjointWarning
    from fixedpoint.gradients.shine import Shine as Shine
    from fixedpoint.gradients.unrolled import Unrolled as Unrolled
    from fixedpoint.solvers.aitken import Aitken as Aitken
    from fixedpoint.solvers.anderson import Anderson as Anderson
    from fixedpoint.solvers.anderson_type1 import AndersonTypeOne as AndersonTypeOne
    from fixedpoint.solvers.auto import Auto as Auto
    from fixedpoint.solvers.bicgstab import BiCGSTAB as BiCGSTAB
    from fixedpoint.solvers.broyden import Broyden as Broyden
    from fixedpoint.solvers.damped import Damped as Damped
    from fixedpoint.solvers.gmres import GMRES as GMRES
    from fixedpoint.solvers.krylov import Krylov as Krylov
    from fixedpoint.solvers.linear import LinearSolution as LinearSolution
    from fixedpoint.solvers.linear import LinearSolver as LinearSolver
    from fixedpoint.solvers.newton import Newton as Newton
    from fixedpoint.solvers.newton_krylov import NewtonKrylov as NewtonKrylov
    from fixedpoint.solvers.picard import Picard as Picard
    from fixedpoint.solvers.polyalgorithm import Polyalgorithm as Polyalgorithm
    from fixedpoint.solvers.restarted import Restarted as Restarted
    from fixedpoint.solvers.roots import Roots as Roots
    from fixedpoint.solvers.squarem import Squarem as Squarem
    from fixedpoint.solvers.trust_region import TrustRegion as TrustRegion

__version__ = "0.1.0"
"""The version of the package."""

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "fixedpoint.api": (
            "find_root",
            "solve",
        ),
        "fixedpoint.chains.chain": ("Chain",),
        "fixedpoint.chains.problem": ("ChainProblem",),
        "fixedpoint.chains.methods.deq_ddim": ("DEQDDIM",),
        "fixedpoint.chains.adjoint.gradient": ("ChainAdjoint",),
        "fixedpoint.chains.methods.parareal": ("Parareal",),
        "fixedpoint.chains.methods.serial": ("Serial",),
        "fixedpoint.chains.joint.solver": ("ChainSolver",),
        "fixedpoint.core.layout": ("Layout",),
        "fixedpoint.core.loop": ("StepSolver",),
        "fixedpoint.core.problem": ("Problem",),
        "fixedpoint.core.progress": ("Progress",),
        "fixedpoint.core.solution": (
            "Claim",
            "Solution",
        ),
        "fixedpoint.core.solver": ("Solver",),
        "fixedpoint.core.status": (
            "ConvergenceError",
            "Status",
        ),
        "fixedpoint.core.termination": ("Termination",),
        "fixedpoint.gradients.checkpointed": ("CheckpointedUnrolled",),
        "fixedpoint.gradients.completed": ("UnrolledWarning",),
        "fixedpoint.gradients.estimator": ("GradientEstimator",),
        "fixedpoint.gradients.implicit": ("Implicit",),
        "fixedpoint.gradients.neumann": ("Neumann",),
        "fixedpoint.gradients.one_step": ("OneStep",),
        "fixedpoint.gradients.phantom": ("Phantom",),
        "fixedpoint.gradients.report": (
            "AdjointReport",
            "AdjointWarning",
        ),
        "fixedpoint.gradients.shine": ("Shine",),
        "fixedpoint.gradients.unrolled": ("Unrolled",),
        "fixedpoint.solvers.aitken": ("Aitken",),
        "fixedpoint.solvers.anderson": ("Anderson",),
        "fixedpoint.solvers.anderson_type1": ("AndersonTypeOne",),
        "fixedpoint.solvers.auto": ("Auto",),
        "fixedpoint.solvers.bicgstab": ("BiCGSTAB",),
        "fixedpoint.solvers.broyden": ("Broyden",),
        "fixedpoint.solvers.damped": ("Damped",),
        "fixedpoint.solvers.gmres": ("GMRES",),
        "fixedpoint.solvers.krylov": ("Krylov",),
        "fixedpoint.solvers.linear": (
            "LinearSolution",
            "LinearSolver",
        ),
        "fixedpoint.solvers.newton": ("Newton",),
        "fixedpoint.solvers.newton_krylov": ("NewtonKrylov",),
        "fixedpoint.solvers.picard": ("Picard",),
        "fixedpoint.solvers.polyalgorithm": ("Polyalgorithm",),
        "fixedpoint.solvers.restarted": ("Restarted",),
        "fixedpoint.solvers.roots": ("Roots",),
        "fixedpoint.solvers.squarem": ("Squarem",),
        "fixedpoint.solvers.trust_region": ("TrustRegion",),
    },
    also=("__version__",),
)
