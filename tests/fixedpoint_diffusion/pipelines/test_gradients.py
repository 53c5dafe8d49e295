"""Gradients through pipelines equal backpropagation through their own ``__call__`` without its decorator."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from gradients_of_pipelines import apart, case, drawn, tight
from tiny_pipelines import pipeline
from tiny_pipelines.parts import unet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

# All is in float64. Some schedulers have coefficients in float32, others do not.
BOUND = {"sd1": 1e-10, "sdxl": 5e-6, "sd3": 5e-6}
BOTH = ("latents", "guidance_scale")


def sd1(kind: Any, **settings: Any) -> Any:
    """A scheduler with the noise levels of Stable Diffusion 1."""
    return kind.from_config(pipeline("sd1").scheduler.config, **settings)


@pytest.mark.parametrize("form", ["affine", "tables", "steps"])
@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_by_latents_embeddings_and_guidance_scale(name: str, form: Any) -> None:
    of = case(name, by=BOTH)
    for argument, off in apart(of, tight(of.pipe, form=form)).items():
        assert off <= BOUND[name], argument


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_of_a_loss_on_decoded_images(name: str) -> None:
    of = case(name, output_type="pt", by=BOTH)
    for argument, off in apart(of, tight(of.pipe)).items():
        assert off <= BOUND[name], argument


@pytest.mark.parametrize("form", ["affine", "tables", "steps"])
def test_by_the_noise_of_all_steps(form: Any) -> None:
    of = case("sd1", by=BOTH, eta=1.0)
    noise = drawn(2, 5, 4, 8, 8, seed=7)
    found = apart(of, tight(of.pipe, form=form), noise=noise)
    assert "noise" in found
    for argument, off in found.items():
        assert off <= BOUND["sd1"], argument


@pytest.mark.parametrize("form", ["affine", "steps"])
def test_by_the_weights_of_an_adapter(form: Any) -> None:
    of = case("lora", by=("latents",))
    weights = {name: each for name, each in of.pipe.unet.named_parameters() if "lora" in name}
    assert weights
    for each in weights.values():
        each.requires_grad_()
    for argument, off in apart(of, tight(of.pipe, form=form), parameters=tuple(weights.values())).items():
        assert off <= BOUND["sd1"], argument


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (diffusers.DPMSolverMultistepScheduler, {}),
        (diffusers.UniPCMultistepScheduler, {}),
        (diffusers.HeunDiscreteScheduler, {}),
        (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
        (diffusers.EulerAncestralDiscreteScheduler, {}),
        (diffusers.DDPMScheduler, {"clip_sample": True}),
    ],
    ids=lambda given: given.__name__ if isinstance(given, type) else None,
)
def test_by_any_scheduler(kind: Any, settings: dict[str, Any]) -> None:
    of = case("sd1", by=BOTH, scheduler=sd1(kind, **settings))
    for argument, off in apart(of, tight(of.pipe)).items():
        assert off <= BOUND["sdxl"], argument


@pytest.mark.parametrize(
    ("name", "form", "by"),
    [
        ("img2img", "affine", ("guidance_scale",)),
        ("img2img", "steps", ("guidance_scale",)),
        ("inpaint", "steps", BOTH),  # later steps blend what the latents are with the image
        ("inpaint-9", "tables", BOTH),
        ("controlnet", "tables", BOTH),
        ("controlnet", "steps", BOTH),
    ],
)
def test_by_other_pipelines(name: str, form: Any, by: tuple[str, ...]) -> None:
    of = case(name, by=by, steps=6)
    for argument, off in apart(of, tight(of.pipe, form=form)).items():
        assert off <= BOUND["sd1"], argument


@pytest.mark.parametrize("form", ["tables", "steps"])
def test_what_the_first_step_does_not_use(form: Any) -> None:
    of = case("controlnet", by=("latents",), steps=6, control_guidance_start=0.5)
    # The pipeline makes float32 of an image, and so of its gradient from every batch.
    of.given["image"] = of.fixed.pop("image")
    weight = of.pipe.controlnet.controlnet_mid_block.weight.requires_grad_()
    for argument, off in apart(of, tight(of.pipe, form=form), parameters=(weight,)).items():
        assert off <= BOUND["sdxl"], argument


def test_of_the_last_prediction() -> None:
    """The pipeline's result is made of the last prediction, not of the sample after it."""
    of = case("sd1", by=("latents",))
    parts = {name: getattr(of.pipe, name) for name in ("vae", "text_encoder", "tokenizer")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = unet(time_cond_proj_dim=8).double().requires_grad_(False)
    of.pipe = diffusers.LatentConsistencyModelPipeline(
        **parts,
        unet=network,
        scheduler=sd1(diffusers.LCMScheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    of.pipe.set_progress_bar_config(disable=True)
    del of.given["negative_prompt_embeds"]
    for argument, off in apart(of, tight(of.pipe)).items():
        assert off <= BOUND["sd1"], argument


def test_through_a_rescaled_guidance() -> None:
    of = case("sd1", by=BOTH, guidance_rescale=0.7)
    sampler = tight(of.pipe)
    for argument, off in apart(of, sampler).items():
        assert off <= BOUND["sd1"], argument


def test_a_rows_gradient_is_its_own() -> None:
    of = case("sd1", by=("latents",), eta=1.0)
    sampler, leaves = tight(of.pipe), of.leaves()
    noise = drawn(2, 5, 4, 8, 8, seed=7).requires_grad_()
    images = sampler(**of.arguments(), **leaves, noise=noise).images
    for part in torch.autograd.grad(images[1].square().sum(), [*leaves.values(), noise]):
        assert float(part[0].abs().max()) == 0
        assert float(part[1].abs().max()) > 0


@pytest.mark.parametrize("form", ["affine", "steps"])
@pytest.mark.parametrize("rows", [2, 4, 6])
def test_micro_batches_change_nothing(form: Any, rows: int) -> None:
    of = case("sd1", by=BOTH)
    for argument, off in apart(of, tight(of.pipe, form=form, max_batch=rows)).items():
        assert off <= BOUND["sd1"], argument
