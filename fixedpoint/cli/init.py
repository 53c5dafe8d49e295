"""``fixedpoint init``: writes a commented run file to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fixedpoint.cli.sentences import BAD_INPUT, FAILED, complain

__all__ = ["init"]

_STARTER = """\
# A run: every task with every solver, once for each seed.
# Carry it out; the same command again goes on where it stopped:
#   fixedpoint run {file}
# Set an option for once:
#   fixedpoint run {file} tasks[0].num_inference_steps=100
# What there is, and the options of one component:
#   fixedpoint list
#   fixedpoint show anderson
# Completion in editors, together with the line below:
#   fixedpoint schema --output run.schema.json
# yaml-language-server: $schema=run.schema.json

name: {name}
seeds: [0]                      # a cell of the grid is run once for each

tasks:
  - name: sampling
    model: {model}          # your own: {{name: diffusers, path: my/folder}}
    num_inference_steps: 50
    eta: 0.0                    # 0: deterministic; 1: ancestral
    # scheduler: UniPCMultistepScheduler      # by default DDIM
    batch: 4

solvers:
  - serial                      # step by step, to compare with
  - picard                      # a bare name takes every default ...
  - {{name: anderson, memory: 2}} # ... and a mapping sets options
  # - {{name: chain, preconditioner: coefficient, label: "DEQ map"}}

termination:
  rtol: 1e-4                    # a row is done at error <= atol + rtol * scale
  # max_rounds: 100

expect:                         # a metric above its bound fails the run
  relative_error: 1e-3
"""


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The run file to write.")] = Path("study.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented run file to start from.

    \b
    Example:
      fixedpoint init study.yaml
      fixedpoint run study.yaml
    """
    import importlib.util
    import json
    import shlex

    from fixedpoint.config.words import name_broken
    from fixedpoint.config.writing import WriteError, write_atomically
    from fixedpoint.execution.plain import is_printable, one_line

    # The trained model requires diffusers. Without it the file uses the mixture of drawn shapes, whose score is exact.
    model = "fashion-mnist" if importlib.util.find_spec("diffusers") else "shapes       "
    wrong = name_broken(file.stem)
    if wrong:
        complain(f"{file}: its name is that of the run, which {wrong}")
        raise typer.Exit(BAD_INPUT)
    shown = shlex.quote(str(file))
    if not is_printable(shown):
        shown = "FILE"  # a line feed in the name of a folder would end the comment
    try:
        content = _STARTER.format(file=shown, name=json.dumps(file.stem), model=model)
        write_atomically(file, content.encode(), replace=force)
    except FileExistsError:
        complain(f"{file} is there already; --force replaces it")
        raise typer.Exit(BAD_INPUT) from None
    except WriteError as error:
        complain(f"cannot write {error.filename}: {error.strerror}")
        raise typer.Exit(FAILED) from None
    typer.echo(f"wrote {one_line(str(file))}; carry it out with: fixedpoint run {shown}")
