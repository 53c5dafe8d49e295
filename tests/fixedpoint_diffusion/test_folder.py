"""Model folders: a model's own, a pipeline's, and every way in which one can be unusable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel

import fixedpoint
from fixedpoint.config.errors import ConfigError
from fixedpoint.config.runfile import load
from fixedpoint.core.options import OptionError
from fixedpoint_diffusion import DDIMSchedule
from fixedpoint_diffusion.folder import ModelFolder
from fixedpoint_diffusion.models import DiffusersModel
from fixedpoint_diffusion.task import DDIMSampling

CHANNELS = 3


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        num_class_embeds=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()


@pytest.fixture
def bare(unet: UNet2DModel, tmp_path: Path) -> Path:
    unet.save_pretrained(tmp_path / "bare")
    return tmp_path / "bare"


@pytest.fixture
def pipeline(unet: UNet2DModel, tmp_path: Path) -> Path:
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.001, clip_sample=False)
    DDIMPipeline(unet, scheduler).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def task(path: Path, **options: object) -> DDIMSampling:
    return DDIMSampling(model=DiffusersModel(path=str(path), **options), num_inference_steps=6, batch=3)


def test_a_model_folder_samples_with_diffusers_default_schedule(bare: Path, unet: UNet2DModel) -> None:
    built = task(bare)
    assert built.chain_schedule == DDIMSchedule()
    problem = built.problem(0)
    assert problem.x0.shape == (3, CHANNELS, 8, 8)
    serial = fixedpoint.solve(problem, solver="serial").z[:, -1]
    x, scheduler = problem.x0, DDIMScheduler()
    scheduler.set_timesteps(6)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, class_labels=torch.arange(3)).sample, t, x).prev_sample
    torch.testing.assert_close(serial, x, rtol=1e-4, atol=1e-5)


def test_a_pipeline_folder_brings_its_own_schedule(pipeline: Path) -> None:
    own = task(pipeline).chain_schedule
    assert (own.beta_schedule, own.beta_start, own.clip_sample) == ("scaled_linear", 0.001, False)


def test_ddpm_folders_are_stepped_by_ddim(bare: Path) -> None:
    """The hub's DDPM models have a DDPMScheduler; diffusers' DDIMScheduler takes its configuration the same way."""
    DDPMScheduler(clip_sample=False, beta_schedule="squaredcos_cap_v2").save_pretrained(bare)
    expected = DDIMSchedule.from_scheduler(DDIMScheduler.from_config(DDPMScheduler.load_config(bare)))
    assert ModelFolder.open(bare).schedule() == expected


def test_a_schedule_of_ones_own_must_be_that_of_the_training(pipeline: Path) -> None:
    model = DiffusersModel(path=str(pipeline))
    spaced = DDIMSchedule(
        beta_schedule="scaled_linear", beta_start=0.001, clip_sample=False, timestep_spacing="trailing"
    )
    assert DDIMSampling(model=model, schedule=spaced).chain_schedule is spaced
    with pytest.raises(OptionError, match="noise levels the model was trained with"):
        DDIMSampling(model=model, schedule=DDIMSchedule())
    with pytest.raises(OptionError, match="own prediction_type 'epsilon', got 'sample'"):
        DDIMSampling(model=model, schedule=DDIMSchedule(prediction_type="sample"))


def test_classes_and_guidance(bare: Path) -> None:
    model = DiffusersModel(path=str(bare), classes=(2, 1), guidance_scale=2.0, no_class=3)
    denoiser = model.denoiser(DDIMSchedule(), rows=5)
    assert denoiser.conditioning["class_labels"].tolist() == [2, 1, 2, 1, 2]
    assert denoiser.unconditional["class_labels"].tolist() == [3] * 5
    rest = DiffusersModel(path=str(bare), no_class=1)
    assert rest.labels(4) == (0, 2, 3, 0)
    plain = DiffusersModel(path=str(bare)).denoiser(DDIMSchedule(), rows=5)
    assert plain.conditioning["class_labels"].tolist() == [0, 1, 2, 3, 0]


def test_a_network_is_loaded_once_and_again_when_it_has_changed(bare: Path, unet: UNet2DModel) -> None:
    first, second = (DiffusersModel(path=str(bare)) for _ in range(2))
    assert first.denoiser(DDIMSchedule()).network is second.denoiser(DDIMSchedule()).network
    changed = UNet2DModel.from_config(unet.config)
    changed.save_pretrained(bare)
    third = DiffusersModel(path=str(bare))
    assert third.sha256 != first.sha256
    loaded = third.denoiser(DDIMSchedule()).network
    assert torch.equal(next(loaded.parameters()), next(changed.parameters()))
    with pytest.raises(ValueError, match="has changed since it was looked at"):
        first.denoiser(DDIMSchedule())
    with pytest.raises(OptionError, match="sha256 says other weights"):
        DiffusersModel(path=str(bare), sha256=first.sha256)


def no_config(path: Path) -> None:
    (path / "config.json").unlink()


def broken_config(path: Path) -> None:
    (path / "config.json").write_text("{")


def listed_config(path: Path) -> None:
    (path / "config.json").write_text("[]")


def nameless(path: Path) -> None:
    (path / "config.json").write_text("{}")


def pickled(path: Path) -> None:
    (path / "diffusion_pytorch_model.safetensors").rename(path / "diffusion_pytorch_model.bin")


def sizeless(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "sample_size": None}))


def flowing(path: Path) -> None:
    FlowMatchEulerDiscreteScheduler().save_pretrained(path)


def strange_schedule(path: Path) -> None:
    (path / "scheduler_config.json").write_text(json.dumps({"beta_schedule": "sigmoid"}))


def missing(path: Path) -> None:
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (missing, "there is no folder"),
        (no_config, "has neither a config.json nor a folder unet or transformer with one"),
        (broken_config, "config.json cannot be read"),
        (listed_config, "config.json must be a JSON object"),
        (nameless, "does not name the model's class"),
        (pickled, "pickled weights are not read"),
        (sizeless, "must say in_channels and sample_size .* got 3 and None"),
        (flowing, r"\(FlowMatchEulerDiscreteScheduler\) has no beta_schedule, so it has no DDIM chain"),
        (strange_schedule, "beta_schedule must be one of 'linear'"),
    ],
)
def test_an_unusable_folder_is_a_sentence(bare: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    spoil(bare)
    with pytest.raises(OptionError, match=f"DiffusersModel: path cannot be used: .*{sentence}"):
        DiffusersModel(path=str(bare))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"classes": (4,)}, "classes must be from 0 to 3, got 4"),
        ({"classes": ()}, "classes must name at least one class"),
        ({"no_class": 4}, "no_class must be at most 3, got 4"),
        ({"guidance_scale": 2.0}, "guidance_scale other than 1 wants no_class"),
        ({"dtype": "int8"}, "dtype must be one of 'float32'"),
    ],
)
def test_bad_options_are_a_sentence(bare: Path, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        DiffusersModel(path=str(bare), **options)


def test_a_class_that_diffusers_has_not(bare: Path) -> None:
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({**config, "_class_name": "Nothing2DModel"}))
    with pytest.raises(ValueError, match="names the class Nothing2DModel, which diffusers has not"):
        task(bare).problem(0)


def test_a_run_file_points_at_the_path(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "tasks:\n  - name: ddim-sampling\n    model: {name: diffusers, path: nowhere}\nsolvers: [serial]\n"
    )
    with pytest.raises(ConfigError, match=r"run.yaml:3:\d+: tasks\[0\].model.path: .*there is no folder nowhere"):
        load(tmp_path / "run.yaml", [])
