"""The names for authors of plugins: base classes of solvers, gradient estimators, tasks and executors, and the hooks.

Importing this module loads no large dependency: each name is imported at its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fixedpoint._lazy import exported

if TYPE_CHECKING:
    from fixedpoint.core.combine import add_combination as add_combination
    from fixedpoint.core.evaluator import Evaluator as Evaluator
    from fixedpoint.core.fault import Fault as Fault
    from fixedpoint.core.history import History as History
    from fixedpoint.core.inverse_jacobian import InverseEstimate as InverseEstimate
    from fixedpoint.core.layout import Layout as Layout
    from fixedpoint.core.loop import StepSolver as StepSolver
    from fixedpoint.core.options import OptionError as OptionError
    from fixedpoint.core.options import Options as Options
    from fixedpoint.core.options import by_options as by_options
    from fixedpoint.core.options import option as option
    from fixedpoint.core.outcome import solution_at as solution_at
    from fixedpoint.core.point import Evaluated as Evaluated
    from fixedpoint.core.problem import AbilityError as AbilityError
    from fixedpoint.core.problem import Cost as Cost
    from fixedpoint.core.problem import FunctionProblem as FunctionProblem
    from fixedpoint.core.problem import HasCost as HasCost
    from fixedpoint.core.problem import HasExactResidual as HasExactResidual
    from fixedpoint.core.problem import HasMeasure as HasMeasure
    from fixedpoint.core.problem import HasProduct as HasProduct
    from fixedpoint.core.problem import HasSamples as HasSamples
    from fixedpoint.core.problem import HasTake as HasTake
    from fixedpoint.core.problem import Measure as Measure
    from fixedpoint.core.problem import Problem as Problem
    from fixedpoint.core.problem import check_row_independence as check_row_independence
    from fixedpoint.core.progress import Progress as Progress
    from fixedpoint.core.reduce import block_dots as block_dots
    from fixedpoint.core.reduce import block_norms as block_norms
    from fixedpoint.core.reduce import row_dots as row_dots
    from fixedpoint.core.reduce import row_norms as row_norms
    from fixedpoint.core.reduce import vecdot as vecdot
    from fixedpoint.core.solver import Solver as Solver
    from fixedpoint.execution.cell import Cell as Cell
    from fixedpoint.execution.cell import Finished as Finished
    from fixedpoint.execution.executor import Executor as Executor
    from fixedpoint.gradients.estimator import GradientEstimator as GradientEstimator
    from fixedpoint.gradients.estimator import with_gradient_of as with_gradient_of
    from fixedpoint.gradients.recorded import products as products
    from fixedpoint.gradients.recorded import recorded as recorded
    from fixedpoint.registry.command import Command as Command
    from fixedpoint.registry.command import CommandError as CommandError
    from fixedpoint.registry.component import Component as Component
    from fixedpoint.registry.faults import RegistryError as RegistryError
    from fixedpoint.registry.faults import UnknownComponentError as UnknownComponentError
    from fixedpoint.registry.hookspecs import hookimpl as hookimpl
    from fixedpoint.registry.manager import registry as registry
    from fixedpoint.solvers.least_squares import solve_gram as solve_gram
    from fixedpoint.tasks.forming import Forming as Forming
    from fixedpoint.tasks.forming import HasDrawing as HasDrawing
    from fixedpoint.tasks.images import Images as Images
    from fixedpoint.tasks.steps import step_trace as step_trace
    from fixedpoint.tasks.task import Context as Context
    from fixedpoint.tasks.task import HasNotes as HasNotes
    from fixedpoint.tasks.task import Judgement as Judgement
    from fixedpoint.tasks.task import Result as Result
    from fixedpoint.tasks.task import SolveTask as SolveTask
    from fixedpoint.tasks.task import Task as Task

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "fixedpoint.core.combine": ("add_combination",),
        "fixedpoint.core.evaluator": ("Evaluator",),
        "fixedpoint.core.fault": ("Fault",),
        "fixedpoint.core.history": ("History",),
        "fixedpoint.core.inverse_jacobian": ("InverseEstimate",),
        "fixedpoint.core.layout": ("Layout",),
        "fixedpoint.core.loop": ("StepSolver",),
        "fixedpoint.core.outcome": ("solution_at",),
        "fixedpoint.core.options": (
            "OptionError",
            "Options",
            "by_options",
            "option",
        ),
        "fixedpoint.core.point": ("Evaluated",),
        "fixedpoint.core.problem": (
            "AbilityError",
            "Cost",
            "FunctionProblem",
            "HasCost",
            "HasExactResidual",
            "HasMeasure",
            "HasProduct",
            "HasSamples",
            "HasTake",
            "Measure",
            "Problem",
            "check_row_independence",
        ),
        "fixedpoint.core.progress": ("Progress",),
        "fixedpoint.core.reduce": (
            "block_dots",
            "block_norms",
            "row_dots",
            "row_norms",
            "vecdot",
        ),
        "fixedpoint.core.solver": ("Solver",),
        "fixedpoint.execution.cell": (
            "Cell",
            "Finished",
        ),
        "fixedpoint.execution.executor": ("Executor",),
        "fixedpoint.gradients.estimator": (
            "GradientEstimator",
            "with_gradient_of",
        ),
        "fixedpoint.gradients.recorded": (
            "products",
            "recorded",
        ),
        "fixedpoint.registry.command": (
            "Command",
            "CommandError",
        ),
        "fixedpoint.registry.component": ("Component",),
        "fixedpoint.registry.faults": (
            "RegistryError",
            "UnknownComponentError",
        ),
        "fixedpoint.registry.hookspecs": ("hookimpl",),
        "fixedpoint.registry.manager": ("registry",),
        "fixedpoint.solvers.least_squares": ("solve_gram",),
        "fixedpoint.tasks.forming": (
            "Forming",
            "HasDrawing",
        ),
        "fixedpoint.tasks.images": ("Images",),
        "fixedpoint.tasks.steps": ("step_trace",),
        "fixedpoint.tasks.task": (
            "Context",
            "HasNotes",
            "Judgement",
            "Result",
            "SolveTask",
            "Task",
        ),
    },
)
