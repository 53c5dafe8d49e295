"""Fixed points ``z = f(z)``: solvers, gradients, and chains solved jointly.

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fixedpoint.api import find_root as find_root
    from fixedpoint.api import solve as solve
    from fixedpoint.chains.chain import Chain as Chain
    from fixedpoint.chains.chain import ChainProblem as ChainProblem
    from fixedpoint.chains.deq_ddim import DEQDDIM as DEQDDIM
    from fixedpoint.chains.gradient import ChainAdjoint as ChainAdjoint
    from fixedpoint.chains.parareal import Parareal as Parareal
    from fixedpoint.chains.serial import Serial as Serial
    from fixedpoint.chains.solver import ChainSolver as ChainSolver
    from fixedpoint.core.loop import StepSolver as StepSolver
    from fixedpoint.core.problem import Problem as Problem
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
    from fixedpoint.solvers.newton_krylov import NewtonKrylov as NewtonKrylov
    from fixedpoint.solvers.picard import Picard as Picard
    from fixedpoint.solvers.polyalgorithm import Polyalgorithm as Polyalgorithm
    from fixedpoint.solvers.restarted import Restarted as Restarted
    from fixedpoint.solvers.squarem import Squarem as Squarem

__version__ = "0.1.0"

_EXPORTS = {
    "AdjointReport": "fixedpoint.gradients.report",
    "AdjointWarning": "fixedpoint.gradients.report",
    "Implicit": "fixedpoint.gradients.implicit",
    "Neumann": "fixedpoint.gradients.neumann",
    "Phantom": "fixedpoint.gradients.phantom",
    "Shine": "fixedpoint.gradients.shine",
    "CheckpointedUnrolled": "fixedpoint.gradients.checkpointed",
    "Krylov": "fixedpoint.solvers.krylov",
    "BiCGSTAB": "fixedpoint.solvers.bicgstab",
    "Squarem": "fixedpoint.solvers.squarem",
    "Restarted": "fixedpoint.solvers.restarted",
    "Polyalgorithm": "fixedpoint.solvers.polyalgorithm",
    "NewtonKrylov": "fixedpoint.solvers.newton_krylov",
    "GMRES": "fixedpoint.solvers.gmres",
    "Damped": "fixedpoint.solvers.damped",
    "Auto": "fixedpoint.solvers.auto",
    "AndersonTypeOne": "fixedpoint.solvers.anderson_type1",
    "Aitken": "fixedpoint.solvers.aitken",
    "Anderson": "fixedpoint.solvers.anderson",
    "Broyden": "fixedpoint.solvers.broyden",
    "Chain": "fixedpoint.chains.chain",
    "ChainAdjoint": "fixedpoint.chains.gradient",
    "ChainProblem": "fixedpoint.chains.chain",
    "ChainSolver": "fixedpoint.chains.solver",
    "Parareal": "fixedpoint.chains.parareal",
    "DEQDDIM": "fixedpoint.chains.deq_ddim",
    "ConvergenceError": "fixedpoint.core.status",
    "GradientEstimator": "fixedpoint.gradients.estimator",
    "OneStep": "fixedpoint.gradients.one_step",
    "Picard": "fixedpoint.solvers.picard",
    "Problem": "fixedpoint.core.problem",
    "Serial": "fixedpoint.chains.serial",
    "Solution": "fixedpoint.core.solution",
    "Solver": "fixedpoint.core.solver",
    "Status": "fixedpoint.core.status",
    "StepSolver": "fixedpoint.core.loop",
    "Termination": "fixedpoint.core.termination",
    "Unrolled": "fixedpoint.gradients.unrolled",
    "UnrolledWarning": "fixedpoint.gradients.completed",
    "find_root": "fixedpoint.api",
    "solve": "fixedpoint.api",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'fixedpoint' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
