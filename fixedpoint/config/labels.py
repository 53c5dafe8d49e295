"""Short and unique labels for the tasks, solvers and gradient estimators of a run, as shown in reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["automatic_labels"]


def automatic_labels(configs: Sequence[Mapping[str, Any]], written: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a label for each component: its name, followed by the options that distinguish it.

    A label shows an option if the run file sets it, or if components of the same name differ in it.

    Parameters
    ----------
    configs
        Name and every option of each component.
    written
        The options of each component that the run file sets and its label must show (``{}`` for none).
    """
    labels = []
    namesakes: dict[str, list[Mapping[str, Any]]] = {}
    for config in configs:
        namesakes.setdefault(config["name"], []).append(config)
    # Asked once for all components of a name: a run may have thousands of them.
    differing = {name: _differing(same) for name, same in namesakes.items()}
    for config, spelt in zip(configs, written, strict=True):
        same, different = namesakes[config["name"]], differing[config["name"]]
        shown = [key for key in config if key != "name" and (key in spelt or key in different)]
        words = ", ".join(_words(key, config[key], spelt.get(key), same) for key in shown)
        labels.append(f"{config['name']} ({words})" if words else str(config["name"]))
    return _unique(labels)


def _differing(configs: Sequence[Mapping[str, Any]]) -> set[str]:
    """The options that are not the same in all components."""
    first = configs[0]
    return {key for config in configs for key in {*config, *first} if config.get(key) != first.get(key)}


def _words(key: str, value: Any, spelt: Any, same: Sequence[Mapping[str, Any]]) -> str:
    """One option in a label: a string alone, and a number with the name of its option.

    Of a nested component, what distinguishes it from others of its name is shown, too; ``same`` are what it may be an
    option of.
    """
    if isinstance(value, Mapping) and "name" in value:
        others = [each.get(key) for each in same]
        alike = [other for other in others if isinstance(other, Mapping) and other.get("name") == value["name"]]
        given = spelt if isinstance(spelt, Mapping) else {}
        words = [
            _words(part, inner, given.get(part), alike)
            for part, inner in value.items()
            if part != "name" and (part in given or any(other.get(part) != inner for other in alike))
        ]
        return " ".join([value["name"], *words])
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return f"{key}={'none' if value is None else str(value).lower()}"
    return f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"


def _unique(labels: list[str]) -> list[str]:
    """The labels with a number appended to those that occur more than once."""
    total = Counter(labels)
    seen: Counter[str] = Counter()
    unique = []
    for label in labels:
        seen[label] += 1
        unique.append(f"{label} #{seen[label]}" if total[label] > 1 else label)
    return unique
