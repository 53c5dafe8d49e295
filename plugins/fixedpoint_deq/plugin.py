"""Registers the task ``digits-deq``."""

from __future__ import annotations

from fixedpoint.registry import Component, hookimpl


@hookimpl
def fixedpoint_tasks() -> list[Component]:
    return [
        Component(
            "digits-deq",
            "fixedpoint_deq.task:DigitsDEQ",
            "train a convolutional deep equilibrium classifier of handwritten digits",
            ("Bai, Kolter & Koltun 2019", "Bai, Koltun & Kolter 2020"),
        )
    ]
