"""Labels: what reports call the tasks and solvers of a run, short and unique."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["automatic_labels"]


def automatic_labels(configs: Sequence[Mapping[str, Any]], written: Sequence[Mapping[str, Any]]) -> list[str]:
    """A label for each of several components: the name, and the options that set it apart.

    Parameters
    ----------
    configs
        Names and options, all filled in.
    written
        The options that the run file spells out and a label is to show (``{}``: none).

    An option is shown when it is written, or when components of the same name differ in it.
    """
    labels = []
    for config, spelt in zip(configs, written, strict=True):
        same = [other for other in configs if other["name"] == config["name"]]
        shown = [
            key
            for key, value in config.items()
            if key != "name" and (key in spelt or any(other.get(key) != value for other in same))
        ]
        words = ", ".join(_words(key, config[key], spelt.get(key)) for key in shown)
        labels.append(f"{config['name']} ({words})" if words else str(config["name"]))
    return _unique(labels)


def _words(key: str, value: Any, spelt: Any) -> str:
    """A word says for itself what it is; a number needs the name of its option."""
    if isinstance(value, Mapping) and "name" in value:
        inner = [part for part in value if part != "name" and isinstance(spelt, Mapping) and part in spelt]
        return " ".join([value["name"], *(_words(part, value[part], spelt[part]) for part in inner)])
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return f"{key}={'none' if value is None else str(value).lower()}"
    return f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"


def _unique(labels: list[str]) -> list[str]:
    total = Counter(labels)
    seen: Counter[str] = Counter()
    unique = []
    for label in labels:
        seen[label] += 1
        unique.append(f"{label} #{seen[label]}" if total[label] > 1 else label)
    return unique
