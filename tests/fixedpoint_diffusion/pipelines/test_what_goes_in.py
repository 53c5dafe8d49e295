"""Whatever a pipeline can be called with goes in, and comes out as by its own call."""

from __future__ import annotations

from typing import Any

import accelerate
import diffusers
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from pipeline_cases import assert_goes_in, called, jointly, made
from tiny_pipelines import arguments, distance, generators, images_of, pipeline
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        slow("sd1", torch.bfloat16),
        slow("sdxl", torch.bfloat16),
        slow("sd3", torch.bfloat16),
        slow("flux", torch.bfloat16),
        slow("pixart", torch.bfloat16),
        slow("dit", torch.bfloat16),
        ("controlnet", torch.bfloat16),
        slow("ddpm", torch.bfloat16),
        slow("sd1", torch.float16),
        slow("flux", torch.float16),
        slow("ddpm", torch.float16),
    ],
)
def test_networks_of_low_precision(name, dtype):
    assert_goes_in(lambda: pipeline(name, dtype=dtype), name)


def test_states_of_networks_of_low_precision_are_in_float32():
    problem = called(jointly(pipeline("flux", dtype=torch.bfloat16)).problem, "flux")
    assert problem.x0.dtype == torch.float32


def reads(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    assert tensors["latents"].isfinite().all()
    return {}


def moves(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"latents": 1.1 * tensors["latents"]} if index == 3 else tensors


def previews(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    image = pipe.vae.decode(tensors["latents"] / pipe.vae.config.scaling_factor).sample
    return {"latents": tensors["latents"] + 0.1 * image.mean()}


def ends(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    pipe._interrupt = index >= 4
    return tensors


def stops_guidance(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """As the documentation of diffusers has it."""
    if index == 3:
        tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        pipe._guidance_scale = 0.0
    return tensors


def changes_prompt(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"prompt_embeds": 0.5 * tensors["prompt_embeds"]} if index == 3 else {}


@pytest.mark.parametrize(
    ("callback", "tensors", "form"),
    [
        slow(reads, ["latents"], "affine"),
        (moves, ["latents"], "predictions"),
        (ends, ["latents"], "affine"),
        (stops_guidance, ["latents", "prompt_embeds"], "tables"),
        slow(changes_prompt, ["latents", "prompt_embeds"], "affine"),
        (previews, ["latents"], "predictions"),
    ],
)
def test_callbacks(callback, tensors, form):
    given = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": tensors}
    assert assert_goes_in(lambda: made("sd1"), "sd1", **given) == form


@pytest.mark.slow
@pytest.mark.parametrize("form", ["predictions", "steps"])
@pytest.mark.parametrize("callback", [moves, stops_guidance, ends])
def test_callbacks_by_replay(callback, form):
    tensors = ["latents", "prompt_embeds"] if callback is stops_guidance else ["latents"]
    given = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": tensors}
    assert assert_goes_in(lambda: made("sd1"), "sd1", form=form, **given) == form


def test_callback_that_ends_the_loop_early_ends_the_joint_loop():
    problem = called(jointly(made("sd1")).problem, "sd1", callback_on_step_end=ends)
    assert problem.length == 5


@pytest.mark.slow
def test_cutoff_of_guidance_by_diffusers():
    callback = diffusers.callbacks.SDCFGCutoffCallback(cutoff_step_ratio=0.4)
    given = {"prompt": "a cat", "generator": one, "callback_on_step_end": callback}
    assert assert_goes_in(lambda: made("sd1"), "sd1", **given) == "tables"


def one() -> torch.Generator:
    return torch.Generator().manual_seed(5)


LATENTS = torch.randn(2, 4, 8, 8, generator=one())
EMBEDS = torch.randn(2, 16, 16, generator=one())
ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rescaled guidance": ("sd1", {"guidance_rescale": 0.7}),
    "rescaled guidance of SDXL": ("sdxl", {"guidance_rescale": 0.7}),
    "no guidance": ("sd1", {"guidance_scale": 1.0}),
    "no guidance of SD3": ("sd3", {"guidance_scale": 1.0}),
    "skipped layers of SD3": ("sd3", {"skip_guidance_layers": [0], "skip_layer_guidance_stop": 0.6}),
    "true guidance of Flux": ("flux", {"negative_prompt": ["blurred", "dark"], "true_cfg_scale": 3.0}),
    "guidance scale of Flux": ("flux", {"guidance_scale": 7.0}),
    "negative prompts": ("sd1", {"negative_prompt": ["blurred", "dark"]}),
    "several images for a prompt": ("sd1", {"num_images_per_prompt": 2, "generator": lambda: generators(4)}),
    "eta": ("sd1", {"eta": 1.0}),
    "latents": ("sd1", {"latents": LATENTS}),
    "embeddings": ("sd1", {"prompt": None, "prompt_embeds": EMBEDS, "negative_prompt_embeds": -EMBEDS}),
    "sigmas": ("sdxl", {"sigmas": [10.0, 5.0, 2.0, 1.0, 0.3], "steps": None}),
    "sigmas of a flow": ("sd3", {"sigmas": [1.0, 0.8, 0.5, 0.2], "steps": None}),
    "end of the base": ("sdxl", {"denoising_end": 0.6}),
    "start of the refiner": ("sdxl-refiner", {"denoising_start": 0.4, "strength": None}),
    "control for a while": ("controlnet", {"control_guidance_start": 0.2, "control_guidance_end": 0.7}),
    "control by guessing": ("controlnet", {"guess_mode": True, "guidance_scale": 3.0}),
    "scale of a LoRA": ("lora", {"cross_attention_kwargs": {"scale": 0.5}}),
    "image prompt": ("ip-adapter", {}),
    "inpainting": ("inpaint", {}),
    "encoded image": ("img2img", {}),
}
QUICK = ("several images for a prompt", "true guidance of Flux", "control by guessing")


@pytest.mark.parametrize("what", [each if each in QUICK else slow(each) for each in ARGUMENTS])
def test_arguments(what):
    name, given = ARGUMENTS[what]
    assert_goes_in(lambda: made(name), name, **given)


@pytest.mark.parametrize("kind", [slow("EulerDiscreteScheduler"), slow("DPMSolverMultistepScheduler")])
def test_timesteps_by_hand(kind):
    assert_goes_in(lambda: made("sd1", kind), "sd1", timesteps=[900, 700, 500, 200, 50], steps=None)


def from_torch() -> None:
    torch.manual_seed(7)


@pytest.mark.parametrize("generator", [slow(generators), slow(one), from_torch])
@pytest.mark.parametrize("form", [None, slow("predictions")])
def test_generators(generator, form):
    with torch.random.fork_rng(devices=[]):
        assert_goes_in(lambda: made("sd1", "EulerAncestralDiscreteScheduler"), "sd1", form=form, generator=generator)


@pytest.mark.slow
def test_flow_that_draws_from_the_generator_of_torch():
    with torch.random.fork_rng(devices=[]):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
        make = lambda: pipeline("sd3", scheduler=scheduler)  # noqa: E731
        assert_goes_in(make, "sd3", generator=from_torch)


def sliced() -> Any:
    pipe = made("sd1")
    pipe.enable_attention_slicing(1)
    return pipe


def compiled() -> Any:
    pipe = made("sd1")
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    return pipe


def compiled_in_place() -> Any:
    pipe = made("sd1")
    pipe.unet.compile(backend="eager")
    return pipe


def freed() -> Any:
    pipe = made("sd1")
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    return pipe


def fused() -> Any:
    pipe = made("sd1")
    pipe.fuse_qkv_projections()
    return pipe


def perturbed_attention() -> Any:
    """Its attention divides the batch into three parts."""
    return diffusers.StableDiffusionPAGPipeline(
        **made("sd1").components, requires_safety_checker=False, pag_applied_layers="mid"
    )


def two_controls() -> Any:
    first, second = pipeline("controlnet"), pipeline("controlnet", seed=1)
    parts = {**first.components, "controlnet": [first.controlnet, second.controlnet]}
    return diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)


def adapted() -> Any:
    """With features of an image, made before the loop by a network of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        blocks = {
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
        adapter = diffusers.T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=2).eval()
        unet = diffusers.UNet2DConditionModel.from_config({**made("sd1").unet.config, **blocks}).eval()
        parts = {**made("sd1").components, "unet": unet, "adapter": adapter}
        del parts["image_encoder"]
        return diffusers.StableDiffusionAdapterPipeline(**parts, requires_safety_checker=False)


def offloaded() -> Any:
    """Weights come to the device for a call of each layer."""
    pipe = made("sd1")
    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"), offload_buffers=True)
    return pipe


def offloaded_in_turn() -> Any:
    """A part comes to the device for its call, and the part before it goes."""
    pipe = made("sd1")
    _, hook = accelerate.cpu_offload_with_hook(pipe.text_encoder, torch.device("cpu"))
    accelerate.cpu_offload_with_hook(pipe.unet, torch.device("cpu"), prev_module_hook=hook)
    return pipe


def offloaded_in_groups() -> Any:
    pipe = made("sd1")
    diffusers.hooks.apply_group_offloading(pipe.unet, onload_device=torch.device("cpu"), offload_type="leaf_level")
    return pipe


def stored_in_eight_bits() -> Any:
    pipe = made("sd1")
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    return pipe


CONTROL = torch.rand(2, 3, 16, 16, generator=one())
PARTS: dict[Any, tuple[str, dict[str, Any]]] = {
    sliced: ("sd1", {}),
    compiled: ("sd1", {}),
    compiled_in_place: ("sd1", {}),
    freed: ("sd1", {}),
    fused: ("sd1", {}),
    perturbed_attention: ("sd1", {"pag_scale": 2.0}),
    two_controls: ("controlnet", {"image": [CONTROL, 1 - CONTROL], "controlnet_conditioning_scale": [0.5, 1.0]}),
    adapted: ("sd1", {"image": CONTROL, "height": None, "width": None}),
    offloaded: ("sd1", {}),
    offloaded_in_turn: ("sd1", {}),
    offloaded_in_groups: ("sd1", {}),
    stored_in_eight_bits: ("sd1", {}),
}
RARE = (
    sliced,
    compiled,
    two_controls,
    perturbed_attention,
    compiled_in_place,
    freed,
    fused,
    offloaded_in_turn,
    offloaded_in_groups,
    stored_in_eight_bits,
)


@pytest.mark.parametrize("make", [slow(each) if each in RARE else each for each in PARTS])
def test_parts(make):
    name, given = PARTS[make]
    assert_goes_in(make, name, **given)


def checked() -> Any:
    """With a safety checker, which sees the decoded images."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        vision_config={**sizes, "image_size": 16, "patch_size": 8}, text_config=sizes, projection_dim=16
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        checker = StableDiffusionSafetyChecker(config).eval()
    extractor = transformers.CLIPImageProcessor(size=16, crop_size=16)
    parts = {**made("sd1").components, "safety_checker": checker, "feature_extractor": extractor}
    return diffusers.StableDiffusionPipeline(**parts)


def test_safety_checker_sees_the_images_of_the_solution():
    seen: list[Tensor] = []

    def note(checker: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(named["clip_input"])

    own, other = checked(), checked()
    for pipe in (own, other):
        pipe.safety_checker.register_forward_pre_hook(note, with_kwargs=True)
    called(own, "sd1", output_type="np")
    called(jointly(other), "sd1", output_type="np")
    assert len(seen) == 2
    assert distance(seen[1], seen[0]) < 0.02


@pytest.mark.parametrize("kind", [slow("latent"), slow("pt"), slow("np"), "pil"])
@pytest.mark.parametrize("as_tuple", [False, slow(True)])
def test_output(kind, as_tuple):
    given = {"output_type": kind, "return_dict": not as_tuple}
    own, found = (called(call, "sd1", **given) for call in (made("sd1"), jointly(made("sd1"))))
    assert type(found) is type(own)
    assert type(found[0]) is type(own[0])
    if kind == "pil":
        assert (images_of(found).int() - images_of(own).int()).abs().max() <= 2
    else:
        assert distance(images_of(found), images_of(own)) < 3e-3


@pytest.mark.slow
def test_single_prompt():
    assert_goes_in(lambda: made("sd1"), "sd1", prompt="a cat", generator=one)


@pytest.mark.slow
def test_two_calls_of_a_sampler_do_not_know_of_one_another():
    sampler = jointly(made("sd1", "DPMSolverMultistepScheduler"))
    first, _, again = (called(sampler, "sd1", prompt=[prompt, "a cow"]) for prompt in ("a cat", "a dog", "a cat"))
    assert torch.equal(images_of(first), images_of(again))


@pytest.mark.slow
def test_base_and_refiner():
    def both(wrap: Any) -> Tensor:
        latents = called(wrap(made("sdxl")), "sdxl", steps=12, denoising_end=0.6).images
        return images_of(
            called(wrap(made("sdxl-refiner")), "sdxl-refiner", image=latents, denoising_start=0.6, steps=12)
        )

    assert distance(both(jointly), both(lambda pipe: pipe)) < 3e-3


def test_none_of_the_arguments_is_changed():
    given = {**arguments("img2img"), "num_inference_steps": 8}
    before = {key: value.clone() if isinstance(value, Tensor) else value for key, value in given.items()}
    jointly(made("img2img"))(**given, generator=generators())
    for key, value in before.items():
        assert torch.equal(given[key], value) if isinstance(value, Tensor) else given[key] == value


@pytest.mark.parametrize("form", ["tables", slow("steps"), slow("predictions")])
def test_noise_that_a_pipeline_draws_after_its_latents(form):
    """It encodes the masked image by a draw. A pipeline that is given latents draws that noise first."""
    make = lambda: made("inpaint-9", "EulerDiscreteScheduler")  # noqa: E731
    assert assert_goes_in(make, "inpaint-9", form=form) == form


@pytest.mark.parametrize("generator", [slow(generators), one])
def test_chain_from_another_start_draws_the_noise_of_the_call(generator):
    kind = "EulerAncestralDiscreteScheduler"
    sampler = jointly(made("sd1", kind), form="steps")
    problem = called(sampler.problem, "sd1", generator=generator())
    with torch.no_grad():
        states = [problem.x0]
        for number in range(problem.length):
            # From a start that is not bit for bit the pipeline's, so that it is given as latents.
            x = states[-1] * (1 + 1e-4) if number == 0 else states[-1]
            rows = torch.arange(2)
            states.append(problem.chain.step(x, torch.full((2,), number), rows))
    own = images_of(called(made("sd1", kind), "sd1", generator=generator()))
    assert distance(states[-1], own) < 3e-3


def test_a_pipeline_that_changes_some_samples_only_is_told():
    """Passes with random outputs cannot find it out; the last one, with the solution, does."""
    pipe = made("sd1", "DDIMScheduler")
    own = images_of(called(pipe, "sd1"))

    def moves_own(pipe: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        near = (tensors["latents"] - own).norm() < 0.5 * own.norm()
        return {"latents": 1.1 * tensors["latents"]} if near else tensors

    with pytest.warns(UserWarning, match="changes its samples between two steps.*solver='serial'"):
        called(jointly(pipe), "sd1", callback_on_step_end=moves_own)
