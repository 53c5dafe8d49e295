"""What the diffusion plugin brings: its tasks."""

from __future__ import annotations

from fixedpoint.registry import Component, hookimpl


@hookimpl
def fixedpoint_tasks() -> list[Component]:
    return [
        Component(
            "ddim-sampling",
            "fixedpoint_diffusion.task:DDIMSampling",
            "sample a diffusion chain jointly and compare with sequential DDIM",
            ("Song, Meng & Ermon 2021", "Pokle, Geng & Kolter 2022"),
        ),
    ]
