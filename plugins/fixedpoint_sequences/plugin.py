"""Registers the tasks ``recurrent-network`` and ``euler-ode``."""

from __future__ import annotations

from fixedpoint.registry import Component, hookimpl


@hookimpl
def fixedpoint_tasks() -> list[Component]:
    return [
        Component(
            "recurrent-network",
            "fixedpoint_sequences.recurrent_task:RecurrentNetwork",
            "a recurrent network over a sequence, all its states at once",
            ("Elman 1990", "Cho et al. 2014", "Lim et al. 2024"),
        ),
        Component(
            "euler-ode",
            "fixedpoint_sequences.euler_task:EulerODE",
            "an explicit Euler solve of an ordinary differential equation, all its steps at once",
            ("Lorenz 1963", "van der Pol 1926", "Lotka 1920"),
        ),
    ]
