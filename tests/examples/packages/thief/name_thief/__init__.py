"""A plugin that takes a name that is taken, beside one that is not."""

from fixedpoint.registry import Component, hookimpl


@hookimpl
def fixedpoint_solvers():
    return [
        Component("anderson", "name_thief:Stolen", "not the one you think"),
        Component("honest", "fixedpoint.solvers.picard:Picard", "plain iteration under another name"),
    ]
