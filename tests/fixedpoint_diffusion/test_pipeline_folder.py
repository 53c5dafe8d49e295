"""Folders of pipelines: what is loaded, and what is refused before any weights are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_pipelines import arguments, pipeline

from fixedpoint_diffusion.fashion_mnist.pipeline import FashionMNISTPipeline
from fixedpoint_diffusion.pipelines.folder import PipelineFolderError, load_pipeline
from fixedpoint_diffusion.schedules.by_name import SchedulerChoice, SchedulerError

# diffusers' own, about its use of numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pipeline("sd1", folder=tmp_path / "sd1")
    return tmp_path / "sd1"


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "flux", "dit", "ddpm"])
def test_a_folder_is_what_diffusers_loads(tmp_path: Path, name: str) -> None:
    theirs = pipeline(name, folder=tmp_path)
    ours = load_pipeline(tmp_path)
    assert type(ours) is type(theirs)
    ours.set_progress_bar_config(disable=True)
    options = {**arguments(name), "num_inference_steps": 2, "return_dict": False}
    one, two = (
        torch.as_tensor(pipe(**options, generator=torch.Generator().manual_seed(1))[0]) for pipe in (ours, theirs)
    )
    assert torch.equal(one, two)
    assert not any(part.training for part in vars(ours).values() if isinstance(part, torch.nn.Module))


def test_dtype_and_scheduler(folder: Path) -> None:
    pipe = load_pipeline(folder, torch.float16, SchedulerChoice({"name": "EulerDiscreteScheduler"}))
    assert pipe.unet.dtype == pipe.vae.dtype == torch.float16
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    own = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert pipe.scheduler.config.beta_end == own["beta_end"]
    with pytest.raises(SchedulerError, match="did you mean EulerDiscreteScheduler"):
        load_pipeline(folder, scheduler="EulerDiscrete")


def test_weights_of_one_precision_are_found_by_their_names(folder: Path) -> None:
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        (folder / part / f"{stem}.safetensors").rename(folder / part / f"{stem}.fp16.safetensors")
    assert load_pipeline(folder).unet.dtype == torch.float32


def test_the_bundled_model_as_a_folder(tmp_path: Path) -> None:
    FashionMNISTPipeline.bundled().save_pretrained(tmp_path)
    assert isinstance(load_pipeline(tmp_path), FashionMNISTPipeline)


def index(folder: Path, **changed: object) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


def pickled(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"never read")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no folder .*sd1; a pipeline is a folder as"),
        (lambda folder: (folder / "model_index.json").unlink(), "has no model_index.json, so it is no pipeline$"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "model_index.json").write_text("[]"), "must be a JSON object, got list"),
        (lambda folder: index(folder, _class_name="MyPipeline"), "MyPipeline, which is no pipeline of diffusers"),
        (lambda folder: index(folder, _class_name=["mine", "MyPipeline"]), "does not name the pipeline's class"),
        (lambda folder: index(folder, unet=["mine", "MyUNet"]), "has a unet of the class MyUNet in mine; parts are"),
        (lambda folder: index(folder, unet=["diffusers"]), "unet must be a library and a class, got"),
        (lambda folder: shutil.rmtree(folder / "unet"), r"names a unet \(UNet2DConditionModel\), and has no folder"),
        (pickled, "unet has its weights in diffusion_pytorch_model.bin only, which would be unpickled"),
        (lambda folder: (folder / "text_encoder" / "model.safetensors").unlink(), "text_encoder has no weights in"),
        (lambda folder: (folder / "unet" / "config.json").unlink(), "there is no file .*unet/config.json"),
    ],
)
def test_what_is_no_pipeline_is_refused(folder: Path, spoil: Callable[[Path], object], sentence: str) -> None:
    spoil(folder)
    with pytest.raises(PipelineFolderError, match=sentence):
        load_pipeline(folder)


def test_a_part_and_a_checkpoint_say_what_they_are(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineFolderError, match=r"it has a config.json, as the folder of a single network has"):
        load_pipeline(folder / "unet")
    with pytest.raises(PipelineFolderError, match=r"; .*sd1 is one$"):
        load_pipeline(folder / "tokenizer")
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "v1-5.safetensors").touch()
    with pytest.raises(PipelineFolderError, match=r"v1-5.safetensors alone is a checkpoint"):
        load_pipeline(tmp_path / "single")
