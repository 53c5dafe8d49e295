"""The plugin that registers the library's own components and commands, through the same hooks as any other plugin."""

from __future__ import annotations

from fixedpoint.registry.command import Command
from fixedpoint.registry.component import Component
from fixedpoint.registry.hookspecs import hookimpl

__all__: list[str] = []


@hookimpl
def fixedpoint_solvers() -> list[Component]:
    return [*_accelerations(), *_newton(), *_combinations(), *_of_chains()]


def _accelerations() -> list[Component]:
    """Solvers for problems of any kind that call ``f`` alone."""
    return [
        Component(
            "auto",
            "fixedpoint.solvers.auto:Auto",
            "the documented choice: long-memory Anderson and SQUAREM in turns, then Newton-Krylov",
            ("Walker & Ni 2011", "Varadhan & Roland 2008", "Knoll & Keyes 2004"),
        ),
        Component(
            "picard",
            "fixedpoint.solvers.picard:Picard",
            "plain iteration, optionally relaxed",
            ("Banach 1922", "Krasnoselskii 1955", "Mann 1953"),
        ),
        Component(
            "anderson",
            "fixedpoint.solvers.anderson:Anderson",
            "Anderson acceleration, type II: combines the last steps",
            ("Anderson 1965", "Walker & Ni 2011", "Pollock & Rebholz 2023"),
        ),
        Component(
            "broyden",
            "fixedpoint.solvers.broyden:Broyden",
            "Broyden's method, good or bad, with limited memory",
            ("Broyden 1965",),
        ),
        Component(
            "anderson-type1",
            "fixedpoint.solvers.anderson_type1:AndersonTypeOne",
            "Anderson acceleration, type I, safeguarded",
            ("Fang & Saad 2009", "Zhang, O'Donoghue & Boyd 2020"),
        ),
        Component(
            "aitken",
            "fixedpoint.solvers.aitken:Aitken",
            "dynamic relaxation: one length per row from the last two residuals",
            ("Irons & Tuck 1969", "Macleod 1986"),
        ),
        Component(
            "squarem",
            "fixedpoint.solvers.squarem:Squarem",
            "squared and cyclic extrapolation, for EM and other slow monotone maps",
            ("Varadhan & Roland 2008", "Lepage-Saucier 2024"),
        ),
    ]


def _newton() -> list[Component]:
    """Solvers that call for products with the Jacobian."""
    return [
        Component(
            "newton-krylov",
            "fixedpoint.solvers.newton_krylov:NewtonKrylov",
            "Newton's method with GMRES",
            ("Knoll & Keyes 2004", "Eisenstat & Walker 1996"),
        ),
        Component(
            "newton",
            "fixedpoint.solvers.newton:Newton",
            "Newton's method with whole Jacobians, damped by the natural monotonicity test",
            ("Deuflhard 2004",),
        ),
        Component(
            "trust-region",
            "fixedpoint.solvers.trust_region:TrustRegion",
            "Levenberg and Marquardt's method as a trust region",
            ("Moré 1978", "Powell 1970"),
        ),
        Component(
            "krylov",
            "fixedpoint.solvers.krylov:Krylov",
            "an affine map as one linear system, by GMRES or BiCGSTAB",
            ("Saad & Schultz 1986", "van der Vorst 1992"),
        ),
    ]


def _combinations() -> list[Component]:
    """Solvers that wrap or combine other solvers."""
    return [
        Component(
            "damped",
            "fixedpoint.solvers.damped:Damped",
            "a step solver whose steps are shortened",
        ),
        Component(
            "restarted",
            "fixedpoint.solvers.restarted:Restarted",
            "a step solver that forgets its history regularly",
            ("Fang & Saad 2009",),
        ),
        Component(
            "roots",
            "fixedpoint.solvers.roots:Roots",
            "the default of find_root: Newton, a trust region, then Broyden",
            ("Rice 1969", "Pal et al. 2024"),
        ),
        Component(
            "polyalgorithm",
            "fixedpoint.solvers.polyalgorithm:Polyalgorithm",
            "one solver, then another for the rows it did not solve",
            ("Rice 1969",),
        ),
    ]


def _of_chains() -> list[Component]:
    """Solvers for chains."""
    return [
        Component(
            "chain",
            "fixedpoint.chains.joint.solver:ChainSolver",
            "a chain as one joint fixed point: preconditioner and accelerator",
            ("Pokle, Geng & Kolter 2022", "Shih et al. 2023", "Tang et al. 2024"),
        ),
        Component(
            "block-secant",
            "fixedpoint.chains.joint.solver:BlockSecant",
            "for chains: the slope of every step, corrected by its own last moves",
            ("Fang & Saad 2009",),
        ),
        Component(
            "deq-ddim",
            "fixedpoint.chains.methods.deq_ddim:DEQDDIM",
            "DEQ-DDIM as published: its joint map, every state mixed alone",
            ("Pokle, Geng & Kolter 2022",),
        ),
        Component(
            "parareal",
            "fixedpoint.chains.methods.parareal:Parareal",
            "a chain in blocks: fine steps in all of them at once, coarse jumps in sequence (SRDS)",
            ("Lions, Maday & Turinici 2001", "Selvam et al. 2024"),
        ),
        Component(
            "serial",
            "fixedpoint.chains.methods.serial:Serial",
            "a chain one step after another: the reference",
        ),
    ]


@hookimpl
def fixedpoint_gradients() -> list[Component]:
    return [
        Component(
            "one-step",
            "fixedpoint.gradients.one_step:OneStep",
            "one application of f at the solution (JFB)",
            ("Fung et al. 2022",),
        ),
        Component(
            "implicit",
            "fixedpoint.gradients.implicit:Implicit",
            "the exact gradient: the adjoint equation, solved by any solver",
            ("Bai, Kolter & Koltun 2019",),
        ),
        Component(
            "neumann",
            "fixedpoint.gradients.neumann:Neumann",
            "some terms of the Neumann series",
            ("Lorraine, Vicol & Duvenaud 2020",),
        ),
        Component(
            "phantom",
            "fixedpoint.gradients.phantom:Phantom",
            "some damped steps from the solution, differentiated",
            ("Geng et al. 2021",),
        ),
        Component(
            "shine",
            "fixedpoint.gradients.shine:Shine",
            "the forward solver's own estimate of the inverse Jacobian",
            ("Ramzi et al. 2022", "Fang & Saad 2009"),
        ),
        Component(
            "checkpointed-unrolled",
            "fixedpoint.gradients.checkpointed:CheckpointedUnrolled",
            "backpropagation through the iterations, in segments taken again",
            ("Griewank & Walther 2000", "Chen et al. 2016"),
        ),
        Component(
            "chain-adjoint",
            "fixedpoint.chains.adjoint.gradient:ChainAdjoint",
            "the exact gradient of a chain, by its adjoint chain in parallel rounds",
            ("Pontryagin et al. 1962",),
        ),
        Component(
            "unrolled",
            "fixedpoint.gradients.unrolled:Unrolled",
            "backpropagation through the iterations",
            ("Gilbert 1992",),
        ),
    ]


@hookimpl
def fixedpoint_executors() -> list[Component]:
    return [
        Component("in-process", "fixedpoint.execution.executor:InProcess", "one cell after another, in this process"),
    ]


@hookimpl
def fixedpoint_commands() -> list[Command]:
    return [
        Command("run", "fixedpoint.cli.run:run", "every task with every solver of a file, and a report"),
        Command("list", "fixedpoint.cli.list:list_components", "what there is, and what cannot be used"),
        Command("show", "fixedpoint.cli.show:show", "what a component is, its options"),
        Command("report", "fixedpoint.cli.report:report", "the report of a run folder, again"),
        Command("check", "fixedpoint.cli.check:check", "the conformance suite for one solver or gradient"),
        Command("init", "fixedpoint.cli.init:init", "a run file to start from"),
        Command("schema", "fixedpoint.cli.schema:schema", "the JSON schema of run files"),
        Command("doctor", "fixedpoint.cli.doctor:doctor", "versions, devices, plugins"),
    ]
