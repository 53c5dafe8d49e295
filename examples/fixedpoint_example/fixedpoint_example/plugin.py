"""Registers the components of this package, with one hook per kind.

Factories are import strings, so that listing the components imports none of them.
"""

from __future__ import annotations

from fixedpoint.plugin import Component, hookimpl


@hookimpl
def fixedpoint_solvers() -> list[Component]:
    return [
        Component(
            "irons-tuck",
            "fixedpoint_example.irons_tuck:IronsTuck",
            "dynamic relaxation: a step length per row, from the last two residuals",
            ("Irons & Tuck 1969", "Kuettler & Wall 2008"),
        )
    ]


@hookimpl
def fixedpoint_gradients() -> list[Component]:
    return [
        Component(
            "lyusternik",
            "fixedpoint_example.lyusternik:Lyusternik",
            "a Neumann series of vector-Jacobian products, its tail guessed",
            ("Lyusternik 1947",),
        )
    ]


@hookimpl
def fixedpoint_tasks() -> list[Component]:
    return [
        Component(
            "random-mdp",
            "fixedpoint_example.random_mdp:RandomMDP",
            "value iteration on random Markov decision processes, against policy iteration",
            ("Puterman 1994",),
        )
    ]
