"""The recipe of the bundled model, on a few images: it resumes to the bit, and writes what diffusers loads."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from safetensors.torch import load_file

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "fashion_mnist"
Run = Callable[..., subprocess.CompletedProcess[str]]


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def stripes(folder: Path, split: str, count: int) -> None:
    """Stripes of as many pixels as the class says."""
    generator = np.random.default_rng(count)
    labels = np.arange(count) % 10
    images = np.where(np.arange(28)[None, :, None] < 2 * labels[:, None, None] + 4, 200, 0)
    write_idx(folder / f"{split}-images-idx3-ubyte.gz", images + generator.integers(0, 40, (count, 28, 28)))
    write_idx(folder / f"{split}-labels-idx1-ubyte.gz", labels)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    stripes(folder, "train", 96)
    stripes(folder, "t10k", 1200)
    return folder


@pytest.fixture
def run(python: str) -> Run:
    def command(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [python, str(RECIPES / script), *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)

    return command


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on_to_the_same_model(run: Run, data: Path, tmp_path: Path) -> None:
    stripes(data, "t10k", 40)  # all of them are looked at after every epoch
    small = ("--epochs", "2", "--batch", "32", "--layers", "1")
    whole = run("train_denoiser.py", data, tmp_path / "whole", *small)
    assert whole.returncode == 0, whole.stderr
    stopped = run("train_denoiser.py", data, tmp_path / "parts", *small, "--limit-seconds", "0")
    assert "stopped after epoch 1 of 2" in stopped.stdout
    assert not (tmp_path / "parts" / "model").exists()
    resumed = run("train_denoiser.py", data, tmp_path / "parts", *small)
    assert "going on from epoch 1" in resumed.stdout

    models = [tmp_path / name / "model" for name in ("whole", "parts")]
    one, two = (load_file(path / "diffusion_pytorch_model.safetensors") for path in models)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert len((tmp_path / "parts" / "log.jsonl").read_text().splitlines()) == 2

    model = DiTTransformer2DModel.from_pretrained(models[0], low_cpu_mem_usage=False).eval()
    assert DDIMScheduler.from_pretrained(models[0]).config.prediction_type == "v_prediction"
    with torch.no_grad():
        value = model(torch.zeros(2, 1, 32, 32), torch.tensor([0, 500]), class_labels=torch.tensor([3, 10])).sample
    assert value.shape == (2, 1, 32, 32)

    other = run("train_denoiser.py", data, tmp_path / "parts", *small, "--seed", "1")
    assert other.returncode == 2
    assert "belongs to another recipe" in other.stderr


def test_the_classifier_learns(run: Run, data: Path, tmp_path: Path) -> None:
    result = run("train_classifier.py", data, tmp_path / "classifier.safetensors", "--epochs", "12", "--batch", "16")
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("test accuracy")]
    assert float(line.split()[-1]) > 0.5  # 0.1 by chance
    assert load_file(tmp_path / "classifier.safetensors")["reference.mean"].shape == (64,)


def test_the_bundled_images_are_the_first_of_every_class(run: Run, data: Path, tmp_path: Path) -> None:
    assert run("bundle_images.py", data, tmp_path / "images.npz").returncode == 0
    with np.load(tmp_path / "images.npz") as stored:
        assert stored["images"].shape == (1000, 28, 28)
        assert stored["labels"].tolist() == list(range(10)) * 100


def test_missing_data_is_a_sentence(run: Run, tmp_path: Path) -> None:
    result = run("bundle_images.py", tmp_path, tmp_path / "images.npz")
    assert result.returncode == 1
    assert "has no t10k-images-idx3-ubyte.gz. On Debian: apt-get download dataset-fashion-mnist" in result.stderr
