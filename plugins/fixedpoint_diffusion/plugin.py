"""Registers the task ``sampling`` and the commands ``invert`` and ``sample``."""

from __future__ import annotations

from fixedpoint.registry import Command, Component, hookimpl


@hookimpl
def fixedpoint_tasks() -> list[Component]:
    return [
        Component(
            "sampling",
            "fixedpoint_diffusion.task:Sampling",
            "sample a diffusion model jointly, by any sampler, and compare with its serial run",
            ("Song, Meng & Ermon 2021", "Pokle, Geng & Kolter 2022"),
            aliases=("ddim-sampling",),
        ),
    ]


@hookimpl
def fixedpoint_commands() -> list[Command]:
    return [
        Command(
            "invert",
            "fixedpoint_diffusion.command.invert:invert",
            "find the noise that a diffusion model turns into given images",
            ("Song, Meng & Ermon 2021", "Pokle, Geng & Kolter 2022"),
            requires=("diffusers", "safetensors", "PIL"),
            extra="diffusion",
        ),
        Command(
            "sample",
            "fixedpoint_diffusion.command.sample:sample",
            "sample a diffusion pipeline, with all steps solved at once",
            ("Pokle, Geng & Kolter 2022",),
            requires=("diffusers", "safetensors", "PIL"),
            extra="diffusion",
        ),
    ]
