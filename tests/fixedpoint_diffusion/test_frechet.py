"""``frechet`` of the task ``sampling``: in whose features, of how many samples, against which images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from safetensors.torch import save_file

import fixedpoint
from fixedpoint.core.options import OptionError
from fixedpoint.registry import registry
from fixedpoint.tasks.task import Context
from fixedpoint_diffusion import held_out_images, load_classifier
from fixedpoint_diffusion.command.pictures import as_png, drawn
from fixedpoint_diffusion.models.choices import FashionMNISTModel, MixtureModel, ShapesModel
from fixedpoint_diffusion.models.frechet import FrechetDistance
from fixedpoint_diffusion.pipelines.model import PipelineModel
from fixedpoint_diffusion.task import Sampling

NETWORK = """
import torch


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(16 * 16, 3)

    def features(self, images):
        return self.layer(images.flatten(1)).tanh()


made = Network
nothing = 5


def wrong():
    return torch.nn.Linear(2, 2)


def flat():
    network = Network()
    network.features = lambda images: images.sum()
    return network
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(8):
        pixels = generator.integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "list.txt").write_text("no picture")
    return tmp_path


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """By scipy's matrix square root, as the FID is computed by others."""
    one, other = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = scipy.linalg.sqrtm(one @ other).real
    return float(np.square(first.mean(0) - second.mean(0)).sum() + np.trace(one + other - 2 * root))


def once(key: Any, make: Callable[[], Any]) -> Any:
    return make()


def measured(task: Sampling, seed: int = 0) -> dict[str, float]:
    context = Context(solver=fixedpoint.Serial(), termination=fixedpoint.Termination(), seed=seed)
    return task.run(context).metrics


def test_the_distance_is_that_of_the_features_of_the_network_with_these_weights(here: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = {"layer.weight": torch.randn(3, 256, generator=generator) / 16, "layer.bias": torch.zeros(3)}
    save_file(weights, "net.safetensors")
    measure = FrechetDistance(images="images", features="net.py:made", weights="net.safetensors")
    samples = torch.rand(40, 1, 16, 16, generator=generator) * 2 - 1
    images = np.stack([np.asarray(Image.open(f"images/{n}.png")) for n in range(8)]).reshape(8, -1) / 127.5 - 1
    features = [
        np.tanh(x @ weights["layer.weight"].double().numpy().T) for x in (samples.flatten(1).double().numpy(), images)
    ]
    assert measure.distance(samples, once) == pytest.approx(distance(*features), rel=1e-3)


def test_the_embedded_default_judges_the_bundled_model(here: Path) -> None:
    """Against images of bags, samples of bags are nearer than samples of dresses, by the model and by its pipeline."""
    images, labels = held_out_images()
    (here / "bags").mkdir()
    for number, image in enumerate(images[labels == 8][:40]):
        (here / "bags" / f"{number}.png").write_bytes(as_png(drawn(image)))
    measure = FrechetDistance(images="bags")
    options: dict[str, Any] = {"num_inference_steps": 8, "batch": 12, "frechet": measure}
    bags, dresses = (
        measured(Sampling(model=FashionMNISTModel(classes=(label,)), **options))["frechet_distance"] for label in (8, 3)
    )
    assert 0 < bags < dresses / 2
    piped = measured(Sampling(model=PipelineModel(prompt="bag"), **options))["frechet_distance"]
    assert 0 < piped < dresses / 2
    exact = measure.distance(images[labels == 8][:40], once)
    assert exact == pytest.approx(0.0, abs=1e-6)
    assert load_classifier().features(images[:1]).shape == (1, 64)


def test_further_batches_are_sampled_and_only_for_the_distance(here: Path) -> None:
    measure = FrechetDistance(images="images", features="net.py:made", samples=11)
    task = Sampling(model=ShapesModel(), num_inference_steps=5, batch=4, frechet=measure)
    torch.manual_seed(0)
    context = Context(solver=fixedpoint.Serial(), termination=fixedpoint.Termination(), seed=0)
    result = task.run(context)
    assert len(result.images.pixels) == 4
    torch.manual_seed(0)
    whole = Sampling(model=ShapesModel(), num_inference_steps=5, batch=11)
    samples = torch.from_numpy(
        whole.run(Context(solver=fixedpoint.Serial(), termination=fixedpoint.Termination(), seed=0)).images.pixels
    )
    wanted = measure.distance(samples.unsqueeze(1).clamp(-1, 1), context.once)
    assert result.metrics["frechet_distance"] == pytest.approx(wanted, rel=1e-5)
    (note,) = task.notes()
    assert note == (
        "frechet_distance: in the features of net.py:made, 11 samples against 8 images of images; it is no FID"
    )


def test_images_of_another_size_are_refused_or_resized(here: Path) -> None:
    samples = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"images/0.png has 16 x 16 pixels, the samples have 8 x 8; resize: true"):
        FrechetDistance(images="images", features="net.py:made").distance(samples, once)
    larger = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for file in Path("images").glob("*.png"):
        Image.open(file).resize((32, 32)).save(file)
    measure = FrechetDistance(images="images", features="net.py:made", resize=True)
    torch.manual_seed(0)
    assert measure.distance(larger, once) > 0


def test_images_weights_and_code_are_in_the_digest(here: Path) -> None:
    first = FrechetDistance(images="images", features="net.py:made").sha256
    (here / "net.py").write_text(NETWORK + "\n")
    second = FrechetDistance(images="images", features="net.py:made").sha256
    (here / "images" / "0.png").unlink()
    third = FrechetDistance(images="images", features="net.py:made").sha256
    assert len({first, second, third}) == 3
    with pytest.raises(OptionError, match="sha256 says other images, weights or code"):
        FrechetDistance(images="images", features="net.py:made", sha256=first)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"images": "nowhere"}, r"images cannot be used: there is no folder nowhere"),
        ({"images": "$NOWHERE"}, r"images cannot be used: \$NOWHERE names the variable NOWHERE"),
        ({"images": "."}, r"images must be a folder of pictures \(\.png, "),
        ({"features": "inception"}, r"features must be fashion-mnist or module:function, got 'inception'"),
        ({"features": "gone.py:made"}, r"features cannot be imported: gone.py:made: FileNotFoundError"),
        ({"features": "net.py:mad"}, r"features cannot be imported: net.py:mad: AttributeError"),
        ({"features": "net.py:nothing"}, r"features must name a function in a file, net.py:nothing is none"),
        ({"features": "net.py:made", "weights": "w.safetensors"}, r"weights must be a file .* no file w.safetensors"),
        ({"weights": "net.py"}, r"weights must be null: fashion-mnist has its own"),
        ({"samples": 1}, r"samples must be at least 2"),
    ],
)
def test_mistakes_are_sentences_before_any_work(here: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        FrechetDistance(**{"images": "images", **options})


@pytest.mark.parametrize(
    ("features", "sentence"), [("wrong", "must return a torch"), ("flat", r"must have shape \(8, F\), got \(\)")]
)
def test_a_network_that_is_none_is_a_sentence(here: Path, features: str, sentence: str) -> None:
    measure = FrechetDistance(images="images", features=f"net.py:{features}")
    with pytest.raises(ValueError, match=sentence):
        measure.distance(torch.zeros(3, 1, 16, 16), once)


def test_points_have_no_pictures(here: Path) -> None:
    spec = {"name": "sampling", "model": "gaussian-mixture", "frechet": {"images": "images"}}
    with pytest.raises(OptionError, match="frechet must be null: the samples of this model are no pictures"):
        registry.create("task", spec)
    assert not MixtureModel().is_image
