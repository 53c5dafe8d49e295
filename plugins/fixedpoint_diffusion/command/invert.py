"""The options and the help of ``fixedpoint invert``; torch and other large packages are imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["invert"]


_Images = Annotated[
    list[Path], typer.Argument(metavar="IMAGES", help="Image files, and folders of them.", show_default=False)
]
_Model = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="fashion-mnist, or a folder of a model or pipeline.")
]
_Label = Annotated[
    list[str] | None,
    typer.Option("--class", metavar="CLASS", help="Class of the images: one, or one for each, by commas."),
]
_Prompt = Annotated[
    list[str] | None,
    typer.Option("--prompt", metavar="TEXT", help="What the images show, for a pipeline; repeat it for each image."),
]
_NegativePrompt = Annotated[
    str | None, typer.Option("--negative-prompt", metavar="TEXT", help="What guidance leads away from.")
]
_EditPrompt = Annotated[
    str | None, typer.Option("--edit-prompt", metavar="TEXT", help="Sample the latents with this prompt, too.")
]
_Height = Annotated[int | None, typer.Option("--height", metavar="H", min=1, help="Height of a pipeline's images.")]
_Width = Annotated[int | None, typer.Option("--width", metavar="W", min=1, help="Width of a pipeline's images.")]
_NoClass = Annotated[
    int | None, typer.Option("--no-class", metavar="CLASS", help="Label for no class of a model in a folder.")
]
_Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="NAME",
        help="Scheduler of diffusers without a memory, or '{name: ..., setting: ...}'.  [default: the model's]",
        show_default=False,
    ),
]
_Steps = Annotated[
    int | None, typer.Option("--steps", metavar="N", help="Steps of the chain.  [default: 50]", show_default=False)
]
_Timesteps = Annotated[
    str | None,
    typer.Option("--timesteps", metavar="LIST", help="Timesteps from noise to image, by commas, or quadratic."),
]
_Guidance = Annotated[
    float, typer.Option("--guidance", "--guidance-scale", metavar="S", help="Classifier-free guidance; 1: none.")
]
_EditClass = Annotated[
    str | None, typer.Option("--edit-class", metavar="CLASS", help="Sample the latents with this class, too.")
]
_EditGuidance = Annotated[
    float | None, typer.Option("--edit-guidance", metavar="S", help="Sample the latents with this guidance, too.")
]
_Interpolate = Annotated[
    int, typer.Option("--interpolate", metavar="K", min=0, max=99, help="Number of images between neighbours.")
]
_Background = Annotated[str, typer.Option("--background", metavar="COLOUR", help="Background colour: black or white.")]
_Clip = Annotated[
    str, typer.Option("--clip", metavar="HOW", help="If the scheduler clips: refuse, or ignore clipping.")
]
_Tolerance = Annotated[
    float, typer.Option("--tolerance", metavar="RMS", help="Largest round trip that counts as inverted.")
]


def invert(
    images: _Images,
    model: _Model = "fashion-mnist",
    label: _Label = None,
    prompt: _Prompt = None,
    negative_prompt: _NegativePrompt = None,
    no_class: _NoClass = None,
    scheduler: _Scheduler = None,
    steps: _Steps = None,
    timesteps: _Timesteps = None,
    guidance: _Guidance = 1.0,
    edit_class: _EditClass = None,
    edit_prompt: _EditPrompt = None,
    edit_guidance: _EditGuidance = None,
    interpolate: _Interpolate = 0,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Output folder.")] = Path("runs/invert"),
    height: _Height = None,
    width: _Width = None,
    resize: Annotated[bool, typer.Option("--resize", help="Resize images of another size (Lanczos).")] = False,
    pad: Annotated[bool, typer.Option("--pad", help="Pad smaller images with the background.")] = False,
    background: _Background = "black",
    clip: _Clip = "refuse",
    tolerance: _Tolerance = 2e-3,
    batch: Annotated[int, typer.Option("--batch", metavar="B", min=1, help="Images per batch.")] = 16,
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="Device of the model, e.g. cuda.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> int:
    """Find the noise that a diffusion model turns into given images.

    All states of the chain are solved for at once. Each latent is sampled and
    the result compared with its image. Sampling the latents with another class,
    prompt or guidance edits the images; sampling between two latents
    interpolates.

    \b
    Examples:
      fixedpoint invert shirt.png --class shirt
      fixedpoint invert photos --resize --edit-class dress
      fixedpoint invert a.png b.png --interpolate 6
      fixedpoint invert photos --model my/folder --class 3
      fixedpoint invert . --scheduler EulerDiscreteScheduler
      fixedpoint invert cat.png --model sd --prompt cat \\
        --edit-prompt dog

    \b
    Exit status:
      0    every image is inverted, within --tolerance
      1    an image was skipped or missed, or nothing can be
           written
      2    a mistake on the command line, or no image
      130  interrupted; what is done is written
    """
    from fixedpoint_diffusion.command.arguments import Arguments, job_of
    from fixedpoint_diffusion.command.run import run

    arguments = Arguments(
        images=tuple(images),
        model=model,
        classes=tuple(part.strip() for text in label or () for part in text.split(",")),
        prompts=tuple(prompt or ()),
        negative_prompt=negative_prompt,
        edit_prompt=edit_prompt,
        height=height,
        width=width,
        no_class=no_class,
        steps=steps,
        timesteps=timesteps,
        guidance=guidance,
        edit_class=edit_class,
        edit_guidance=edit_guidance,
        interpolate=interpolate,
        resize=resize,
        pad=pad,
        background=background,
        clip=clip,
        scheduler=scheduler,
        tolerance=tolerance,
        batch=batch,
        device=device,
    )
    return run(job_of(arguments, quiet), output, quiet, as_json)
