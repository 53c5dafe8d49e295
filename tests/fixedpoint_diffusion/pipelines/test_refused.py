"""What cannot be sampled jointly is refused with a sentence that names it, before anything is solved."""

from __future__ import annotations

import itertools
import re
import socket
import time
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from pipeline_cases import called, jointly, made
from tiny_pipelines import distance, images_of, pipeline
from torch import nn

from fixedpoint_diffusion import parallel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def said(what: str) -> str:
    return re.escape(what)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "parallel requires a pipeline of diffusers, got NoneType"),
        ([1], "parallel requires a pipeline of diffusers, got list"),
        (
            "my/folder",
            "parallel requires a pipeline, got str 'my/folder'; load it by DiffusionPipeline.from_pretrained",
        ),
        (Path("my"), "load it by DiffusionPipeline.from_pretrained"),
        (diffusers.DDPMPipeline, "got the class DDPMPipeline itself; pass an instance"),
        (nn.Linear(1, 1), "parallel requires a whole pipeline, got Linear; a network goes to sampling_problem"),
        (diffusers.DDIMScheduler(), "parallel requires a pipeline of diffusers, got DDIMScheduler"),
    ],
)
def test_no_pipeline(given, sentence):
    with pytest.raises(TypeError, match=said(sentence)):
        parallel(given)


def test_pipeline_of_blocks():
    pipe = diffusers.ModularPipeline(blocks=diffusers.modular_pipelines.SequentialPipelineBlocks())
    with pytest.raises(
        TypeError, match="made of blocks, and has no loop of its own to replay; parallel takes pipelines"
    ):
        parallel(pipe)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rtol": 0.0}, "rtol must be between 0 and 1, got 0.0"),
        ({"rtol": float("nan")}, "rtol must be between 0 and 1, got nan"),
        ({"max_batch": 0}, "max_batch must be an integer of at least 1, got 0"),
        ({"max_batch": 2.0}, "max_batch must be an integer of at least 1, got 2.0"),
        ({"form": "linear"}, "form must be one of affine, tables, steps, predictions, got 'linear'"),
    ],
)
def test_options(options, sentence):
    with pytest.raises(ValueError, match=said(sentence)):
        parallel(made("ddpm"), **options)


def refused(pipe: Any, name: str, sentence: str, error: type[Exception] = ValueError, **given: Any) -> None:
    for sampler in (jointly(pipe), parallel(pipe, solver="serial")):
        with pytest.raises(error, match=said(sentence)):
            called(sampler, name, **given)


def with_scheduler(scheduler: Any) -> Any:
    pipe = pipeline("ddpm", scheduler=scheduler)
    pipe.unet.register_forward_pre_hook(lambda *_: pytest.fail("a network was called"))
    return pipe


def test_no_scheduler():
    refused(_without(), "ddpm", "DDPMPipeline has no scheduler with a step")


def _without() -> Any:
    pipe = made("ddpm")
    pipe.scheduler = None
    return pipe


@pytest.mark.parametrize(
    ("scheduler", "sentence"),
    [
        (diffusers.KarrasVeScheduler, "the step of DDPMPipeline's KarrasVeScheduler takes no timestep"),
        (diffusers.RePaintScheduler, "RePaintScheduler requires original_image and mask, too; a step that can be"),
        (diffusers.CogVideoXDPMScheduler, "requires old_pred_original_sample and timestep_back, too"),
    ],
)
def test_step_with_other_arguments(scheduler, sentence):
    refused(with_scheduler(scheduler()), "ddpm", sentence)


def test_optional_arguments_of_a_step_are_taken_as_the_pipeline_gives_them():
    scheduler = diffusers.UnCLIPScheduler(variance_type="fixed_small_log")
    own = images_of(called(pipeline("ddpm", scheduler=scheduler), "ddpm"))
    sampler = jointly(pipeline("ddpm", scheduler=scheduler))
    assert distance(images_of(called(sampler, "ddpm")), own) < 3e-3


def test_step_that_was_replaced():
    pipe = made("ddpm")
    step = pipe.scheduler.step

    def noted(model_output: Any, timestep: Any, sample: Any, **settings: Any) -> Any:
        return step(model_output, timestep, sample, **settings)

    pipe.scheduler.step = noted
    refused(pipe, "ddpm", "the step of DDPMPipeline's DDPMScheduler has been replaced by 'noted'")
    assert pipe.scheduler.step is noted


CACHES = {
    "FBCHeadBlockHook": lambda _: diffusers.FirstBlockCacheConfig(threshold=0.2),
    "PyramidAttentionBroadcastHook": lambda pipe: diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        current_timestep_callback=lambda: pipe.current_timestep,
        spatial_attention_block_identifiers=("transformer_blocks",),
    ),
    "FasterCacheDenoiserHook": lambda pipe: diffusers.FasterCacheConfig(
        current_timestep_callback=lambda: pipe.current_timestep,
        attention_weight_callback=lambda _: 0.3,
        is_guidance_distilled=True,
        tensor_format="BCHW",
    ),
    "TaylorSeerCacheHook": lambda _: diffusers.TaylorSeerCacheConfig(),
    "MagCacheHeadHook": lambda _: diffusers.MagCacheConfig(mag_ratios=[1.0] * 8, num_inference_steps=8),
    "TextKVCacheTransformerHook": lambda _: diffusers.TextKVCacheConfig(),
}


@pytest.mark.parametrize("hook", CACHES)
def test_cache_over_time(hook):
    pipe = made("flux")
    pipe.transformer.enable_cache(CACHES[hook](pipe))
    sentence = f"FluxPipeline.transformer has a {hook}, which keeps what earlier steps computed"
    refused(pipe, "flux", sentence)
    pipe.transformer.disable_cache()
    assert images_of(called(jointly(pipe), "flux", steps=2)).isfinite().all()


def test_training_mode():
    pipe = made("ddpm")
    pipe.unet.train()
    own = images_of(called(pipe, "ddpm"))
    assert distance(images_of(called(jointly(pipe), "ddpm")), own) < 3e-3  # its dropout does nothing
    for module in pipe.unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    refused(pipe, "ddpm", "DDPMPipeline.unet is in training mode, where dropout and batch norm make every evaluation")


class BatchNorm(diffusers.UNet2DModel):
    """Normalises what it returns over the rows of its batch."""

    def forward(self, sample: Any, timestep: Any, **settings: Any) -> Any:
        output = super().forward(sample, timestep, **settings)
        return type(output)(sample=output.sample - output.sample.mean(0, keepdim=True))


class Counting(diffusers.UNet2DModel):
    """Another function at each call, such as a cache of its own makes one."""

    calls = 0

    def forward(self, sample: Any, timestep: Any, **settings: Any) -> Any:
        Counting.calls += 1
        output = super().forward(sample, timestep, **settings)
        return type(output)(sample=output.sample * (1 + 0.3 * (Counting.calls % 2)))


@pytest.mark.parametrize("kind", [BatchNorm, Counting])
def test_network_that_is_no_function_of_a_row(kind):
    pipe = made("ddpm")
    pipe.unet.__class__ = kind
    with pytest.raises(ValueError, match=f"{kind.__name__} returns another output in a larger batch, off by"):
        called(jointly(pipe), "ddpm")


def test_batch_norm_in_training_mode():
    pipe = made("ddpm")
    pipe.unet.conv_norm_out = nn.Sequential(pipe.unet.conv_norm_out, nn.BatchNorm2d(16)).train()
    refused(pipe, "ddpm", "DDPMPipeline.unet is in training mode, where dropout and batch norm")


class Timed(diffusers.DDIMScheduler):
    def step(self, model_output: Any, timestep: Any, sample: Any, **settings: Any) -> Any:
        result = super().step(model_output, timestep, sample)
        result.prev_sample = result.prev_sample + time.perf_counter() % 1.0  # beyond the rounding of a float32
        return result


class OwnGenerator(diffusers.DDIMScheduler):
    """A generator of the class, which a copy of the scheduler has no copy of."""

    generator = torch.Generator().manual_seed(1)

    def step(self, model_output: Any, timestep: Any, sample: Any, **settings: Any) -> Any:
        result = super().step(model_output, timestep, sample)
        noise = torch.randn(sample.shape, generator=self.generator)
        result.prev_sample = result.prev_sample + 0.1 * noise
        return result


@pytest.mark.parametrize("kind", [Timed, OwnGenerator])
def test_step_that_is_no_function(kind):
    pipe = pipeline("ddpm", scheduler=kind())
    with pytest.raises(ValueError, match="are not the same: its scheduler's step is no function of what it is given"):
        called(jointly(pipe), "ddpm")


class Numpy(diffusers.DDIMScheduler):
    """A stranger's scheduler, whose noise is numpy's."""

    def step(self, model_output: Any, timestep: Any, sample: Any, **settings: Any) -> Any:
        result = super().step(model_output, timestep, sample)
        noise = torch.from_numpy(np.random.standard_normal(tuple(sample.shape))).to(sample.dtype)
        result.prev_sample = result.prev_sample + 0.1 * noise
        return result


class GeneratorOfItsOwn(OwnGenerator):
    """A generator of the instance: a copy of the scheduler draws the same numbers."""

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self.generator = torch.Generator().manual_seed(1)


@pytest.mark.parametrize("kind", [Numpy, GeneratorOfItsOwn])
def test_other_sources_of_noise_go_in(kind):
    outputs = []
    before = np.random.get_state()
    for wrap in (lambda pipe: pipe, jointly):
        np.random.seed(1)
        outputs.append(images_of(called(wrap(pipeline("ddpm", scheduler=kind())), "ddpm")))
    np.random.set_state(before)
    assert distance(outputs[1], outputs[0]) < 3e-3


def test_callback_that_keeps_count():
    count = itertools.count()

    def counts(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] * (1 + 1e-3 * next(count))}

    with pytest.raises(ValueError, match="or a callback keeps count"):
        called(jointly(made("sd1")), "sd1", callback_on_step_end=counts)


@pytest.mark.parametrize("bound", [3.0, pytest.param(8.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "form", [None, *(pytest.param(form, marks=pytest.mark.slow) for form in ("predictions", "steps"))]
)
def test_loop_whose_length_depends_on_the_images(form, bound):
    def ends(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        # Samples that are large go on, small ones end.
        pipe._interrupt = index >= 2 and float(tensors["latents"].std()) < bound
        return tensors

    own = images_of(called(made("sd1"), "sd1", callback_on_step_end=ends))
    try:
        found = images_of(called(jointly(made("sd1"), form=form), "sd1", callback_on_step_end=ends))
    except ValueError as refusal:
        assert "is not one fixed point" in str(refusal)  # noqa: PT017
    else:
        assert distance(found, own) < 3e-3


def test_attention_that_the_pipeline_reads():
    pipe = diffusers.StableDiffusionSAGPipeline(**made("sd1").components, requires_safety_checker=False)
    with pytest.raises(ValueError, match="the CrossAttnStoreProcessor in unet keeps attention_probs for the pipeline"):
        called(jointly(pipe), "sd1")


def test_learned_variances():
    def learned() -> Any:
        pipe = made("ddpm")
        settings = {**pipe.unet.config, "out_channels": 6}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            unet = diffusers.UNet2DModel.from_config(settings).eval()
        return diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(variance_type="learned_range"))

    own = images_of(called(learned(), "ddpm"))
    assert distance(images_of(called(jointly(learned()), "ddpm")), own) < 3e-3
    with pytest.raises(
        ValueError,
        match=said("outputs of shape (2, 6, 8, 8) for samples of shape (2, 3, 8, 8), which cannot be unknowns"),
    ):
        called(jointly(learned(), form="predictions"), "ddpm")


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        (
            "sd1",
            {"latents": torch.full((2, 4, 8, 8), torch.nan)},
            "latents must be finite, got 512 entries that are NaN",
        ),
        ("img2img", {"image": [torch.full((3, 16, 16), torch.inf)] * 2}, "image must be finite, got 768 entries"),
        ("sd1", {"prompt": None, "prompt_embeds": torch.full((2, 16, 16), torch.nan)}, "prompt_embeds must be finite"),
        ("sd1", {"height": 13}, "`height` and `width` have to be divisible by 8 but are 13 and 16."),
        ("sd1", {"prompt": None}, "Provide either `prompt` or `prompt_embeds`."),
    ],
)
def test_arguments(name, given, sentence):
    pipe = made(name)
    pipe.unet.register_forward_pre_hook(lambda *_: pytest.fail("a network was called"))
    refused(pipe, name, sentence, **given)


def test_unknown_argument():
    refused(made("ddpm"), "ddpm", "unexpected keyword argument 'prompts'", TypeError, prompts="a cat")


def test_network_that_returns_nan():
    pipe = made("ddpm")
    pipe.unet.register_forward_hook(lambda _, __, output: type(output)(sample=output.sample * torch.nan))
    with pytest.warns(UserWarning, match="DDPMPipeline: "):
        output = called(jointly(pipe), "ddpm")
    assert images_of(output).shape == (2, 3, 8, 8)


def test_nothing_is_downloaded_and_nothing_unpickled(monkeypatch):
    pipe = made("sd1")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection or a pickle")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    sampler = jointly(pipe)
    assert images_of(called(sampler, "sd1", output_type="np")).shape == (2, 16, 16, 3)
    with pytest.raises(TypeError, match="load it by"):
        parallel("CompVis/stable-diffusion-v1-4")


@pytest.mark.parametrize(
    ("form", "name", "sentence"),
    [
        ("affine", "inpaint", "loop is not an affine scheduler and plain guidance; leave out form='affine'"),
        ("tables", "inpaint", "loop is not one of a scheduler that is affine, and leaves its samples alone"),
        ("steps", "pixart", "steps of DPMSolverMultistepScheduler depend on more than the state before them"),
    ],
)
def test_form_that_does_not_fit(form, name, sentence):
    with pytest.raises(ValueError, match=said(sentence)):
        called(jointly(made(name), form=form), name)


def test_noise_of_another_shape():
    sampler = jointly(made("sd1", "EulerAncestralDiscreteScheduler"))
    with pytest.raises(ValueError, match=said("noise must have shape (2, 8, 4, 8, 8)")):
        called(sampler, "sd1", noise=torch.zeros(2, 3, 4, 8, 8))
    with pytest.raises(ValueError, match="noise is for schedulers that draw some, and this one draws none"):
        called(jointly(made("sd1")), "sd1", noise=torch.zeros(2, 8, 4, 8, 8))


def test_solution_of_a_stranger():
    sampler = jointly(made("ddpm"))
    problem = called(jointly(made("ddpm")).problem, "ddpm")
    with pytest.raises(ValueError, match="the problem was not made by the method problem of this object"):
        sampler.finish(problem, None)
