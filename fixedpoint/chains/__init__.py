"""Sequential computations as joint fixed points: the chain classes, their solvers, adjoints and inversion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fixedpoint._lazy import exported

if TYPE_CHECKING:
    from fixedpoint.chains.adjoint.adjoint import AdjointChain as AdjointChain
    from fixedpoint.chains.adjoint.affine import AffineAdjointChain as AffineAdjointChain
    from fixedpoint.chains.adjoint.gradient import ChainAdjoint as ChainAdjoint
    from fixedpoint.chains.capabilities import HasCoefficients as HasCoefficients
    from fixedpoint.chains.capabilities import HasGaussianSlopes as HasGaussianSlopes
    from fixedpoint.chains.capabilities import HasJacobians as HasJacobians
    from fixedpoint.chains.capabilities import HasNoInverse as HasNoInverse
    from fixedpoint.chains.capabilities import HasReferenceSlopes as HasReferenceSlopes
    from fixedpoint.chains.capabilities import HasRepresentativeSteps as HasRepresentativeSteps
    from fixedpoint.chains.capabilities import HasSampleFactors as HasSampleFactors
    from fixedpoint.chains.capabilities import HasSlopes as HasSlopes
    from fixedpoint.chains.capabilities import step_jacobians as step_jacobians
    from fixedpoint.chains.capabilities import step_slopes as step_slopes
    from fixedpoint.chains.chain import AffineChain as AffineChain
    from fixedpoint.chains.chain import Chain as Chain
    from fixedpoint.chains.chain import PredictionChain as PredictionChain
    from fixedpoint.chains.coarse import HasCoarse as HasCoarse
    from fixedpoint.chains.coarse import HasExtension as HasExtension
    from fixedpoint.chains.coarse import HasJumps as HasJumps
    from fixedpoint.chains.inversion.invert import InversionProgress as InversionProgress
    from fixedpoint.chains.inversion.invert import invert_chain as invert_chain
    from fixedpoint.chains.inversion.methods import Inverter as Inverter
    from fixedpoint.chains.inversion.methods import JointInversion as JointInversion
    from fixedpoint.chains.inversion.methods import StepwiseInversion as StepwiseInversion
    from fixedpoint.chains.inversion.problem import InverseProblem as InverseProblem
    from fixedpoint.chains.inversion.result import Inversion as Inversion
    from fixedpoint.chains.inversion.result import InversionStatus as InversionStatus
    from fixedpoint.chains.inversion.workbench import Workbench as Workbench
    from fixedpoint.chains.joint.solver import BlockSecant as BlockSecant
    from fixedpoint.chains.joint.solver import ChainSolver as ChainSolver
    from fixedpoint.chains.joint.start import ConstantStart as ConstantStart
    from fixedpoint.chains.joint.start import InitialTrajectory as InitialTrajectory
    from fixedpoint.chains.joint.start import NestedStart as NestedStart
    from fixedpoint.chains.joint.start import OneJumpStart as OneJumpStart
    from fixedpoint.chains.joint.start import Start as Start
    from fixedpoint.chains.methods.deq_ddim import DEQDDIM as DEQDDIM
    from fixedpoint.chains.methods.parareal import Parareal as Parareal
    from fixedpoint.chains.methods.serial import Serial as Serial
    from fixedpoint.chains.planning.costs import HasCostKey as HasCostKey
    from fixedpoint.chains.planning.plan import Plan as Plan
    from fixedpoint.chains.planning.plan import Setting as Setting
    from fixedpoint.chains.planning.planned import PlannedChainSolver as PlannedChainSolver
    from fixedpoint.chains.problem import ChainProblem as ChainProblem
    from fixedpoint.chains.recurrence.affine import Affine as Affine
    from fixedpoint.chains.recurrence.linear import Band as Band
    from fixedpoint.chains.recurrence.linear import Derivatives as Derivatives
    from fixedpoint.chains.recurrence.linear import LinearPart as LinearPart
    from fixedpoint.chains.recurrence.recurrence import Held as Held
    from fixedpoint.chains.recurrence.recurrence import Recurrence as Recurrence
    from fixedpoint.chains.recurrence.recurrence import Shift as Shift
    from fixedpoint.chains.scan import linear_recurrence as linear_recurrence
    from fixedpoint.chains.slope.preconditioner import AnyPreconditioner as AnyPreconditioner
    from fixedpoint.chains.slope.preconditioner import Banded as Banded
    from fixedpoint.chains.slope.preconditioner import Coefficient as Coefficient
    from fixedpoint.chains.slope.preconditioner import Diagonal as Diagonal
    from fixedpoint.chains.slope.preconditioner import Gaussian as Gaussian
    from fixedpoint.chains.slope.preconditioner import Identity as Identity
    from fixedpoint.chains.slope.preconditioner import Jacobian as Jacobian
    from fixedpoint.chains.slope.preconditioner import Preconditioner as Preconditioner
    from fixedpoint.chains.slope.preconditioner import Zero as Zero

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "fixedpoint.chains.adjoint.adjoint": ("AdjointChain",),
        "fixedpoint.chains.adjoint.affine": ("AffineAdjointChain",),
        "fixedpoint.chains.capabilities": (
            "HasCoefficients",
            "HasGaussianSlopes",
            "HasJacobians",
            "HasNoInverse",
            "HasReferenceSlopes",
            "HasRepresentativeSteps",
            "HasSampleFactors",
            "HasSlopes",
            "step_jacobians",
            "step_slopes",
        ),
        "fixedpoint.chains.chain": ("AffineChain", "Chain", "PredictionChain"),
        "fixedpoint.chains.problem": ("ChainProblem",),
        "fixedpoint.chains.coarse": (
            "HasCoarse",
            "HasExtension",
            "HasJumps",
        ),
        "fixedpoint.chains.planning.costs": ("HasCostKey",),
        "fixedpoint.chains.methods.deq_ddim": ("DEQDDIM",),
        "fixedpoint.chains.adjoint.gradient": ("ChainAdjoint",),
        "fixedpoint.chains.inversion.problem": ("InverseProblem",),
        "fixedpoint.chains.inversion.invert": (
            "InversionProgress",
            "invert_chain",
        ),
        "fixedpoint.chains.inversion.result": (
            "Inversion",
            "InversionStatus",
        ),
        "fixedpoint.chains.inversion.methods": (
            "Inverter",
            "JointInversion",
            "StepwiseInversion",
        ),
        "fixedpoint.chains.recurrence.linear": (
            "Band",
            "Derivatives",
            "LinearPart",
        ),
        "fixedpoint.chains.methods.parareal": ("Parareal",),
        "fixedpoint.chains.planning.plan": (
            "Plan",
            "Setting",
        ),
        "fixedpoint.chains.planning.planned": ("PlannedChainSolver",),
        "fixedpoint.chains.slope.preconditioner": (
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
        "fixedpoint.chains.recurrence.affine": ("Affine",),
        "fixedpoint.chains.recurrence.recurrence": ("Held", "Recurrence", "Shift"),
        "fixedpoint.chains.scan": ("linear_recurrence",),
        "fixedpoint.chains.methods.serial": ("Serial",),
        "fixedpoint.chains.joint.solver": ("BlockSecant", "ChainSolver"),
        "fixedpoint.chains.joint.start": (
            "ConstantStart",
            "InitialTrajectory",
            "NestedStart",
            "OneJumpStart",
            "Start",
        ),
        "fixedpoint.chains.inversion.workbench": ("Workbench",),
    },
)
