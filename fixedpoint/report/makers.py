"""Reports the versions that made the records of a run, cell by cell where they differ."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fixedpoint.config.record import Record
from fixedpoint.config.remembered import gone
from fixedpoint.registry.owners import version_of
from fixedpoint.report.reading import RunData

__all__ = ["VersionRow", "remarks", "version_rows"]

# Either no names of distributions, or distributions that are always installed.
_ALWAYS = {"python", "torch", "numpy", "fixedpoint"}


@dataclass(frozen=True)
class VersionRow:
    """The versions of one distribution in the records of a run.

    Attributes
    ----------
    name
        Name of the distribution.
    versions
        The labels of cells, by the version that their records have.
    """

    name: str
    versions: dict[str, list[str]]


def version_rows(run: RunData) -> list[VersionRow]:
    """Return the versions of all distributions in the records, beginning with Python, torch, numpy and the library.

    If a package or module was not the same in all records of a version, the version includes its name and the first
    digits of its digest. Cells that use different modules were made by the same version. For a run without records, the
    versions are those in ``run.json``.
    """
    records = [(entry.cell.label, entry.record) for entry in run.entries if entry.record is not None]
    if not records:
        return [VersionRow(name, {version: []}) for name, version in run.info.versions.items()]
    names = dict.fromkeys(name for _, record in records for name in record.versions)
    found = []
    for name in names:
        codes = {(record.versions.get(name), *code) for _, record in records for code in _units(record, name).items()}
        digests = Counter((version, unit) for version, unit, _ in codes)
        versions: dict[str, list[str]] = {}
        for label, record in records:
            version = record.versions.get(name)
            if version is not None:
                differing = [
                    f"{unit} {digest[:8] or 'unknown'}"
                    for unit, digest in _units(record, name).items()
                    if digests[version, unit] > 1
                ]
                shown = f"{version} (code of {', '.join(differing)})" if differing else version
                versions.setdefault(shown, []).append(label)
        found.append(VersionRow(name, versions))
    return found


def remarks(run: RunData) -> list[str]:
    """Return sentences on the origin of the results: reused records, missing distributions, different versions."""
    said = [run.info.story] if run.info.story else []
    records = [entry.record for entry in run.entries if entry.record is not None]
    missing = Counter(sentence for record in records for sentence in _missing(record))
    said += [f"{_cells(count, len(records))} made by {sentence}" for sentence, count in missing.items()]
    for row in version_rows(run):
        if len(row.versions) > 1:
            versions = ", ".join(
                f"{version} in {len(labels)} cell{'s'[: len(labels) != 1]}" for version, labels in row.versions.items()
            )
            said.append(f"the records were not made by one version of {row.name}: {versions}")
    unsaid = sum(not record.made_by for record in records)
    if unsaid:
        said.append(f"{_cells(unsaid, len(records))} made before records said what code made them")
    return said


def _missing(record: Record) -> list[str]:
    """A sentence for each maker of a record that is no longer installed."""
    if record.made_by:
        return [
            gone(" and ".join(f"{'the ' * (i > 0)}{what}" for i, what in enumerate(maker.brings)), name, maker.version)
            for name, maker in record.made_by.items()
            if maker.brings and maker.version and name not in _ALWAYS and not version_of(name)
        ]
    # Records from before ``made_by`` list all versions; a maker that was no distribution has the version "unknown".
    others = [
        (name, version) for name, version in record.versions.items() if name not in _ALWAYS and version != "unknown"
    ]
    return [f"{name} {version}, which is not installed" for name, version in others if not version_of(name)]


def _cells(count: int, total: int) -> str:
    if count == total == 1:
        return "the cell was"
    return f"{count} of {total} cells {'was' if count == 1 else 'were'}"


def _units(record: Record, name: str) -> dict[str, str]:
    """The digests of the packages and modules of a maker, by name.

    A record from before ``units`` has one digest for all of them, which is comparable among cells with the same
    components of this maker.
    """
    maker = record.made_by.get(name)
    if maker is None:
        return {}
    return maker.units or {", ".join(maker.brings) or name: maker.code}
