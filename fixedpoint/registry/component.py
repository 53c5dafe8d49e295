"""The registry entry of a solver, gradient estimator, task or executor, readable without importing its module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from fixedpoint.core.foreign import brief, guarded
from fixedpoint.core.options import Options, option_types, undecorated
from fixedpoint.registry.entry import RegistryEntry

__all__ = ["KINDS", "Component", "Kind", "fault_of_abilities"]

Kind = Literal["solver", "gradient", "task", "executor"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Component(RegistryEntry):
    """A solver, gradient estimator, task or executor by name.

    Attributes
    ----------
    name
        The name in run files and on the command line, e.g. ``"anderson"``.
    factory
        Import string ``"package.module:Class"``, loaded on first use, or the class itself. The class is a frozen
        dataclass of options.
    summary
        One line for ``fixedpoint list``.
    references
        The papers it implements, e.g. ``("Anderson 1965",)``.
    requires
        Import names that the class requires in addition to the base installation, e.g. ``("diffusers",)``.
    extra
        The extra that installs ``requires``, e.g. ``"diffusion"``, of the distribution that brings the component.
    aliases
        Further names by which run files and commands may call it, e.g. a name that it had before. Records and reports
        keep the name that was typed.
    source, version
        Name and version of the distribution that brings the component. The registry sets both.
    kind
        What the registry holds it as, which it sets, too.
    """

    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All its names, its own first."""
        return (self.name, *self.aliases)

    def fault(self, factory: Any) -> str:
        """Return why a class cannot be a component: it must be a frozen dataclass of options."""
        parameters: Any = getattr(factory, "__dataclass_params__", None)
        if parameters is None or not isinstance(factory, type) or not issubclass(factory, Options):
            return "is no dataclass of options, so it has none that can be set by name"
        if not parameters.frozen:
            return "is not frozen; write @dataclass(frozen=True) above it"
        return undecorated(factory) or self._unfit(factory)

    def _unfit(self, factory: type[Options]) -> str:
        """Why a class of options is none of the kind as which it is registered, or has options that cannot be read."""
        base = _base_of(self.kind)
        if base is not None and not issubclass(factory, base):
            return f"is no {self.kind}: it is not derived from {base.__name__}"
        try:
            option_types(factory)
        except Exception as error:  # an annotation is code of others
            return f"has options whose types cannot be read: {brief(error)}"
        for name in ("needs", "provides"):
            abilities: Any = getattr(factory, name, frozenset())
            if not isinstance(abilities, frozenset) and not hasattr(type(abilities), "__get__"):
                return f"must have a frozenset of names as {name}, got {abilities!r:.80}"
        return ""


def fault_of_abilities(instance: Any) -> str:
    """Return what is wrong with what a built component says that it needs and provides; empty if nothing is."""
    for name in ("needs", "provides"):
        try:
            with guarded():
                abilities: Any = getattr(instance, name, frozenset())
        except Exception as error:  # they may depend on the options, by code of others
            return f"{name} cannot be had: {brief(error)}"
        if not isinstance(abilities, frozenset):
            return f"{name} must be a frozenset of names, got {abilities!r:.80}"
    return ""


def _base_of(kind: str) -> type | None:
    """The class that components of a kind are derived from."""
    if kind == "solver":
        from fixedpoint.core.solver import Solver

        return Solver
    if kind == "gradient":
        from fixedpoint.gradients.estimator import GradientEstimator

        return GradientEstimator
    if kind == "task":
        from fixedpoint.tasks.task import Task

        return Task
    if kind == "executor":
        from fixedpoint.execution.executor import Executor

        return Executor
    return None
