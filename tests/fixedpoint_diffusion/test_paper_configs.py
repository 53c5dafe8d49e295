"""The run files of the paper's data sets, on networks of the same architecture, scaled down and with random weights."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub import constants
from jsonschema import Draft202012Validator
from PIL import Image
from typer.testing import CliRunner

from fixedpoint.cli.main import app
from fixedpoint.config.document import parse
from fixedpoint.config.schema import run_file_schema

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# By the run file: the model, the steps of the paper, and the parameters of the published network in millions.
CONFIGS = {
    "cifar10": ("ddpm-cifar10-32", 1000, 35.7),
    "celeba": ("ddpm-celebahq-256", 500, 113.7),
    "lsun-bedroom": ("ddpm-bedroom-256", 25, 113.7),
    "lsun-church": ("ddpm-church-256", 25, 113.7),
}
FEATURES = """
import torch


class Network(torch.nn.Module):
    def features(self, images):
        return torch.stack([images.mean(dim=(1, 2, 3)), images.var(dim=(1, 2, 3))], dim=1)
"""


def architecture(small: bool, widths: tuple[int, ...], attention: int) -> dict[str, Any]:
    """The configuration of the published networks: blocks of one kind, but for one level with attention."""
    levels = len(widths)
    down = ["AttnDownBlock2D" if level == attention else "DownBlock2D" for level in range(levels)]
    up = [block.replace("Down", "Up") for block in reversed(down)]
    size = 2**levels if small else {4: 32, 6: 256}[levels]
    return {
        "sample_size": size,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 1 if small else 2,
        "block_out_channels": widths,
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "downsample_padding": 0,
        "norm_eps": 1e-6,
        "act_fn": "silu",
        "attention_head_dim": None,
        "norm_num_groups": 4 if small else 32,
        "mid_block_scale_factor": 1,
    }


def published(name: str, small: bool) -> dict[str, Any]:
    if name == "cifar10":
        return architecture(small, (8, 16, 16, 16) if small else (128, 256, 256, 256), 1)
    return architecture(small, (8, 8, 16, 16, 32, 32) if small else (128, 128, 256, 256, 512, 512), 4)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face, and no way to the network."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("somebody asked the network")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def kept(cache: Path, name: str) -> Path:
    """The model in the cache, laid out as on the hub: network, scheduler and index beside one another."""
    repository = cache / f"models--google--{CONFIGS[name][0]}"
    folder = repository / "snapshots" / COMMIT
    torch.manual_seed(0)
    UNet2DModel(**published(name, small=True)).save_pretrained(folder)
    DDPMScheduler(clip_sample=True).save_pretrained(folder)
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": diffusers.__version__}
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps({**index, **parts}))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return folder


def run(*arguments: str, status: int = 0, command: str = "run") -> Any:
    done = CliRunner().invoke(app, [command, *arguments], env={"COLUMNS": "80"}, catch_exceptions=False)
    assert done.exit_code == status, done.output
    return done


@pytest.mark.parametrize("name", CONFIGS)
def test_the_run_file_does_what_it_says(name: str, cache: Path) -> None:
    """Everything is as in the file, but for the number of steps and what the user adds: images and features."""
    folder = kept(cache, name)
    Path("net.py").write_text(FEATURES)
    Path("images").mkdir()
    size = json.loads((folder / "config.json").read_text())["sample_size"]
    generator = np.random.default_rng(0)
    for number in range(3):
        pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"images/{number}.png")
    measure = "tasks[0].frechet={images: images, features: net.py:Network, samples: 3}"
    file = str(ROOT / "configs" / f"{name}.yaml")
    done = run(file, "tasks[0].num_inference_steps=3", measure, "-o", "out", "--json")
    resolved = parse(Path("out/config.yaml").read_text(), "config.yaml").data
    assert list(Draft202012Validator(run_file_schema()).iter_errors(resolved)) == []
    rows = json.loads(done.stdout)["cells"]
    assert len(rows) == 3
    for record in (json.loads(path.read_text()) for path in Path("out/records").glob("*.json")):
        assert record["status"] == "ok"
        assert record["config"]["task"]["model"]["path"] == f"google/{CONFIGS[name][0]}"
        assert record["metrics"]["relative_error"] < 1e-3
        assert record["metrics"]["frechet_distance"] > 0
        assert set(record["rows"]) == {"converged"}
    assert "frechet_distance: in the features of net.py:Network, 3 samples against 3 images" in done.stderr
    assert "FID" not in Path("out/table.md").read_text()
    assert list(Path("out").glob("samples-*.png"))


@pytest.mark.parametrize("name", CONFIGS)
def test_where_nothing_is_there_it_says_how_to_get_it(name: str, cache: Path) -> None:
    file = str(ROOT / "configs" / f"{name}.yaml")
    done = run(file, status=2)
    model = f"google/{CONFIGS[name][0]}"
    (line,) = done.stderr.splitlines()
    assert re_place(line) == f"tasks[0].model.path: cannot be used: there is no folder {model}, and no model of this"
    assert line.endswith(f"nothing is downloaded here: hf download {model}")
    assert f"hf download {model}" in Path(file).read_text()
    folder = kept(cache, name)
    done = run(file, "tasks[0].num_inference_steps=2", f"tasks[0].model.path={folder}", "solvers=[serial]", "-o", "out")
    assert "wrote out/report.html" in done.stdout


def re_place(line: str) -> str:
    return line.partition(": ")[2].partition(" name in the cache")[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_file_has_the_papers_steps_and_what_it_says_of_the_network_is_so(name: str) -> None:
    text = (ROOT / "configs" / f"{name}.yaml").read_text()
    _, steps, millions = CONFIGS[name]
    assert f"num_inference_steps: {steps}\n" in text
    with torch.device("meta"):
        network = UNet2DModel(**published(name, small=False))
    count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.1)
    assert f"{round(count)} million" in " ".join(text.replace("#", "").split())


def test_the_same_folder_is_a_pipeline_for_the_command(cache: Path) -> None:
    """Its parts lie beside one another, as diffusers reads them, too."""
    folder = kept(cache, "cifar10")
    run("google/ddpm-cifar10-32", "--steps", "3", "--solver", "block-secant", command="sample")
    report = json.loads(Path("runs/sample/report.json").read_text())
    assert (report["pipeline"], report["scheduler"], report["ok"]) == ("DDPMPipeline", "DDPMScheduler", True)
    own = DDPMPipeline.from_pretrained(folder)(
        generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np"
    )
    picture = np.asarray(Image.open("runs/sample/images/seed-0.png")).astype(int)
    assert np.abs(picture - (255 * own.images[0]).round()).max() <= 1
    run("google/ddpm-cifar10-32", "--steps", "3", "--scheduler", "DDIMScheduler", "-o", "ddim", command="sample")
    assert json.loads(Path("ddim/report.json").read_text())["scheduler"] == {"name": "DDIMScheduler"}
    with (folder / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        last = file.read(1)[0]
        file.seek(-4, 2)
        file.write(bytes([last ^ 1]))  # a bit of the last weight
    run("google/ddpm-cifar10-32", "--steps", "3", "--solver", "block-secant", command="sample")
    assert json.loads(Path("runs/sample/report.json").read_text())["reused"] == 0  # other weights
