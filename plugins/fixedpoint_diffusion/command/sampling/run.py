"""Runs a job of ``fixedpoint sample``; batches that are done are written even if the run is interrupted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from fixedpoint.config.writing import WriteError
from fixedpoint.execution.plain import json_text
from fixedpoint.registry import CommandError
from fixedpoint_diffusion.command.console import complain
from fixedpoint_diffusion.command.sampling.console import print_table, reporting
from fixedpoint_diffusion.command.sampling.request import SampleJob
from fixedpoint_diffusion.command.sampling.results import SampleResults
from fixedpoint_diffusion.command.sampling.work import sampled

__all__ = ["run"]


def run(job: SampleJob, folder: Path, fresh: bool = False, quiet: bool = False, as_json: bool = False) -> int:
    """Sample, write the folder, print the result, and return the exit status.

    Raises
    ------
    CommandError
        With status 1 if a file cannot be written or memory runs out; with status 2 if the pipeline cannot be sampled.
    KeyboardInterrupt
        If the run is interrupted. The message says how many images are done; these are written.
    """
    try:
        results = SampleResults(job, folder, fresh)
        try:
            with reporting(results.reused, len(job.entries), quiet) as reporter:
                for batch in sampled(job, results.missing, reporter.on_round):
                    results.add(batch)
                    reporter.batch_done(batch)
        except BaseException as stopped:  # whatever ends the run, batches that are done are kept
            if results.rows:
                results.close(interrupted=True)
            if isinstance(stopped, KeyboardInterrupt):
                raise KeyboardInterrupt(_interrupted(results)) from None
            raise
        report = results.close()
    except WriteError as error:
        raise CommandError(f"cannot write {error.filename}: {error.strerror}", status=1) from None
    for row in report["images"]:
        if row["status"] != "converged":
            complain(f"{row['file']}: {row['sentence']}")
    _say(results, report, quiet, as_json)
    return 0 if results.ok else 1


def _interrupted(results: SampleResults) -> str:
    count, total = len(results.rows), len(results.job.entries)
    if not count:
        return "interrupted"
    return f"interrupted; {count} of {total} images are done; the same command again goes on from there"


def _say(results: SampleResults, report: Mapping[str, Any], quiet: bool, as_json: bool) -> None:
    """Print the report as JSON, or the table with a summary, or nothing."""
    if as_json:
        typer.echo(json_text(report, canonical=False))
        return
    if quiet:
        return
    rows: Sequence[Mapping[str, Any]] = report["images"]
    print_table(rows)
    typer.echo()
    good = sum(row["status"] == "converged" for row in rows)
    typer.echo(f"{good} of {len(rows)} images sampled within a relative error of {results.job.rtol:g}")
    if results.reused:
        typer.echo(f"{results.reused} of them were there already; --fresh samples them again")
    for sentence in _times(report["batches"]):
        typer.echo(sentence)
    for plan in dict.fromkeys(batch["plan"] for batch in report["batches"] if batch["plan"]):
        Console(highlight=False).print(plan, markup=False)  # wrapped
    for sentence in results.written():
        typer.echo(sentence)


def _times(batches: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the sampling took, and the pipeline's own loop."""
    if not batches:
        return []
    seconds = sum(batch["seconds"] for batch in batches)
    rounds, steps = (max(batch[name] for batch in batches) for name in ("rounds", "steps"))
    said = f"{rounds} rounds for {steps} steps, {seconds:.2f} s"
    own = [batch["serial_seconds"] for batch in batches if batch["serial_seconds"] is not None]
    return [f"{said}; the pipeline's own loop took {sum(own):.2f} s" if own else said]
