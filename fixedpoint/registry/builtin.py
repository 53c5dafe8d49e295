"""What the library itself brings, by the same door as everyone else's plugins."""

from __future__ import annotations

from fixedpoint.registry.component import Component
from fixedpoint.registry.hookspecs import hookimpl

__all__: list[str] = []


@hookimpl
def fixedpoint_solvers() -> list[Component]:
    return [
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
            "Broyden's good method with limited memory",
            ("Broyden 1965",),
        ),
        Component(
            "chain",
            "fixedpoint.chains.solver:ChainSolver",
            "a chain as one joint fixed point: preconditioner and accelerator",
            ("Pokle, Geng & Kolter 2022", "Shih et al. 2023", "Tang et al. 2024"),
        ),
        Component(
            "serial",
            "fixedpoint.chains.serial:Serial",
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
            "unrolled",
            "fixedpoint.gradients.unrolled:Unrolled",
            "backpropagation through the iterations",
            ("Gilbert 1992",),
        ),
    ]


@hookimpl
def fixedpoint_executors() -> list[Component]:
    return [
        Component("in-process", "fixedpoint.runs.executors:InProcess", "one cell after another, in this process"),
    ]
