"""The options and the help of ``fixedpoint sample``; torch and other large packages are imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["sample"]

_Folder = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER",
        help="Pipeline folder, or owner/name in the cache of Hugging Face.  [default: fashion-mnist, the bundled one]",
        show_default=False,
    ),
]
_Prompt = Annotated[
    list[str] | None, typer.Option("--prompt", metavar="TEXT", help="What is to be seen; repeat it for several.")
]
_Negative = Annotated[str | None, typer.Option("--negative-prompt", metavar="TEXT", help="What is not to be seen.")]
_Label = Annotated[
    list[str] | None, typer.Option("--class", metavar="N", help="Class, for pipelines with classes; repeat, or commas.")
]
_Guidance = Annotated[
    float | None,
    typer.Option("--guidance-scale", metavar="S", help="Classifier-free guidance.  [default: the pipeline's]"),
]
_Steps = Annotated[int | None, typer.Option("--steps", metavar="N", help="Number of steps.  [default: the pipeline's]")]
_Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler", metavar="NAME", help="Scheduler of diffusers: NAME,setting=value,...  [default: its own]"
    ),
]
_Count = Annotated[int, typer.Option("--count", metavar="K", min=1, help="Images of every prompt.")]
_Seed = Annotated[int, typer.Option("--seed", metavar="S", min=0, help="Seed of the first image; others count up.")]
_Call = Annotated[
    list[str] | None, typer.Option("--call", metavar="KEY=VALUE", help="Further argument of the pipeline's call.")
]
_Rtol = Annotated[float, typer.Option("--rtol", metavar="TOL", help="Largest relative error of a state.")]
_Solver = Annotated[
    str, typer.Option("--solver", metavar="NAME", help="auto, serial, or another: NAME,option=value,...")
]
_Beside = Annotated[
    bool, typer.Option("--beside-serial", help="Run the pipeline's own loop, too, and compare images and times.")
]
_Batch = Annotated[int, typer.Option("--batch", metavar="B", min=1, help="Images that are sampled at once.")]


def sample(
    folder: _Folder = "fashion-mnist",
    prompt: _Prompt = None,
    negative_prompt: _Negative = None,
    label: _Label = None,
    guidance_scale: _Guidance = None,
    steps: _Steps = None,
    scheduler: _Scheduler = None,
    eta: Annotated[float, typer.Option("--eta", metavar="ETA", help="Noise of DDIM's steps, 0 to 1.")] = 0.0,
    seed: _Seed = 0,
    count: _Count = 1,
    height: Annotated[int | None, typer.Option("--height", metavar="PIXELS", help="Height of the images.")] = None,
    width: Annotated[int | None, typer.Option("--width", metavar="PIXELS", help="Width of the images.")] = None,
    call: _Call = None,
    dtype: Annotated[str, typer.Option("--dtype", metavar="DTYPE", help="Dtype of the networks.")] = "float32",
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="Device, e.g. cuda.")] = "cpu",
    rtol: _Rtol = 1e-3,
    solver: _Solver = "auto",
    beside_serial: _Beside = False,
    batch: _Batch = 4,
    output: Annotated[Path, typer.Option("--output", "--out", "-o", metavar="DIR", help="Output folder.")] = Path(
        "runs/sample"
    ),
    fresh: Annotated[bool, typer.Option("--fresh", help="Sample every image again.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> int:
    """Sample a diffusion pipeline, with all steps solved at once.

    The pipeline is a folder as diffusers' save_pretrained writes it. It is
    called as it is: its own scheduler, guidance and decoder. Image k of a
    prompt is drawn by torch.Generator().manual_seed(SEED + k). Images that the
    output folder has already, by the same options, are not sampled again.

    \b
    Examples:
      fixedpoint sample --prompt bag --prompt dress --steps 20
      fixedpoint sample my/folder --prompt "a cat" --count 4
      fixedpoint sample sd --prompt "a cat" \\
        --scheduler UniPCMultistepScheduler,solver_order=3
      fixedpoint sample sd --prompt "a cat" --beside-serial
      fixedpoint sample owner/name --class 207 --device cuda

    \b
    Exit status:
      0    every image is sampled, within --rtol
      1    an image was missed, or nothing can be written
      2    a mistake on the command line, or a pipeline that
           cannot be sampled
      130  interrupted; the same command goes on from there
    """
    from fixedpoint_diffusion.command.sampling.request import Arguments, job_of
    from fixedpoint_diffusion.command.sampling.run import run

    arguments = Arguments(
        folder=folder,
        prompts=tuple(prompt or ()),
        negative_prompt=negative_prompt,
        classes=tuple(part.strip() for text in label or () for part in text.split(",")),
        guidance_scale=guidance_scale,
        steps=steps,
        scheduler=scheduler,
        eta=eta,
        seed=seed,
        count=count,
        height=height,
        width=width,
        call=tuple(call or ()),
        dtype=dtype,
        device=device,
        rtol=rtol,
        solver=solver,
        beside_serial=beside_serial,
        batch=batch,
    )
    return run(job_of(arguments), output, fresh, quiet, as_json)
