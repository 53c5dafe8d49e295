"""Sequential computations as joint fixed points: chains, their solvers, adjoints and inverses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fixedpoint.lazy import exported

if TYPE_CHECKING:
    from fixedpoint.chains.adjoint import AdjointChain as AdjointChain
    from fixedpoint.chains.capabilities import HasCoefficients as HasCoefficients
    from fixedpoint.chains.capabilities import HasGaussianSlopes as HasGaussianSlopes
    from fixedpoint.chains.capabilities import HasJacobians as HasJacobians
    from fixedpoint.chains.capabilities import HasNoInverse as HasNoInverse
    from fixedpoint.chains.capabilities import HasSlopes as HasSlopes
    from fixedpoint.chains.capabilities import step_jacobians as step_jacobians
    from fixedpoint.chains.capabilities import step_slopes as step_slopes
    from fixedpoint.chains.chain import Chain as Chain
    from fixedpoint.chains.chain import ChainProblem as ChainProblem
    from fixedpoint.chains.coarse import HasCoarse as HasCoarse
    from fixedpoint.chains.coarse import HasExtension as HasExtension
    from fixedpoint.chains.coarse import HasJumps as HasJumps
    from fixedpoint.chains.costs import HasCostKey as HasCostKey
    from fixedpoint.chains.deq_ddim import DEQDDIM as DEQDDIM
    from fixedpoint.chains.gradient import ChainAdjoint as ChainAdjoint
    from fixedpoint.chains.inverse import InverseProblem as InverseProblem
    from fixedpoint.chains.inversion import InversionProgress as InversionProgress
    from fixedpoint.chains.inversion import invert_chain as invert_chain
    from fixedpoint.chains.inverted import Inversion as Inversion
    from fixedpoint.chains.inverted import InversionStatus as InversionStatus
    from fixedpoint.chains.inverters import Inverter as Inverter
    from fixedpoint.chains.inverters import JointInversion as JointInversion
    from fixedpoint.chains.inverters import StepwiseInversion as StepwiseInversion
    from fixedpoint.chains.linear import Band as Band
    from fixedpoint.chains.linear import Derivatives as Derivatives
    from fixedpoint.chains.linear import LinearPart as LinearPart
    from fixedpoint.chains.parareal import Parareal as Parareal
    from fixedpoint.chains.plan import Plan as Plan
    from fixedpoint.chains.plan import Setting as Setting
    from fixedpoint.chains.planned import PlannedChainSolver as PlannedChainSolver
    from fixedpoint.chains.preconditioner import AnyPreconditioner as AnyPreconditioner
    from fixedpoint.chains.preconditioner import Banded as Banded
    from fixedpoint.chains.preconditioner import Coefficient as Coefficient
    from fixedpoint.chains.preconditioner import Diagonal as Diagonal
    from fixedpoint.chains.preconditioner import Gaussian as Gaussian
    from fixedpoint.chains.preconditioner import Identity as Identity
    from fixedpoint.chains.preconditioner import Jacobian as Jacobian
    from fixedpoint.chains.preconditioner import Preconditioner as Preconditioner
    from fixedpoint.chains.preconditioner import Zero as Zero
    from fixedpoint.chains.scan import linear_recurrence as linear_recurrence
    from fixedpoint.chains.secant import BlockSecant as BlockSecant
    from fixedpoint.chains.serial import Serial as Serial
    from fixedpoint.chains.solver import ChainSolver as ChainSolver
    from fixedpoint.chains.start import ConstantStart as ConstantStart
    from fixedpoint.chains.start import NestedStart as NestedStart
    from fixedpoint.chains.start import OneJumpStart as OneJumpStart
    from fixedpoint.chains.workbench import Workbench as Workbench

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "fixedpoint.chains.adjoint": ("AdjointChain",),
        "fixedpoint.chains.capabilities": (
            "HasCoefficients",
            "HasGaussianSlopes",
            "HasJacobians",
            "HasNoInverse",
            "HasSlopes",
            "step_jacobians",
            "step_slopes",
        ),
        "fixedpoint.chains.chain": (
            "Chain",
            "ChainProblem",
        ),
        "fixedpoint.chains.coarse": (
            "HasCoarse",
            "HasExtension",
            "HasJumps",
        ),
        "fixedpoint.chains.costs": ("HasCostKey",),
        "fixedpoint.chains.deq_ddim": ("DEQDDIM",),
        "fixedpoint.chains.gradient": ("ChainAdjoint",),
        "fixedpoint.chains.inverse": ("InverseProblem",),
        "fixedpoint.chains.inversion": (
            "InversionProgress",
            "invert_chain",
        ),
        "fixedpoint.chains.inverted": (
            "Inversion",
            "InversionStatus",
        ),
        "fixedpoint.chains.inverters": (
            "Inverter",
            "JointInversion",
            "StepwiseInversion",
        ),
        "fixedpoint.chains.linear": (
            "Band",
            "Derivatives",
            "LinearPart",
        ),
        "fixedpoint.chains.parareal": ("Parareal",),
        "fixedpoint.chains.plan": (
            "Plan",
            "Setting",
        ),
        "fixedpoint.chains.planned": ("PlannedChainSolver",),
        "fixedpoint.chains.preconditioner": (
            "AnyPreconditioner",
            "Banded",
            "Coefficient",
            "Diagonal",
            "Gaussian",
            "Identity",
            "Jacobian",
            "Preconditioner",
            "Zero",
        ),
        "fixedpoint.chains.scan": ("linear_recurrence",),
        "fixedpoint.chains.secant": ("BlockSecant",),
        "fixedpoint.chains.serial": ("Serial",),
        "fixedpoint.chains.solver": ("ChainSolver",),
        "fixedpoint.chains.start": (
            "ConstantStart",
            "NestedStart",
            "OneJumpStart",
        ),
        "fixedpoint.chains.workbench": ("Workbench",),
    },
)
