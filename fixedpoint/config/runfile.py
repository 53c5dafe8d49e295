"""Reads a run file from YAML, validates it, and fills in every default."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from ruamel.yaml import YAML

from fixedpoint.config.choice import Choice
from fixedpoint.config.document import OVERRIDE, Document
from fixedpoint.config.errors import ConfigError, Path
from fixedpoint.config.labels import automatic_labels
from fixedpoint.config.merging import load_document
from fixedpoint.config.overrides import apply_overrides
from fixedpoint.config.remembered import remembered
from fixedpoint.config.resolve import Resolver
from fixedpoint.config.words import label_broken, name_broken, value_words
from fixedpoint.core.options import Options, option
from fixedpoint.core.termination import Termination
from fixedpoint.registry import Kind

__all__ = ["RunConfig", "RunFile", "load", "run_folder", "to_yaml"]

_SEEDS = 2**32
"""Seeds are below this: the range that the generators of Python, numpy and torch all accept."""


@dataclass(frozen=True)
class RunFile(Options):
    """The keys of a run file."""

    tasks: tuple[Any, ...] = option(help="what is solved: names, or mappings of a name, options and a label")
    solvers: tuple[Any, ...] = option(help="what solves it: names, or mappings of a name, options and a label")
    gradients: tuple[Any, ...] = option((), help="gradient estimators, for tasks that train or differentiate")
    name: str | None = option(None, help="name of the run; by default that of the file")
    seeds: tuple[int, ...] = option((0,), help="every pair is run once for each seed")
    termination: Any = option(factory=dict, help="when a row is done: rtol, atol, max_rounds, ...")
    executor: Any = option("in-process", help="how the cells are carried out")
    expect: Any = option(factory=dict, help="upper bounds on metrics; a cell above one fails the run")
    threads: int | None = option(None, ge=1, le=1024, help="number of threads of torch; by default its own choice")
    extends: str | None = option(None, help="another run file, whose keys this one overrides")


@dataclass(frozen=True)
class RunConfig:
    """A validated run file with every default filled in, as plain values.

    Attributes
    ----------
    name
        Name of the run.
    seeds
        Seeds, from 0 to 2^32 - 1.
    tasks, solvers, gradients
        The components that are compared. If ``gradients`` is empty, the cells have no gradient estimator.
    termination
        Fields of :class:`fixedpoint.Termination`.
    executor
        The executor.
    expect
        Upper bounds by metric.
    threads
        Number of threads of torch, from 1 to 1024; None for torch's default.
    files
        The run file and those that it extends, which a run never replaces.
    """

    name: str
    seeds: tuple[int, ...]
    tasks: tuple[Choice, ...]
    solvers: tuple[Choice, ...]
    gradients: tuple[Choice, ...]
    termination: dict[str, Any]
    executor: Choice
    expect: dict[str, float]
    threads: int | None
    files: tuple[FilePath, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return the content of a run file that sets every option explicitly."""
        plain: dict[str, Any] = {"name": self.name, "seeds": list(self.seeds)}
        for key, choices in (("tasks", self.tasks), ("solvers", self.solvers), ("gradients", self.gradients)):
            plain[key] = [{"name": c.config["name"], "label": c.label, **c.config} for c in choices]
        plain |= {"termination": self.termination, "executor": self.executor.config, "expect": self.expect}
        return plain if self.threads is None else {**plain, "threads": self.threads}


def run_folder(name: str) -> FilePath:
    """Return the default folder of a run with the given name."""
    return FilePath("runs") / name


def load(file: str | FilePath, overrides: Iterable[str] = (), output: FilePath | None = None) -> RunConfig:
    """Read and validate a run file.

    Parameters
    ----------
    file
        The run file.
    overrides
        ``key.path=value`` pairs, e.g. ``tasks[0].batch=4``.
    output
        The run folder. Default: ``runs/NAME``. Its records are searched for the distribution of a missing component.

    Raises
    ------
    ConfigError
        If there are mistakes. The message has one line for each: ``file:line:col: where: what``.
    """
    document = load_document(file)
    apply_overrides(document, overrides)
    # Reading the file removed its own ``extends``, so this one comes from an override.
    if isinstance(document.data, dict) and "extends" in document.data:
        key: Path = ("extends",)
        raise ConfigError.at(document.place(key), "is read of files alone; write it into the run file", key)
    return _Reading(document, FilePath(file), output).config()


def to_yaml(plain: Mapping[str, Any]) -> str:
    """Return plain data as YAML text, with keys in the given order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # keep the order of keys
    yaml.width = 100
    stream = io.StringIO()
    yaml.dump(dict(plain), stream)
    return stream.getvalue()


class _Reading:
    """Validates one document key by key, and reports the mistakes of all keys together."""

    def __init__(self, document: Document, file: FilePath, output: FilePath | None) -> None:
        self.document = document
        self.stem = file.stem
        self.files = {str(file), *(place.file for place in document.values.values())} - {"", OVERRIDE}
        data = document.data
        named = data.get("name") if isinstance(data, dict) else None
        self.name = named if isinstance(named, str) else file.stem
        folder = output or run_folder("unnamed" if name_broken(self.name) else self.name)
        self.resolver = Resolver(document, lambda kind, name: remembered(kind, name, (folder, file.parent)))

    def config(self) -> RunConfig:
        """Return the run; raise ConfigError with all mistakes."""
        data = self.document.data
        if data is None:
            raise ConfigError.at(self.document.place(()), "the file is empty; a run requires tasks and solvers")
        if not isinstance(data, dict):
            raise ConfigError.at(
                self.document.place(()), f"must be a mapping with tasks and solvers, got {_kind(data)}"
            )
        top = self.resolver.options(RunFile, data, ())
        tasks = self._choices("task", data.get("tasks", ()), required="tasks" in data)
        solvers = self._choices("solver", data.get("solvers", ()), required="solvers" in data)
        gradients = self._choices("gradient", data.get("gradients", ()), required=False)
        termination = self.resolver.options(Termination, data.get("termination", {}), ("termination",))
        executor = self.resolver.component("executor", data.get("executor", "in-process"), ("executor",))
        expect = self._expect(data.get("expect", {}))
        self._check_seeds(data.get("seeds", ()))
        self._check_name(data.get("name"))
        if self.resolver.mistakes or top is None or termination is None or executor is None:
            raise ConfigError(self.resolver.mistakes)
        return RunConfig(
            name=self.name,
            seeds=tuple(top["seeds"]),
            tasks=tasks,
            solvers=solvers,
            gradients=gradients,
            termination=termination,
            executor=executor,
            expect=expect,
            threads=top["threads"],
            files=tuple(map(FilePath, sorted(self.files))),
        )

    def _choices(self, kind: Kind, given: Any, required: bool) -> tuple[Choice, ...]:
        """The components of one list with their labels; empty if there are mistakes."""
        path: Path = (f"{kind}s",)
        if not isinstance(given, list):
            return ()  # of the wrong type or missing: refused together with the other keys of the run file
        if required and not given:
            self.resolver.refuse(path, f"requires at least one {kind}")
        specs = [{"name": item} if isinstance(item, str) else item for item in given]
        bare = [_without_label(spec) for spec in specs]
        shown = [item if isinstance(item, str) else spec for item, spec in zip(given, bare, strict=True)]
        found = [self.resolver.component(kind, item, (*path, index)) for index, item in enumerate(shown)]
        choices = [choice for choice in found if choice is not None]
        if len(choices) < len(specs):
            return ()
        # Labels of tasks show only what distinguishes them; those of solvers show all that the file sets.
        written = [{} if kind == "task" else spec for spec in bare]
        labels = automatic_labels([choice.config for choice in choices], written)
        labelled = [
            replace(choice, label=self._label(spec, label, (*path, index)))
            for index, (choice, spec, label) in enumerate(zip(choices, specs, labels, strict=True))
        ]
        self._distinct(labelled, path)
        return tuple(labelled)

    def _label(self, spec: Mapping[str, Any], automatic: str, path: Path) -> str:
        label = spec.get("label", automatic)
        if isinstance(label, str) and label.strip():
            wrong = label_broken(label.strip())
            if wrong:
                self.resolver.refuse((*path, "label"), wrong)
            return label.strip()
        here, document = (*path, "label"), self.document
        got = document.typed(here, label) if label != "" else "an empty one"
        self.resolver.refuse(here, f"must be a string, got {got}{document.in_quotes(here, label)}")
        return automatic

    def _distinct(self, choices: list[Choice], path: Path) -> None:
        """Refuse components of one list that are equal or have the same label."""
        configs: dict[str, int] = {}
        labels: dict[str, int] = {}
        for index, choice in enumerate(choices):
            same = configs.setdefault(json.dumps(choice.config, sort_keys=True), index)
            namesake = labels.setdefault(choice.label, index)
            if same != index:
                self.resolver.refuse((*path, index), f"is the same as {path[0]}[{same}]")
            elif namesake != index:
                self.resolver.refuse(
                    (*path, index), f'the label "{choice.label}" is already that of {path[0]}[{namesake}]'
                )

    def _check_name(self, given: Any) -> None:
        """Refuse a name that cannot be that of a folder: of the run's own in ``runs``."""
        if given is None:
            wrong = name_broken(self.stem)
            if wrong:
                self.resolver.refuse(("name",), f"is missing, and that of the file cannot be it: {wrong}")
        elif isinstance(given, str):
            wrong = "must not be empty; null is that of the file" if not given.strip() else name_broken(given)
            if wrong:
                self.resolver.refuse(("name",), wrong)

    def _check_seeds(self, given: Any) -> None:
        if given == []:
            self.resolver.refuse(("seeds",), "requires at least one seed")
        if not isinstance(given, list) or not all(type(seed) is int for seed in given):
            return  # missing, or refused together with the other keys of the run file
        for index, seed in enumerate(given):
            if not 0 <= seed < _SEEDS:
                got = self.document.typed(("seeds", index), seed)
                self.resolver.refuse(("seeds", index), f"must be at least 0 and less than 2^32, got {got}")
            if seed in given[:index]:
                self.resolver.refuse(("seeds", index), f"the seed {seed} stands here twice")

    def _expect(self, given: Any) -> dict[str, float]:
        if not isinstance(given, dict):
            got = self.document.typed(("expect",), given)
            self.resolver.refuse(("expect",), f"must be a mapping of metrics and bounds, got {got}")
            return {}
        for metric, bound in given.items():
            if isinstance(bound, bool) or not isinstance(bound, (int, float)):
                got = self.document.typed(("expect", metric), bound)
                self.resolver.refuse(("expect", metric), f"must be a number, got {got}")
        return {} if self.resolver.mistakes else {metric: float(bound) for metric, bound in given.items()}


def _without_label(spec: Any) -> Any:
    return {key: value for key, value in spec.items() if key != "label"} if isinstance(spec, dict) else spec


def _kind(data: Any) -> str:
    return value_words(data) if isinstance(data, (list, dict)) else "a single value"
