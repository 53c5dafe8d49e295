"""Registers the three solvers of torchdeq."""

from __future__ import annotations

from fixedpoint.registry import Component, hookimpl


@hookimpl
def fixedpoint_solvers() -> list[Component]:
    return [
        Component(
            "torchdeq-picard",
            "fixedpoint_torchdeq.theirs:TorchdeqPicard",
            "torchdeq's fixed_point_iter, judged from outside",
            ("Geng & Kolter 2023",),
            requires=("torchdeq",),
        ),
        Component(
            "torchdeq-anderson",
            "fixedpoint_torchdeq.theirs:TorchdeqAnderson",
            "torchdeq's anderson_solver, judged from outside",
            ("Geng & Kolter 2023", "Anderson 1965"),
            requires=("torchdeq",),
        ),
        Component(
            "torchdeq-broyden",
            "fixedpoint_torchdeq.theirs:TorchdeqBroyden",
            "torchdeq's broyden_solver, judged from outside",
            ("Geng & Kolter 2023", "Broyden 1965"),
            requires=("torchdeq",),
        ),
    ]
