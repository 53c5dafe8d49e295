"""JointDenoise against the loops of Modular Diffusers that it replaces, on tiny components with random weights."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FluxAutoBlocks,
    ModularPipelineBlocks,
    PerturbedAttentionGuidance,
    QwenImageAutoBlocks,
    StableDiffusion3AutoBlocks,
    StableDiffusionXLAutoBlocks,
)
from diffusers.modular_pipelines.flux.denoise import FluxDenoiseStep
from diffusers.modular_pipelines.qwenimage.denoise import QwenImageDenoiseStep
from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3DenoiseStep
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import (
    StableDiffusionXLControlNetDenoiseStep,
    StableDiffusionXLDenoiseStep,
    StableDiffusionXLInpaintDenoiseStep,
)
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from tiny_pipelines import arguments, pipeline
from tiny_pipelines.parts import drawn

from fixedpoint.chains import BlockSecant, ChainSolver
from fixedpoint_diffusion import parallel
from fixedpoint_diffusion.modular import JointDenoise

# diffusers' own, about its use of numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

JOINT = ChainSolver(accelerator=BlockSecant())
RTOL = 1e-3
STEPS = 8
LEVELS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BLOCKS = {"sdxl": StableDiffusionXLAutoBlocks, "sd3": StableDiffusion3AutoBlocks, "flux": FluxAutoBlocks}
LOOPS = {
    "sdxl": StableDiffusionXLDenoiseStep,
    "sdxl-controlnet": StableDiffusionXLControlNetDenoiseStep,
    "sdxl-inpaint": StableDiffusionXLInpaintDenoiseStep,
    "sd3": StableDiffusion3DenoiseStep,
    "flux": FluxDenoiseStep,
}
# Family, scheduler (None: the family's own, Euler for flows), guidance scale (None: the family has no guider).
CASES = {
    "sdxl-euler": ("sdxl", EulerDiscreteScheduler, 7.5),
    "sdxl-euler-unguided": ("sdxl", EulerDiscreteScheduler, 1.0),
    "sdxl-ddim": ("sdxl", DDIMScheduler, 7.5),
    "sdxl-ddim-unguided": ("sdxl", DDIMScheduler, 1.0),
    "sdxl-dpm": ("sdxl", DPMSolverMultistepScheduler, 7.5),
    "sdxl-dpm-unguided": ("sdxl", DPMSolverMultistepScheduler, 1.0),
    "sdxl-ancestral": ("sdxl", EulerAncestralDiscreteScheduler, 7.5),
    "sd3": ("sd3", None, 7.0),
    "sd3-unguided": ("sd3", None, 1.0),
    "flux": ("flux", None, None),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """diffusers logs that guiders are experimental, and tracebacks of what is raised in a block."""
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
    yield
    diffusers_logging.set_verbosity(before)


class Run:
    """A call of blocks, and what it left behind."""

    def __init__(
        self,
        blocks: Any,
        family: str,
        scheduler: Any = None,
        scale: float | None = None,
        guider: Any = None,
        inputs: dict[str, Any] | None = None,
        parts: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        classic = pipeline(family)
        self.pipe = blocks.init_pipeline()
        for block in all_blocks(self.pipe._blocks):
            if hasattr(block, "set_progress_bar_config"):
                block.set_progress_bar_config(disable=True)
        found = {**classic.components, **(parts or {})}
        if scheduler is not None:
            found["scheduler"] = scheduler(**LEVELS, **({"clip_sample": False} if scheduler is DDIMScheduler else {}))
        if scale is not None:
            found["guider"] = guider or ClassifierFreeGuidance(guidance_scale=scale)
        found = {name: part for name, part in found.items() if name in self.pipe.component_names}
        self.pipe.update_components(**found)
        self.before = dict(vars(self.pipe))
        self.calls = 0
        network = self.pipe.transformer if hasattr(self.pipe, "transformer") else self.pipe.unet
        hook = network.register_forward_pre_hook(self._count)
        generator = torch.Generator().manual_seed(3)
        given = {**arguments(family), "num_inference_steps": STEPS, "generator": generator, **(inputs or {}), **options}
        given.pop("output_type")
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(5)
                self.state = self.pipe(**given)
                self.random = torch.get_rng_state()
        finally:
            hook.remove()
        self.generator = generator.get_state()

    def _count(self, *_: Any) -> None:
        self.calls += 1


def all_blocks(blocks: Any) -> list[Any]:
    return [blocks, *(each for block in blocks.sub_blocks.values() for each in all_blocks(block))]


def text_to_image(family: str) -> Any:
    # A copy: some blocks of diffusers are made once, with the class that contains them.
    return copy.deepcopy(BLOCKS[family]().get_workflow("text2image"))


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest relative difference of an image."""
    return float(((one - other).flatten(1).norm(dim=1) / other.flatten(1).norm(dim=1)).max())


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, to the bit where they are tensors."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (np.ndarray, Image.Image)):
        return np.array_equal(np.asarray(one), np.asarray(other))
    return bool(one == other) or isinstance(one, torch.Generator)


def counters(part: Any) -> dict[str, Any]:
    """What a scheduler counts: all of its attributes that are no tensors made of images."""
    plain = (bool, int, float, str, type(None))
    return {name: value for name, value in vars(part).items() if isinstance(value, plain)}


@pytest.mark.parametrize("case", CASES)
def test_serial_is_the_loop_to_the_bit(case: str) -> None:
    family, scheduler, scale = CASES[case]
    blocks = text_to_image(family)
    own = Run(blocks, family, scheduler, scale)
    serial = Run(JointDenoise.of(blocks), family, scheduler, scale, solver="serial")
    for name, value in own.state.values.items():
        assert same(value, serial.state.values[name]), name
    assert serial.calls == own.calls
    assert same(vars(own.pipe.scheduler), vars(serial.pipe.scheduler))
    assert torch.equal(own.generator, serial.generator)
    assert torch.equal(own.random, serial.random)
    if scale is not None:
        assert same(own.pipe.guider.get_state(), serial.pipe.guider.get_state())
    assert serial.state.solution.rounds.tolist() == [STEPS, STEPS]


@pytest.mark.parametrize("case", CASES)
def test_joint_is_the_loop_within_the_tolerance(case: str) -> None:
    family, scheduler, scale = CASES[case]
    blocks = text_to_image(family)
    own = Run(blocks, family, scheduler, scale)
    joint = Run(JointDenoise.of(blocks, rtol=RTOL, solver=JOINT), family, scheduler, scale)
    assert off(joint.state.latents, own.state.latents) <= 3 * RTOL
    assert joint.state.latents.dtype == own.state.latents.dtype
    for one, other in zip(joint.state.images, own.state.images, strict=True):
        assert np.abs(np.asarray(one, float) - np.asarray(other, float)).max() <= 2  # of 255
    assert all(joint.state.solution.converged)
    assert counters(joint.pipe.scheduler) == counters(own.pipe.scheduler)
    assert torch.equal(own.generator, joint.generator)
    assert torch.equal(own.random, joint.random)
    if scale is not None:
        assert same(own.pipe.guider.get_state(), joint.pipe.guider.get_state())
    assert vars(joint.pipe).keys() == joint.before.keys()
    assert all(vars(joint.pipe)[name] is value for name, value in joint.before.items())


def test_guidance_matters_in_these_cases() -> None:
    for family, scheduler, scale in (CASES["sdxl-ddim"], CASES["sd3"]):
        inputs = {"negative_prompt": ["0123456789", "zzzz"]}
        guided, unguided = (
            Run(text_to_image(family), family, scheduler, each, inputs=inputs).state.latents for each in (scale, 1.0)
        )
        assert off(guided, unguided) > 0.05


def test_steps_that_share_a_timestep_among_images_go_into_one_batch() -> None:
    """The leaf block of Flux gives its network one timestep, of shape (1,), for all images."""
    blocks = text_to_image("flux")
    joint = Run(JointDenoise.of(blocks, solver=JOINT, max_batch=2 * STEPS), "flux")
    rounds = int(joint.state.solution.rounds.max())
    assert rounds < STEPS
    assert joint.calls <= rounds + 1  # and the first, that shows what an output is like


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
MASK = Image.fromarray(np.repeat(np.array([[0] * 8 + [255] * 8], np.uint8), 16, axis=0))


def controlnet() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return drawn(ControlNetModel.from_unet(pipeline("sdxl").unet, conditioning_embedding_out_channels=(8, 16)))


@pytest.mark.parametrize(
    ("family", "workflow", "inputs", "parts"),
    [
        ("sdxl", "image2image", {"image": PICTURE, "strength": 0.8}, None),
        ("sdxl", "inpainting", {"image": PICTURE, "mask_image": MASK, "strength": 0.8}, None),
        ("sdxl", "controlnet_text2image", {"control_image": PICTURE}, controlnet),
        ("sd3", "image2image", {"image": PICTURE, "strength": 0.8}, None),
        ("flux", "image2image", {"image": PICTURE, "strength": 0.8, "prompt": "a cat"}, None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_tasks(family: str, workflow: str, inputs: dict[str, Any], parts: Any) -> None:
    blocks = BLOCKS[family]().get_workflow(workflow)
    made = None if parts is None else {"controlnet": parts()}
    own, serial, joint = (
        Run(each, family, inputs=inputs, parts=made, **options)
        for each, options in (
            (blocks, {}),
            (JointDenoise.of(blocks), {"solver": "serial"}),
            (JointDenoise.of(blocks), {"solver": JOINT, "rtol": RTOL}),
        )
    )
    assert torch.equal(serial.state.latents, own.state.latents)
    assert off(joint.state.latents, own.state.latents) <= 3 * RTOL
    assert torch.equal(joint.generator, own.generator)


@pytest.mark.parametrize("name", LOOPS)
def test_it_declares_what_the_loop_declares(name: str) -> None:
    loop = LOOPS[name]()
    joint = JointDenoise(LOOPS[name](), rtol=1e-2)

    def told(block: Any) -> dict[Any, Any]:
        return {(each.name, each.kwargs_type): (each.required, each.default) for each in block.inputs}

    options = {("rtol", None): (False, 1e-2), ("solver", None): (False, "auto"), ("max_batch", None): (False, None)}
    assert told(joint) == {**told(loop), **options}
    assert set(joint.required_inputs) == set(loop.required_inputs)
    assert set(joint.output_names) == {*loop.output_names, "solution"}
    assert set(joint.intermediate_output_names) == {*loop.intermediate_output_names, "solution"}
    assert joint.component_names == loop.component_names
    assert joint.model_name == loop.model_name
    assert list(joint.sub_blocks) == list(loop.sub_blocks)


@pytest.mark.parametrize("family", BLOCKS)
def test_every_loop_in_automatic_blocks_is_replaced_and_the_given_blocks_stay(family: str) -> None:
    blocks = BLOCKS[family]()
    before = [type(block) for block in all_blocks(blocks)]
    joint = JointDenoise.of(blocks)
    assert [type(block) for block in all_blocks(blocks)] == before
    replaced = [block for block in all_blocks(joint) if isinstance(block, JointDenoise)]
    loops = [kind for kind in before if issubclass(kind, tuple(LOOPS.values()))]
    assert len(replaced) >= len(loops) >= 1
    assert {type(block) for block in all_blocks(joint)} & set(loops) == set()
    wanted = {each.name for each in blocks.inputs} | {"rtol", "solver", "max_batch"}
    assert {each.name for each in joint.inputs} == wanted
    assert next(each.default for each in joint.inputs if each.name == "rtol") == 1e-3


class Halved(ModularPipelineBlocks):
    """A leaf block of a user's own."""

    model_name = "flux"

    @torch.no_grad()
    def __call__(self, components: Any, block_state: Any, i: int, t: Any) -> tuple[Any, Any]:
        if i % 2:
            block_state.noise_pred = 0.5 * block_state.noise_pred
        return components, block_state


def test_a_leaf_block_of_ones_own_is_run() -> None:
    def with_block(blocks: Any) -> Any:
        (loop,) = (each for each in all_blocks(blocks) if "after_denoiser" in each.sub_blocks)
        loop.sub_blocks.insert("halved", Halved(), 1)
        return blocks

    own = Run(with_block(text_to_image("flux")), "flux")
    for options in ({"solver": "serial"}, {"solver": JOINT}):
        before = Run(JointDenoise.of(with_block(text_to_image("flux"))), "flux", **options)
        after = Run(with_block(JointDenoise.of(text_to_image("flux"))), "flux", **options)
        assert torch.equal(before.state.latents, after.state.latents)
        assert off(after.state.latents, own.state.latents) <= (0 if options["solver"] == "serial" else 3 * RTOL)
    assert off(Run(text_to_image("flux"), "flux").state.latents, own.state.latents) > 0.05


class Broken(Halved):
    def __call__(self, components: Any, block_state: Any, i: int, t: Any) -> tuple[Any, Any]:
        if i == 3:
            raise RuntimeError("no power")
        return components, block_state


def test_nothing_remains_where_a_block_raises() -> None:
    blocks = JointDenoise.of(text_to_image("flux"), solver=JOINT)
    (loop,) = (each for each in all_blocks(blocks) if isinstance(each, JointDenoise))
    loop.sub_blocks.insert("broken", Broken(), 1)
    pipe = blocks.init_pipeline()
    pipe.update_components(
        **{name: part for name, part in pipeline("flux").components.items() if name in pipe.component_names}
    )
    before = dict(vars(pipe))
    given = {name: value for name, value in arguments("flux").items() if name != "output_type"}
    with pytest.raises(RuntimeError, match="no power"):
        pipe(**given, num_inference_steps=STEPS)
    assert vars(pipe).keys() == before.keys()
    assert all(vars(pipe)[name] is value for name, value in before.items())
    assert "step" not in vars(pipe.scheduler)


def test_a_state_may_be_given_to_another_call() -> None:
    blocks = JointDenoise.of(text_to_image("sd3"), solver=JOINT)
    first = Run(blocks, "sd3")
    again = first.pipe(state=first.state, num_inference_steps=STEPS)
    assert again.solution is not first.state.solution
    assert all(again.solution.converged)


class OwnLoop(FluxDenoiseStep):
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        return super().__call__(components, state)


class OwnStep(FluxDenoiseStep):
    def loop_step(self, components: Any, state: Any, **kwargs: Any) -> tuple[Any, Any]:
        return super().loop_step(components, state, **kwargs)


KNOWN = "it knows those of Flux, Stable Diffusion 3, Stable Diffusion XL"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (QwenImageDenoiseStep, f"does not know the loop of QwenImageDenoiseStep; {KNOWN}"),
        (QwenImageAutoBlocks, KNOWN),
        (OwnLoop, "OwnLoop has a loop of its own (OwnLoop), which JointDenoise would leave out"),
        (OwnStep, "OwnStep has a loop of its own (OwnStep)"),
        (lambda: FluxDenoiseStep, "got the class FluxDenoiseStep itself; pass FluxDenoiseStep()"),
        (lambda: text_to_image("flux").sub_blocks["decode"], "FluxDecodeStep contains no denoising loop"),
        (lambda: text_to_image("flux").init_pipeline(), "got the pipeline FluxModularPipeline; pass its attribute"),
        (lambda: pipeline("flux"), "got the pipeline FluxPipeline; parallel takes pipelines"),
        (lambda: "my/folder", "requires blocks of Modular Diffusers, got str"),
        (lambda: JointDenoise.of(text_to_image("flux")), "contains no denoising loop"),
    ],
)
def test_what_cannot_be_replaced(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        JointDenoise.of(given())


def test_the_class_takes_a_loop_alone() -> None:
    with pytest.raises(TypeError, match=r"requires a denoising loop, got SequentialPipelineBlocks; JointDenoise\.of"):
        JointDenoise(text_to_image("flux"))


def test_parallel_refuses_blocks_and_their_pipelines() -> None:
    with pytest.raises(TypeError, match="made of blocks"):
        parallel(text_to_image("flux").init_pipeline())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 2.0}, "rtol must be between 0 and 1, got 2.0"),
        ({"rtol": "1e-3"}, "rtol must be between 0 and 1, got '1e-3'"),
        ({"max_batch": 0}, "max_batch must be an integer of at least 1, got 0"),
        ({"solver": "nothing"}, "nothing"),
    ],
)
def test_options_are_checked_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=re.escape(message)):
        JointDenoise.of(FluxDenoiseStep(), **options)
    blocks = text_to_image("flux")
    with pytest.raises(Exception, match=re.escape(message)):
        Run(JointDenoise.of(blocks), "flux", **options)


@pytest.mark.parametrize(
    ("guider", "solver", "message"),
    [
        (AdaptiveProjectedGuidance(adaptive_projected_guidance_momentum=-0.5), JOINT, "a guider with a momentum"),
        (
            PerturbedAttentionGuidance(perturbed_guidance_layers=[0]),
            "serial",
            "guider is a PerturbedAttentionGuidance, which changes layers of the network between its calls",
        ),
    ],
    ids=["momentum", "layers"],
)
def test_guiders_that_cannot_be_replayed(guider: Any, solver: Any, message: str) -> None:
    blocks = JointDenoise.of(text_to_image("sd3"), solver=solver)
    before = dict(vars(guider))
    with pytest.raises(ValueError, match=message):
        Run(blocks, "sd3", scale=7.0, guider=guider)
    assert vars(guider) == before


def test_a_guider_with_a_momentum_runs_step_by_step() -> None:
    own, serial = (
        Run(blocks, "sd3", scale=7.0, guider=guider, **options)
        for blocks, options in (
            (text_to_image("sd3"), {}),
            (JointDenoise.of(text_to_image("sd3")), {"solver": "serial"}),
        )
        for guider in [AdaptiveProjectedGuidance(adaptive_projected_guidance_momentum=-0.5)]
    )
    assert torch.equal(own.state.latents, serial.state.latents)
    assert same(vars(own.pipe.guider.momentum_buffer), vars(serial.pipe.guider.momentum_buffer))


def test_embeddings_must_be_finite() -> None:
    latents = torch.full((2, 16, 16), torch.nan)
    with pytest.raises(ValueError, match="latents must be finite, got 512 entries that are NaN or Inf"):
        Run(JointDenoise.of(text_to_image("flux")), "flux", inputs={"latents": latents})


EXAMPLE = Path(__file__).parents[2] / "examples" / "joint_denoise"
FOLDERS = {"sdxl": "stable-diffusion-xl", "sd3": "stable-diffusion-3", "flux": "flux"}


@pytest.mark.parametrize("family", FOLDERS)
def test_the_example_is_loaded_as_a_custom_block(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    loaded = ModularPipelineBlocks.from_pretrained(
        EXAMPLE / FOLDERS[family], trust_remote_code=True, local_files_only=True, rtol=RTOL, solver=JOINT
    )
    blocks = text_to_image(family)
    own = Run(blocks, family)
    blocks.sub_blocks["denoise.denoise"] = loaded
    joint = Run(blocks, family)
    assert off(joint.state.latents, own.state.latents) <= 3 * RTOL
    assert all(joint.state.solution.converged)
    assert joint.state.solution.rounds.max() < STEPS

    # What is committed is what diffusers writes.
    loaded.save_pretrained(tmp_path / "saved")
    saved, committed = (
        json.loads((folder / "modular_config.json").read_text())
        for folder in (tmp_path / "saved", EXAMPLE / FOLDERS[family])
    )
    for each in (saved, committed):
        each.pop("_diffusers_version")
    assert saved == committed
