"""Model folders: a model's own, a pipeline's, and every way in which one can be unusable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    UNet2DModel,
)
from typer.testing import CliRunner

import fixedpoint
from fixedpoint.cli.main import app
from fixedpoint.config.errors import ConfigError
from fixedpoint.config.runfile import load
from fixedpoint.core.options import OptionError
from fixedpoint_diffusion import DDIMSchedule
from fixedpoint_diffusion.models.choices import DiffusersModel
from fixedpoint_diffusion.models.folder import FolderError, ModelFolder
from fixedpoint_diffusion.task import Sampling

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


def task(path: Path, **options: object) -> Sampling:
    return Sampling(model=DiffusersModel(path=str(path), **options), num_inference_steps=6, batch=3)


def test_a_model_folder_samples_with_diffusers_default_schedule(bare: Path, unet: UNet2DModel) -> None:
    built = task(bare)
    assert built.sampler.schedule == DDIMSchedule()
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
    own = task(pipeline).sampler.schedule
    assert (own.beta_schedule, own.beta_start, own.clip_sample) == ("scaled_linear", 0.001, False)


def test_ddpm_folders_are_stepped_by_ddim(bare: Path) -> None:
    """The hub's DDPM models have a DDPMScheduler; diffusers' DDIMScheduler takes its configuration the same way."""
    DDPMScheduler(clip_sample=False, beta_schedule="squaredcos_cap_v2").save_pretrained(bare)
    expected = DDIMSchedule.from_scheduler(DDIMScheduler.from_config(DDPMScheduler.load_config(bare)))
    assert ModelFolder.open(bare).schedule() == expected


def test_a_ddpm_folder_says_what_ddim_does_with_it(bare: Path, unet: UNet2DModel, tmp_path: Path) -> None:
    """In Python by a warning; the samples are those of from_config's own loop."""
    DDPMScheduler(beta_schedule="scaled_linear").save_pretrained(bare)
    note = (
        f"{bare}: the scheduler is a DDPMScheduler; sampled by DDIM, as DDIMScheduler.from_config takes it, with the "
        "predicted image clipped to +-1 (clip_sample=True, its own)"
    )
    with pytest.warns(UserWarning, match="sampled by DDIM") as said:
        own = DiffusersModel(path=str(bare)).own_schedule
    assert [str(each.message) for each in said] == [note]
    assert own is not None
    assert own.clip_sample
    assert task(bare).notes() == ()  # the task samples by DDPM, as the folder says
    # By name, DDIM is what from_config makes of it.
    model = DiffusersModel(path=str(bare))
    built = Sampling(model=model, scheduler="DDIMScheduler", num_inference_steps=6, batch=3)
    scheduler, x = DDIMScheduler.from_config(DDPMScheduler.load_config(bare)), built.problem(0).x0
    scheduler.set_timesteps(6)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, class_labels=torch.arange(3)).sample, t, x).prev_sample
    serial = fixedpoint.solve(built.problem(0), solver="serial").z[:, -1]
    torch.testing.assert_close(serial, x, rtol=1e-3, atol=1e-4)
    config = json.loads((bare / "scheduler_config.json").read_text())
    del config["clip_sample"]
    (bare / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="clip_sample=True, diffusers' default, filled in"):
        assert DiffusersModel(path=str(bare)).own_schedule is not None
    mine = DDIMSchedule(beta_schedule="scaled_linear", clip_sample=False)
    chosen = Sampling(model=DiffusersModel(path=str(bare)), schedule=mine)
    assert chosen.notes() == ()
    assert chosen.sampler.schedule is mine


def test_a_run_says_so_on_the_terminal_and_in_its_report(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(
        "name: hub\n"
        "tasks:\n  - {name: ddim-sampling, model: {name: diffusers, path: bare}, batch: 1, timesteps: [700, 20]}\n"
        "solvers: [serial]\n"
    )
    done = CliRunner().invoke(app, ["run", "run.yaml"], env={"COLUMNS": "80"}, catch_exceptions=False)
    assert done.exit_code == 0
    said = "there is no scheduler; its noise levels are taken for"
    assert f"bare: {said}" in done.stderr
    (record,) = (tmp_path / "runs" / "hub" / "records").glob("*.json")
    assert said in record.read_text()
    assert said in (tmp_path / "runs" / "hub" / "report.html").read_text()


def test_a_folder_without_a_scheduler_says_what_is_assumed(bare: Path) -> None:
    (note,) = task(bare).notes()
    assert "there is no scheduler; its noise levels are taken for diffusers' default (linear, clip_sample=True)" in note
    assert DiffusersModel(path=str(bare)).own_schedule is None


def test_a_part_of_a_pipeline_has_the_pipelines_scheduler(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert task(pipeline / "unet").sampler.schedule == task(pipeline).sampler.schedule
    monkeypatch.chdir(pipeline / "unet")
    assert task(Path()).sampler.schedule.beta_schedule == "scaled_linear"


def index_of(path: Path, name: str, **parts: tuple[str | None, str | None]) -> None:
    named = {part: list(value) for part, value in parts.items()}
    (path / "model_index.json").write_text(json.dumps({"_class_name": name, "_diffusers_version": "0.42.1", **named}))


CLIP = ("transformers", "CLIPTextModel")
TOKENS = ("transformers", "CLIPTokenizer")
UNET, TRANSFORMER = ("diffusers", "UNet2DConditionModel"), ("diffusers", "SD3Transformer2DModel")
VAE = ("diffusers", "AutoencoderKL")


@pytest.mark.parametrize(
    ("name", "parts", "sentence"),
    [
        (
            "StableDiffusionPipeline",
            {"unet": UNET, "text_encoder": CLIP, "tokenizer": TOKENS, "vae": VAE},
            r"conditioned on texts \(text_encoder, tokenizer\)",
        ),
        (
            "StableDiffusionXLPipeline",
            {"unet": UNET, "text_encoder": CLIP, "text_encoder_2": CLIP, "tokenizer": TOKENS},
            r"conditioned on texts \(text_encoder, text_encoder_2, tokenizer\)",
        ),
        ("StableDiffusion3Pipeline", {"transformer": TRANSFORMER, "text_encoder_3": CLIP}, "conditioned on texts"),
        ("FluxPipeline", {"transformer": ("diffusers", "FluxTransformer2DModel"), "tokenizer_2": TOKENS}, "on texts"),
        ("LDMTextToImagePipeline", {"unet": UNET, "bert": ("diffusers", "LDMBertModel")}, "conditioned on texts"),
        (
            "UnCLIPImageVariationPipeline",
            {"decoder": UNET, "image_encoder": ("transformers", "CLIPVisionModel")},
            "whose decoder, image_encoder have a say in its samples",
        ),
    ],
)
def test_a_pipeline_of_more_than_a_network_is_refused_by_its_index(
    tmp_path: Path, name: str, parts: dict[str, Any], sentence: str
) -> None:
    """Before weights are looked for: there are none here. In Python and run files; the command asks for a prompt."""
    index_of(tmp_path, name, scheduler=("diffusers", "DDIMScheduler"), safety_checker=(None, None), **parts)
    for place in (tmp_path, *([tmp_path / "unet"] if "unet" in parts else [])):
        place.mkdir(exist_ok=True)
        with pytest.raises(
            OptionError, match=f"is a {name}, .*{sentence}.*(NetworkDenoiser|fixedpoint_diffusion.parallel)"
        ):
            DiffusersModel(path=str(place))
    (tmp_path / "run.yaml").write_text(
        f"tasks: [{{name: ddim-sampling, model: {{name: diffusers, path: {tmp_path}}}}}]\nsolvers: [serial]\n"
    )
    with pytest.raises(ConfigError, match=f"is a {name}"):
        load(tmp_path / "run.yaml", [])
    done = CliRunner().invoke(app, ["invert", "a.png", "--model", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 2
    assert f"is a {name}, conditioned on texts; --prompt says on which" in done.stderr


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"_class_name": "UNet2DConditionModel", "cross_attention_dim": 8}, "holds a UNet2DConditionModel, which may"),
        ({"_class_name": "SD3Transformer2DModel"}, "holds a SD3Transformer2DModel"),
        ({"_class_name": "PixArtTransformer2DModel"}, "holds a PixArtTransformer2DModel"),
        ({"_class_name": "AutoencoderKL"}, "folders are read of networks conditioned on classes or nothing"),
        ({"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"}, "holds a Transformer2DModel"),
        ({"class_embed_type": "timestep", "num_class_embeds": None}, r"embeds numbers in place of classes \(timestep"),
        ({"in_channels": 6, "out_channels": 3}, "is given 6 channels and predicts 3"),
    ],
)
def test_a_network_of_more_than_classes_is_refused_by_its_configuration(
    bare: Path, config: dict[str, Any], sentence: str
) -> None:
    told = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({**told, **config}))
    with pytest.raises(OptionError, match=sentence):
        DiffusersModel(path=str(bare))


def test_a_dit_of_before_its_name(bare: Path) -> None:
    """As the public DiT folders are: a Transformer2DModel by name, whose norm says what it is."""
    told = {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero", "num_embeds_ada_norm": 5}
    (bare / "config.json").write_text(json.dumps({**told, "in_channels": 4, "out_channels": 8, "sample_size": 8}))
    model = DiffusersModel(path=str(bare))
    assert (model.folder.classes, model.unconditional_class) == (5, 5)


def test_latents_are_no_pictures(pipeline: Path) -> None:
    assert DiffusersModel(path=str(pipeline)).is_image
    index_of(pipeline, "LDMPipeline", unet=("diffusers", "UNet2DModel"), vqvae=("diffusers", "VQModel"))
    model = DiffusersModel(path=str(pipeline))
    assert (model.is_image, model.folder.latent) == (False, "vqvae")


def test_an_index_that_names_a_scheduler_that_is_not_there(pipeline: Path) -> None:
    shutil.rmtree(pipeline / "scheduler")
    index_of(pipeline, "PNDMPipeline", unet=("diffusers", "UNet2DModel"), scheduler=("diffusers", "PNDMScheduler"))
    with pytest.raises(OptionError, match=r"is sampled with a PNDMScheduler, and has no scheduler_config.json"):
        DiffusersModel(path=str(pipeline))


@pytest.mark.parametrize("named", ["PNDMScheduler", "DDPMScheduler"])
def test_an_index_that_names_another_scheduler_than_there_is(pipeline: Path, named: str) -> None:
    index_of(pipeline, "DDPMPipeline", unet=("diffusers", "UNet2DModel"), scheduler=("diffusers", named))
    (note,) = ModelFolder.open(pipeline).notes
    assert f"model_index.json names a {named}, its scheduler_config.json a DDIMScheduler, which is what is" in note


def test_a_schedule_of_ones_own_must_be_that_of_the_training(pipeline: Path) -> None:
    model = DiffusersModel(path=str(pipeline))
    spaced = DDIMSchedule(
        beta_schedule="scaled_linear", beta_start=0.001, clip_sample=False, timestep_spacing="trailing"
    )
    assert Sampling(model=model, schedule=spaced).sampler.schedule is spaced
    with pytest.raises(OptionError, match="noise levels the model was trained with"):
        Sampling(model=model, schedule=DDIMSchedule())
    with pytest.raises(OptionError, match="own prediction_type 'epsilon', got 'sample'"):
        Sampling(model=model, schedule=DDIMSchedule(prediction_type="sample"))


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
    torch.manual_seed(1)
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


def strange_schedule(path: Path) -> None:
    (path / "scheduler_config.json").write_text(json.dumps({"beta_schedule": "sigmoid"}))


def unnamed_schedule(path: Path) -> None:
    (path / "scheduler_config.json").write_text(json.dumps({"beta_schedule": "linear"}))


def other_schedule(path: Path) -> None:
    (path / "scheduler_config.json").write_text(json.dumps({"_class_name": "HeunScheduler"}))


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
        (strange_schedule, "beta_schedule must be one of 'linear'"),
        (unnamed_schedule, "does not name its class"),
        (other_schedule, 'is no scheduler of diffusers: "HeunScheduler"; did you mean HeunDiscreteScheduler'),
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
        ({"guidance_scale": 2.0}, "guidance_scale other than 1 requires no_class"),
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


@pytest.mark.parametrize("spoilt", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_folder_that_makes_no_network_is_a_sentence(bare: Path, spoilt: str) -> None:
    if spoilt == "config.json":
        config = json.loads((bare / spoilt).read_text())
        (bare / spoilt).write_text(json.dumps({**config, "block_out_channels": "xy"}))
    else:
        (bare / spoilt).write_bytes((bare / spoilt).read_bytes()[:100])
    with pytest.raises(FolderError, match=r"cannot be loaded: TypeError: |cannot be read as safetensors: "):
        ModelFolder.open(bare).load(torch.float32, torch.device("cpu"))


def test_a_run_file_points_at_the_path(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "tasks:\n  - name: ddim-sampling\n    model: {name: diffusers, path: nowhere}\nsolvers: [serial]\n"
    )
    with pytest.raises(ConfigError, match=r"run.yaml:3:\d+: tasks\[0\].model.path: .*there is no folder nowhere"):
        load(tmp_path / "run.yaml", [])
