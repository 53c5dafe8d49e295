"""Gradients through tiny pipelines: by ``parallel``, and by backpropagation through the pipeline's own loop."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tiny_pipelines import arguments, pipeline
from torch import Tensor

from fixedpoint import Termination
from fixedpoint.chains import BlockSecant, ChainAdjoint, ChainSolver
from fixedpoint_diffusion import parallel
from fixedpoint_diffusion.pipelines.parallel import ParallelPipeline

__all__ = ["Case", "apart", "case", "loss", "serially", "tight"]

PARTS = ("unet", "transformer", "controlnet", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@dataclass
class Case:
    """A pipeline whose networks are frozen, and its arguments: those that have a gradient, and the others."""

    pipe: Any
    given: dict[str, Any]
    fixed: dict[str, Any] = field(default_factory=dict)

    def leaves(self) -> dict[str, Tensor]:
        """The arguments that have a gradient, as new leaves."""
        return {name: value.clone().requires_grad_() for name, value in self.given.items()}

    def arguments(self) -> dict[str, Any]:
        """The other arguments; generators are as new."""
        return {**self.fixed, "generator": torch.Generator().manual_seed(5)}


def case(
    name: str,
    *,
    steps: int = 5,
    output_type: str = "latent",
    by: tuple[str, ...] = (),
    scheduler: Any = None,
    **more: Any,
) -> Case:
    """A tiny pipeline in float64 with two images.

    ``by`` are arguments that have a gradient in addition to the embeddings of the prompts: latents, guidance_scale.
    """
    dtype = torch.float64
    pipe = pipeline(name, dtype=dtype, scheduler=scheduler)
    for part in PARTS:
        if getattr(pipe, part, None) is not None:
            getattr(pipe, part).requires_grad_(False)
    fixed = arguments(name)
    given = embeddings(name, pipe, fixed.pop("prompt"), fixed.get("max_sequence_length"))
    for key in ("image", "mask_image"):
        if key in fixed:
            fixed[key] = fixed[key].to(dtype)
    known = {"latents": drawn(2, 4, 8, 8, seed=0), "guidance_scale": torch.tensor(4.5, dtype=dtype)}
    given |= {key: known[key] for key in by}
    return Case(pipe, given, {**fixed, "num_inference_steps": steps, "output_type": output_type, **more})


@torch.no_grad()
def embeddings(name: str, pipe: Any, prompt: list[str], length: int | None) -> dict[str, Tensor]:
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    if name == "sd3":
        found = pipe.encode_prompt(prompt, prompt, prompt, max_sequence_length=length)
    else:
        found = pipe.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    return dict(zip(names, found, strict=False))


def serially(of: Case, leaves: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
    """What the pipeline's own loop returns under autograd; its scheduler draws ``noise[:, k]``, if it is given."""
    with pytest.MonkeyPatch.context() as patch:
        if noise is not None:
            draws = iter(noise.unbind(1))
            patch.setattr(sys.modules[type(of.pipe.scheduler).__module__], "randn_tensor", lambda *_, **__: next(draws))
        images: Tensor = inspect.unwrap(type(of.pipe).__call__)(of.pipe, **of.arguments(), **leaves).images
    return images


def tight(pipe: Any, **options: Any) -> ParallelPipeline:
    """The pipeline solved jointly to the last digits, with gradients."""
    adjoint = ChainAdjoint(termination=Termination(rtol=1e-11))
    joint = ChainSolver(accelerator=BlockSecant())
    return parallel(pipe, **{"rtol": 1e-10, "solver": joint, "gradient": adjoint, **options})


def loss(images: Tensor) -> Tensor:
    """A loss whose gradient differs from entry to entry and from image to image."""
    return (images * drawn(*images.shape, seed=1)).sum() + images.square().sum()


def apart(
    of: Case,
    sampler: ParallelPipeline,
    *,
    noise: Tensor | None = None,
    loss: Callable[[Tensor], Tensor] = loss,
    parameters: tuple[Tensor, ...] = (),
) -> dict[str, float]:
    """The relative difference of every gradient from that by backpropagation through the pipeline's own loop.

    ``noise`` is what the scheduler draws, and has a gradient, too; so have the parameters.
    """
    found = []
    for run in ("serial", "parallel"):
        leaves, draws = of.leaves(), None if noise is None else noise.clone().requires_grad_()
        if run == "serial":
            images = serially(of, leaves, draws)
        else:
            images = sampler(**of.arguments(), **leaves, noise=draws).images
            assert sampler.solution is not None
            assert sampler.solution.converged.all()
        inputs = {**leaves, **({} if draws is None else {"noise": draws})}
        inputs |= {f"parameter {number}": each for number, each in enumerate(parameters)}
        parts = torch.autograd.grad(loss(images), list(inputs.values()))
        found.append(dict(zip(inputs, parts, strict=True)))
    exact, mine = found
    assert all(float(part.norm()) > 0 for part in exact.values())
    return {name: float((mine[name] - part).norm() / part.norm()) for name, part in exact.items()}
