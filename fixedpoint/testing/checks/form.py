"""Checks that a solver is a value defined by its options."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any

from fixedpoint.core.options import Options
from fixedpoint.core.solver import Solver
from fixedpoint.registry import Component, registry
from fixedpoint.testing.bench import Bench, require
from fixedpoint.testing.checks.table import check


@check("options")
def options(bench: Bench) -> str:
    """The solver is a frozen, hashable value that can be rebuilt from its options, by name through JSON, and by pickle.

    Records, cell hashes and files rely on this.
    """
    solver = bench.solver
    kind = type(solver)
    require(dataclasses.is_dataclass(solver), f"{kind.__name__} is no dataclass")
    require(kind.__dataclass_params__.frozen, f"{kind.__name__} is not frozen")  # type: ignore[attr-defined]
    fields = {field.name: getattr(solver, field.name) for field in dataclasses.fields(solver) if field.init}  # type: ignore[arg-type]
    copies: list[Any] = [kind(**fields), copy.deepcopy(solver)]
    if "<locals>" not in kind.__qualname__:
        copies.append(pickle.loads(pickle.dumps(solver)))
    spec = _spec(solver)
    if spec is not None:
        copies.append(registry.create("solver", json.loads(json.dumps(spec))))
    for rebuilt in copies:
        require(rebuilt == solver, f"rebuilt as {rebuilt!r} from {solver!r}")
        require(hash(rebuilt) == hash(solver), "equal solvers have different hashes")
    by_name = f"by name: {spec}" if spec is not None else "not registered, so not by name"
    return f"rebuilt from its options; {by_name}"


def _spec(solver: Solver) -> dict[str, Any] | None:
    """Return the mapping that builds this solver by name; None if it, or a solver inside it, has no name."""
    name = next((name for name, entry in registry.components("solver").items() if _makes(entry, solver)), None)
    if name is None:
        return None
    return _options(solver, name)


def _options(value: Options, name: str) -> dict[str, Any] | None:
    """Return the mapping of a name and options, nested options included; None if a solver inside has no name."""
    spec: dict[str, Any] = {"name": name}
    for field in dataclasses.fields(value):  # type: ignore[arg-type]  # checked above
        held = getattr(value, field.name)
        if isinstance(held, Solver):
            held = _spec(held)
        elif isinstance(held, Options):
            held = _options(held, held.variant or type(held).__name__)
        if held is None and getattr(value, field.name) is not None:
            return None
        spec[field.name] = held
    return spec


def _makes(entry: Component, solver: Solver) -> bool:
    kind = type(solver)
    if entry.factory in (kind, f"{kind.__module__}:{kind.__qualname__}"):
        return True
    try:
        return not entry.missing() and entry.load() is kind
    except Exception:  # a component of another package that cannot be loaded is not this solver
        return False
