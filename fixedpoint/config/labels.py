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
    for config, spelt in zip(configs, written, strict=True):
        same = [other for other in configs if other["name"] == config["name"]]
        shown = [
            key
            for key, value in config.items()
            if key != "name" and (key in spelt or any(other.get(key) != value for other in same))
        ]
        words = ", ".join(_words(key, config[key], spelt.get(key), [each.get(key) for each in same]) for key in shown)
        labels.append(f"{config['name']} ({words})" if words else str(config["name"]))
    return _unique(labels)


def _words(key: str, value: Any, spelt: Any, others: Sequence[Any]) -> str:
    """One option in a label: a string alone, and a number with the name of its option.

    Of a nested component, what distinguishes it from others of its name is shown, too.
    """
    if isinstance(value, Mapping) and "name" in value:
        alike = [other for other in others if isinstance(other, Mapping) and other.get("name") == value["name"]]
        given = spelt if isinstance(spelt, Mapping) else {}
        words = [
            _words(part, inner, given.get(part), [other.get(part) for other in alike])
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
