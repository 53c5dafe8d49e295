"""``fixedpoint doctor``: shows what is installed, the devices of the machine, and plugins that cannot be used."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from fixedpoint.cli.output import kept_clean
from fixedpoint.cli.sentences import FAILED

__all__ = ["doctor"]

_DISTRIBUTION = "fixedpoint-solvers"
_EXTRAS = ("report", "diffusion", "testing", "docs")


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions, devices, threads, extras and plugins.

    Every component and command is loaded. Exit status 1 if a plugin, component
    or command cannot be used. One whose extra is not installed does not count.

    \b
    Example:
      fixedpoint doctor
    """
    with kept_clean(as_json):
        found = _examined()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _print(found)
    if found["broken"]:
        raise typer.Exit(FAILED)


def _examined() -> dict[str, Any]:
    """All facts that the command shows, as plain values."""
    import torch

    from fixedpoint.registry import KINDS, registry
    from fixedpoint.runs import host

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    components = [each for kind in KINDS for each in registry.components(kind).values()]
    plugins = Counter(each.origin() for each in (*components, *registry.commands().values()))
    return {
        "versions": {"python": platform.python_version(), **_versions(_required(""))},
        "platform": host.system(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": devices,
        "extras": {extra: _versions(_required(extra)) for extra in _EXTRAS},
        "plugins": plugins,
        "broken": [vars(row) for row in (*registry.broken(), *registry.unloadable())],
    }


def _required(extra: str) -> list[str]:
    """The distributions that an extra requires; for ``""``, the library and what it requires without extras."""
    try:
        requirements = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    wanted = []
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        marker = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if (marker.group(1) if marker else "") == extra:
            wanted.append(name)
    return [_DISTRIBUTION, *wanted] if not extra else wanted


def _versions(names: list[str]) -> dict[str, str | None]:
    """Installed versions by distribution; None for those that are not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _print(found: dict[str, Any]) -> None:
    from rich.text import Text

    from fixedpoint.cli.tables import aligned, console

    out = console()

    def section(title: str, rows: Sequence[tuple[str, Text | str]]) -> None:
        out.print(Text(title, style="bold"))
        out.print(aligned(rows))
        out.print()

    section(
        "Versions", [(name, version or Text("missing", style="red")) for name, version in found["versions"].items()]
    )
    machine = [("platform", found["platform"]), ("cpus", str(found["cpus"])), ("threads", str(found["threads"]))]
    section("Machine", [*machine, *(("device", device) for device in found["devices"])])
    extras: list[tuple[str, Text | str]] = []
    for extra, versions in found["extras"].items():
        lacking = [name for name, version in versions.items() if version is None]
        if lacking:
            command = f"lacks {', '.join(lacking)}: pip install '{_DISTRIBUTION}[{extra}]'"
            extras.append((extra, Text(command, style="yellow")))
        else:
            extras.append((extra, ", ".join(f"{name} {version}" for name, version in versions.items())))
    section("Extras", extras)
    section("Plugins", [(source, f"{count} components and commands") for source, count in found["plugins"].items()])
    if found["broken"]:
        broken = [(f"{row['kind']} {row['name']}", Text(row["reason"], style="red")) for row in found["broken"]]
        section("Cannot be used", broken)
