"""Mutants of solvers: for every check, solvers broken in the way that the check must catch.

A check that no broken solver fails protects nothing. Most of these defects were found in published code.
"""

from fixedpoint.core.solver import Solver
from mutants import loops, steps

__all__ = ["MUTANTS"]

MUTANTS: dict[str, tuple[Solver, ...]] = {
    "returned-error": (loops.ReturnsTheImage(), loops.ReturnsTheLast()),
    "honest-convergence": (loops.LoosensTheTolerance(), loops.CountsItselfConverged()),
    "contractions": (steps.StandsStill(), steps.Overshoots()),
    "solved-start": (steps.WarmsUp(),),
    "max-rounds": (loops.GoesOn(),),
    "counts": (steps.PeeksBehind(), steps.EvaluatesTwice(), steps.ForgetsTheTry()),
    "start-kept": (steps.WritesInPlace(),),
    "row-alone": (steps.MixesRows(),),
    "nonfinite-neighbour": (steps.SpreadsNaN(),),
    "diverging-neighbour": (steps.SlowsForTheWorst(),),
    "nonfinite": (loops.ReturnsTheLast(), loops.CallsItDiverged()),
    "diverging": (loops.ReturnsTheLast(), loops.CountsItselfConverged()),
    "exception": (loops.WrapsExceptions(), loops.SwallowsExceptions()),
    "degenerate": (steps.DividesByNothing(),),
    "scale": (steps.AbsoluteRidge(),),
    "relaxation": (loops.TestsTheRelaxedStep(),),
    "structure": (steps.LooksAtLeaves(),),
    "strides": (steps.AssumesContiguous(),),
    "deterministic": (steps.Dithers(),),
    "narrow-dtypes": (steps.StepsTooCoarsely(), steps.Drifts()),
    "dtype-drift": (steps.Drifts(),),
    "best-returned": (loops.KeepsTheLast(),),
    "memory": (loops.AllocatesAhead(),),
    "claimed-error": (loops.ClaimsTooLittle(),),
    "claimed-convergence": (loops.ClaimsTheLimit(),),
    "options": (steps.Mutable(), steps.ForgetsAnOption()),
}
"""The solvers that each check must fail, by the name of the check."""
