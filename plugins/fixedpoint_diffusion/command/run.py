"""Runs a job from beginning to end; batches that are done are written even if the run is interrupted."""

from __future__ import annotations

from pathlib import Path

import typer

from fixedpoint.config.writing import WriteError
from fixedpoint.registry import CommandError
from fixedpoint_diffusion.command.console import ProgressReporter, print_table, reporting
from fixedpoint_diffusion.command.folder import Results
from fixedpoint_diffusion.command.work import Job, Row, between, inverted

__all__ = ["run"]


def run(job: Job, folder: Path, quiet: bool = False, as_json: bool = False) -> int:
    """Invert, edit and interpolate, write the folder, print the result, and return the exit status.

    Raises
    ------
    CommandError
        With status 1 if a file cannot be written or memory runs out; with status 2 if every image was skipped.
    KeyboardInterrupt
        If the run is interrupted. The message says how many images are done; these are written.
    """
    try:
        results = Results(job, folder)
        try:
            with reporting(len(job.entries), quiet) as reporter:
                _work(job, results, reporter, quiet)
        except BaseException as stopped:  # whatever ends the run, batches that are done are kept
            if results.inverted:
                results.close(interrupted=True)
            if isinstance(stopped, KeyboardInterrupt):
                raise KeyboardInterrupt(_interrupted(results)) from None
            raise
        if not results.inverted:
            raise CommandError("no image is left to invert")
        results.close()
    except WriteError as error:
        raise CommandError(f"cannot write {error.filename}: {error.strerror}", status=1) from None
    _say(results, quiet, as_json)
    return 0 if results.ok else 1


def _work(job: Job, results: Results, reporter: ProgressReporter, quiet: bool) -> None:
    """Invert all batches, then interpolate, adding everything to ``results``."""
    for done in inverted(job, reporter.on_round):
        results.add(done)
        reporter.batch_done(done.rows)
        for row in done.rows:
            for sentence in _sentences(row, quiet):
                reporter.complain(sentence)
    if job.interpolate and results.inverted == 1:
        reporter.complain("--interpolate: requires two images, one is left")
    elif job.interpolate:
        reporter.stage("in between")
        for each in between(job, results.latents, results.labels):
            results.add_between(each)


def _sentences(row: Row, quiet: bool) -> list[str]:
    """The lines to print for an image: its notices unless ``quiet``, and its status if it was not inverted."""
    said = [] if quiet else [f"{row.name}: {notice}" for notice in row.notices]
    return said if row.ok else [*said, f"{row.name}: {row.sentence}"]


def _interrupted(results: Results) -> str:
    count, total = results.inverted, len(results.job.entries)
    return f"interrupted; {count} of {total} images are done, in {results.folder}" if count else "interrupted"


def _say(results: Results, quiet: bool, as_json: bool) -> None:
    """Print the report as JSON, or the table with a summary, or nothing."""
    if as_json:
        for piece in results.report():
            typer.echo(piece, nl=False)
        return
    if quiet:
        return
    job, total = results.job, results.counts["all"]
    print_table(results.shown, job.chosen.called, job.chosen.conditioned)
    if total > len(results.shown):
        typer.echo(f"{total - len(results.shown)} more in the report")
    typer.echo()
    good, skipped = results.counts["good"], results.counts["skipped"]
    missed = total - good - skipped
    verdict = f"{good} of {total} images inverted within rms {job.tolerance:g}"
    typer.echo("; ".join([verdict, *([f"{missed} missed"] * bool(missed)), *([f"{skipped} skipped"] * bool(skipped))]))
    if results.counts["guessed"]:
        typer.echo("class ?: guessed by the bundled classifier; --class says which")
    if job.interpolate and job.chosen.conditioned and results.inverted > 1:
        typer.echo(f"in between: the {job.chosen.conditioned} of the nearer image, in the middle that of the first")
    for sentence in results.written():
        typer.echo(sentence)
