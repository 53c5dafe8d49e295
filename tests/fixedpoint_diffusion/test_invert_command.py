"""``fixedpoint invert``: what it writes is what it says, a bad file is a sentence, what is done stays."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiTTransformer2DModel,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SCMScheduler,
    UNet2DModel,
)
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_pipelines import pipeline
from typer.testing import CliRunner, Result

import fixedpoint
from fixedpoint.cli.main import app
from fixedpoint_diffusion import DDIMSchedule, ddim_problem, quadratic_timesteps, sampling_problem
from fixedpoint_diffusion.command import console, model, work
from fixedpoint_diffusion.command.model import choose
from fixedpoint_diffusion.command.pictures import as_png, drawn
from fixedpoint_diffusion.fashion_mnist import DENOISER
from fixedpoint_diffusion.fashion_mnist.images import held_out_images
from fixedpoint_diffusion.fashion_mnist.pipeline import FashionMNISTPipeline
from fixedpoint_diffusion.inversion.invert import InversionProgress, slerp
from fixedpoint_diffusion.models.choices import DiffusersModel, FashionMNISTModel

# Some schedulers compute with numpy as it was.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

STEPS = 5
QUICK = ("--steps", str(STEPS), "--tolerance", "0.05")
SHIRT, TROUSER = (held_out_images()[0][i] for i in (0, 1))


def invoke(*arguments: object, status: int = 0, columns: int = 80) -> Result:
    done = CliRunner().invoke(
        app,
        ["invert", *map(str, arguments)],
        env={"COLUMNS": str(columns)},
        catch_exceptions=False,
        terminal_width=columns,
    )
    assert done.exit_code == status, done.output
    return done


def stored_in(folder: Path | str) -> dict[str, torch.Tensor]:
    """The tensors of all batches, one behind another."""
    batches = [load_file(file) for file in sorted(Path(folder, "latents").iterdir())]
    return {name: torch.cat([batch[name] for batch in batches if len(batch["latents"])]) for name in batches[0]}


def told_in(folder: Path | str, name: str) -> list[Any]:
    """Something that the metadata of every batch tells."""
    told: list[Any] = []
    for path in sorted(Path(folder, "latents").iterdir()):
        with safe_open(path, "pt") as file:
            told += json.loads(file.metadata()[name])
    return told


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lay_out(folder: Path) -> None:
    """Two images of the bundled model's, and four files with something about them."""
    photos = folder / "photos"
    photos.mkdir()
    (photos / "a-shirt.png").write_bytes(as_png(drawn(SHIRT)))
    (photos / "b-trouser.png").write_bytes(as_png(drawn(TROUSER)))
    (photos / "corrupt.png").write_bytes(as_png(drawn(SHIRT))[:200])
    (photos / "small.png").write_bytes(as_png(drawn(TROUSER[:, 2:-2, 2:-2])))
    alpha = np.dstack([np.repeat(drawn(SHIRT)[..., None], 3, axis=2), np.where(drawn(SHIRT) > 0, 255, 0)])
    Image.fromarray(alpha.astype(np.uint8)).save(photos / "transparent.png")
    (photos / "list.txt").write_text("")


class Shown:
    """A folder of images, inverted once for all that look at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        lay_out(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            extra = ("--edit-class", "dress", "--interpolate", 3, "--batch", 2, "-o", "out")
            self.done = invoke("photos", *QUICK, *extra, "--json", status=1)
        self.told: dict[str, Any] = json.loads(self.done.stdout)
        self.stored = stored_in(folder / "out")

    def pixels(self, kind: str) -> list[np.ndarray]:
        return [np.asarray(Image.open(path)) for path in sorted((self.folder / "out" / kind).glob("*.png"))]

    def sampled(self, latents: torch.Tensor, *classes: int) -> list[np.ndarray]:
        """What the chain makes of latents, step by step."""
        model = FashionMNISTModel(classes=classes)
        denoiser = model.denoiser(model.own_schedule, len(latents))
        problem = ddim_problem(denoiser, model.own_schedule, latents, num_inference_steps=STEPS)
        return [drawn(image) for image in fixedpoint.solve(problem, solver="serial").z[:, -1]]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return Shown(tmp_path_factory.mktemp("shown"))


def assert_near(pictures: list[np.ndarray], others: list[np.ndarray]) -> None:
    """Equal to a grey level: the joint round trip is computed to its tolerance."""
    assert len(pictures) == len(others) > 0
    for one, other in zip(pictures, others, strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


def test_every_bad_file_has_its_line_and_the_rest_is_done(shown: Shown) -> None:
    lines = shown.done.stderr.splitlines()
    assert "photos: 1 file of other kinds passed over" in lines
    assert "photos/corrupt.png: cannot be read: image file is truncated" in lines
    assert (
        "photos/small.png: has 28 x 28 pixels, the model's images 32 x 32; "
        "--resize resizes it, --pad sets it on the background"
    ) in lines
    assert "photos/transparent.png: its transparent parts are laid over black (--background)" in lines
    assert [row["name"].split("/")[1] for row in shown.told["images"]] == [
        *("a-shirt.png", "b-trouser.png", "corrupt.png", "small.png", "transparent.png")
    ]
    assert [row["status"] for row in shown.told["images"]] == [
        *("inverted", "inverted", "skipped", "skipped", "inverted")
    ]
    assert [row["latent"] for row in shown.told["images"]] == [0, 1, None, None, 2]
    assert (shown.told["ok"], shown.told["interrupted"]) == (False, False)


def test_the_report_is_what_was_printed_and_names_the_files(shown: Shown) -> None:
    assert json.loads((shown.folder / "out" / "report.json").read_text()) == shown.told
    written = {str(path.relative_to(shown.folder)) for path in (shown.folder / "out").rglob("*") if path.is_file()}
    assert set(shown.told["files"]) == written
    first = shown.told["images"][0]
    assert (first["class"], first["class_name"], first["class_guessed"]) == (0, "T-shirt/top", True)
    assert first["round_trip"] <= 0.05
    assert first["evaluations"] >= STEPS
    assert first["rounds"] >= 1
    assert 0 <= first["worst_step"] < STEPS
    assert (first["reconstruction"], first["edit"]) == (
        "out/reconstructions/0001-a-shirt.png",
        "out/edits/0001-a-shirt.png",
    )


def test_latents_sampled_step_by_step_are_the_reconstructions(shown: Shown) -> None:
    assert shown.stored["latents"].shape == (3, 1, 32, 32)
    assert shown.stored["classes"].tolist() == [0, 1, 0]
    made = shown.pixels("reconstructions")
    assert_near(made, shown.sampled(shown.stored["latents"], 0, 1, 0))
    for picture, row, image in zip(made, (0, 1, 4), (SHIRT, TROUSER, SHIRT), strict=True):
        off = np.sqrt(np.mean(((picture / 127.5 - 1) - image[0].numpy()) ** 2))
        assert off == pytest.approx(shown.told["images"][row]["round_trip"], abs=0.5 / 127.5)


def test_diffusers_own_loop_makes_the_image_of_the_stored_latents(shown: Shown) -> None:
    network = DiTTransformer2DModel.from_pretrained(DENOISER, low_cpu_mem_usage=False).eval()
    scheduler = DDIMScheduler.from_pretrained(DENOISER)
    scheduler.set_timesteps(STEPS)
    x = shown.stored["latents"][1:2]
    with torch.no_grad():
        for t in scheduler.timesteps:
            value = network(x, timestep=t.expand(1), class_labels=torch.tensor([1])).sample
            x = scheduler.step(value[:, :1], t, x).prev_sample
    assert_near([drawn(x[0])], shown.pixels("reconstructions")[1:2])
    assert float((x - TROUSER).square().mean().sqrt()) <= 0.05


def test_the_metadata_says_what_the_latents_are_of(shown: Shown) -> None:
    with safe_open(shown.folder / "out" / "latents" / "000001.safetensors", "pt") as file:
        told = {key: json.loads(value) for key, value in file.metadata().items()}
    assert told_in(shown.folder / "out", "names") == [
        f"photos/{name}.png" for name in ("a-shirt", "b-trouser", "transparent")
    ]
    assert (told["model"], told["num_inference_steps"], told["guidance_scale"]) == ("fashion-mnist", STEPS, 1.0)
    assert told["sha256"] == FashionMNISTModel().sha256
    assert told["schedule"]["prediction_type"] == FashionMNISTModel().own_schedule.prediction_type


def test_edits_are_the_latents_sampled_with_the_other_class(shown: Shown) -> None:
    assert_near(shown.pixels("edits"), shown.sampled(shown.stored["latents"], 3, 3, 3))


def test_what_is_between_two_is_sampled_along_the_great_circle(shown: Shown) -> None:
    latents = shown.stored["latents"]
    mixed = torch.cat([slerp(latents[:1], latents[1:2], share) for share in (0.25, 0.5, 0.75)])
    between = shown.pixels("interpolations")
    assert len(between) == 6
    assert_near(between[:3], shown.sampled(mixed, 0, 0, 1))


def test_sheets_show_every_kind(shown: Shown) -> None:
    tile = 2 + 64
    for kind, rows, columns in (("reconstructions", 2, 3), ("edits", 2, 3), ("interpolations", 2, 5)):
        with Image.open(shown.folder / "out" / f"{kind}.png") as sheet:
            assert sheet.size == (2 + columns * tile, 2 + rows * tile), kind
            corner = np.asarray(sheet)[2 + tile : 2 + tile + 64 : 2, 2:66:2]
    assert (corner == shown.pixels("reconstructions")[1]).all()


def test_a_file_of_tensors_with_its_classes_and_another_guidance(here: Path) -> None:
    np.save("two.npy", torch.stack([SHIRT, TROUSER]).numpy())
    done = invoke("two.npy", *QUICK, "--class", "T-SHIRT/TOP,1", "--edit-guidance", "2", "--batch", 1)
    assert "guessed" not in done.output
    assert re.search(r"^two.npy\[1\] +trouser +inverted +\d\.\de-\d\d", done.stdout, flags=re.MULTILINE)
    assert "2 of 2 images inverted within rms 0.05\n" in done.stdout
    for line in ("wrote 2 pictures to runs/invert/edits", "wrote 2 files of latents to runs/invert/latents"):
        assert f"{line}\n" in done.stdout
    assert done.stderr.splitlines()[0].startswith("[1/2] 1 of 1 inverted, ")
    stored = stored_in("runs/invert")
    model = FashionMNISTModel(classes=(0, 1), guidance_scale=2.0)
    problem = ddim_problem(
        model.denoiser(model.own_schedule, 2), model.own_schedule, stored["latents"], num_inference_steps=STEPS
    )
    edits = fixedpoint.solve(problem, solver="serial").z[:, -1]
    found = [np.asarray(Image.open(path)) for path in sorted(Path("runs/invert/edits").glob("*.png"))]
    assert_near(found, [drawn(image) for image in edits])


def test_quiet_says_only_what_went_wrong_and_an_image_that_is_missed_is_that(here: Path) -> None:
    lay_out(here)
    silent = invoke("photos/a-shirt.png", *QUICK, "--quiet")
    assert silent.output == ""
    Path("runs/invert/mine.txt").write_text("kept")
    missed = invoke("photos/a-shirt.png", "--steps", 2, "--tolerance", 1e-9, "-q", status=1)
    assert missed.stdout == ""
    assert re.fullmatch(r"photos/a-shirt.png: missed by rms .*\n", missed.stderr)
    assert Path("runs/invert/mine.txt").read_text() == "kept"


def folder_of(network: UNet2DModel, path: Path, **options: object) -> Path:
    DDIMPipeline(network, DDIMScheduler(**options)).save_pretrained(path)
    return path


def small_unet(channels: int) -> UNet2DModel:
    """A network of random weights that answers gently, so that its chain has an inverse."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()
    with torch.no_grad():
        network.conv_out.weight.mul_(0.005)
    return network


def test_a_folder_without_classes_whose_scheduler_clips(here: Path) -> None:
    folder_of(small_unet(3), here / "model")
    Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)).save("a.png")
    refused = invoke("a.png", "--model", "model", *QUICK, status=2)
    assert refused.stderr == "--model model: clip_sample is not invertible; --clip ignore leaves it out\n"
    done = invoke("a.png", "--model", "model", *QUICK, "--clip", "ignore", "--interpolate", 2)
    assert done.stderr.endswith("--interpolate: requires two images, one is left\n")
    assert "class" not in done.stdout
    with Image.open("runs/invert/reconstructions/0001-a.png") as made:
        assert (made.mode, made.size) == ("RGB", (8, 8))
    assert set(stored_in("runs/invert")) == {"latents"}


def test_a_model_of_something_else_than_pictures(here: Path) -> None:
    folder_of(small_unet(4), here / "model", clip_sample=False)
    np.save("a.npy", 2 * np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32))
    invoke("a.npy", "--model", "model", *QUICK, "--interpolate", 3)
    stored = stored_in("runs/invert")
    assert {name: len(images) for name, images in stored.items()} == {"latents": 2, "reconstructions": 2}
    between = load_file("runs/invert/interpolations/0001-0002.safetensors")
    assert {name: len(images) for name, images in between.items()} == {"interpolations": 3}
    torch.testing.assert_close(stored["reconstructions"], torch.from_numpy(np.load("a.npy")), rtol=0, atol=0.3)
    assert list(here.glob("runs/invert/**/*.png")) == []


def test_timesteps_of_ones_own_and_the_schedulers_note(here: Path) -> None:
    folder_of(small_unet(4), here / "model", clip_sample=False)
    DDPMScheduler().save_pretrained(here / "model" / "scheduler")
    index = here / "model" / "model_index.json"
    index.write_text(index.read_text().replace("DDIMScheduler", "DDPMScheduler"))
    np.save("a.npy", np.zeros((1, 4, 8, 8), dtype=np.float32))
    arguments = ("a.npy", "--model", "model", "--clip", "ignore", "--tolerance", 9)
    done = invoke(*arguments, "--timesteps", "900,500,20")
    note = "model/unet: the scheduler is a DDPMScheduler; sampled by DDIM, as DDIMScheduler.from_config takes it, "
    assert note in done.stderr
    told = json.loads(Path("runs/invert/report.json").read_text())
    assert (told["num_inference_steps"], told["timesteps"]) == (3, [900, 500, 20])
    assert [each.startswith(note) for each in told["notes"]] == [True]
    stored = stored_in("runs/invert")
    with pytest.warns(UserWarning, match="sampled by DDIM"):
        schedule = replace(DiffusersModel(path="model").own_schedule, clip_sample=False)
    network = DiffusersModel(path="model").denoiser(schedule)
    problem = ddim_problem(network, schedule, stored["latents"], timesteps=[900, 500, 20])
    serial = fixedpoint.solve(problem, solver="serial").z[:, -1]
    torch.testing.assert_close(serial, stored["reconstructions"], rtol=1e-3, atol=1e-3)
    done = invoke(*arguments, "--timesteps", "quadratic", "--steps", 40, "--quiet")
    told = json.loads(Path("runs/invert/report.json").read_text())
    assert told["timesteps"] == list(quadratic_timesteps(40))
    assert told["num_inference_steps"] == len(told["timesteps"]) < 40
    assert "40 steps of quadratic spacing are" in told["notes"][1]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("a.png", "--timesteps", "3,2,2"), "--timesteps: timesteps must be strictly decreasing, got 2 before 2; "),
        (("a.png", "--timesteps", "3,x"), '--timesteps: must be integers by commas, or quadratic, got "3,x"'),
        (("a.png", "--timesteps", "9,1", "--steps", "3"), "--timesteps: num_inference_steps = 3 does not go with 2 "),
        (("gone.png",), "gone.png: no such file or folder\nno image is left to invert"),
        (("a.png", "--class", "sokcs"), '--class: must be from 0 to 9 or a name, got "sokcs"; known: '),
        (
            ("a.png", "--class", "sandel"),
            '--class: must be from 0 to 9 or a name, got "sandel"; did you mean "sandal"?',
        ),
        (("a.png", "--edit-class", "10"), '--edit-class: must be from 0 to 9 or a name, got "10"'),
        (("a.png", "--class", "1,2"), "--class: 2 classes for 1 image; one for all, or one for each"),
        (("a.png", "--model", "modle"), "--model modle: cannot be used: there is no folder modle; "),
        (("a.png", "--no-class", "3"), "--no-class is for models in folders; fashion-mnist knows its own"),
        (
            ("a.png", "--steps", "0"),
            "--steps 0: num_inference_steps must be from 1 to num_train_timesteps = 1000, got 0",
        ),
        (("a.png", "--guidance", "-1"), "--guidance: must be at least 0.0, got -1.0"),
        (("a.png", "--edit-guidance", "-1"), "--edit-guidance: must be at least 0.0, got -1.0"),
        (("a.png", "--tolerance", "0"), "--tolerance: must be positive, got 0"),
        (("a.png", "--background", "pink"), '--background: must be black or white, got "pink"; known: black, white'),
        (("a.png", "--clip", "ignroe"), '--clip: must be refuse or ignore, got "ignroe"; did you mean "ignore"?'),
        (("a.png", "--device", "toaster"), "--device toaster: cannot be used: "),
        (
            ("a.png", "--scheduler", "HeunScheduler"),
            '--scheduler.name: is no scheduler of diffusers: "HeunScheduler"; did you mean HeunDiscreteScheduler',
        ),
        (
            ("a.png", "--scheduler", "{name: EulerDiscreteScheduler, use_karras: true}"),
            '--scheduler.use_karras: is no setting of EulerDiscreteScheduler; did you mean "use_karras_sigmas"?',
        ),
        (("a.png", "--scheduler", "[1"), "--scheduler: its value cannot be read: "),
        (("a.png", "--scheduler", "3"), '--scheduler: must be a name, or a mapping {name: ..., setting: ...}, got "3"'),
        (
            ("a.png", "--scheduler", "DPMSolverMultistepScheduler"),
            "--scheduler: DPMSolverMultistepScheduler makes its steps of several evaluations, so that an image alone",
        ),
        (
            ("a.png", "--scheduler", "LCMScheduler"),
            "--scheduler: LCMScheduler replaces the noise of its input at every step, so that its start cannot be",
        ),
        (
            ("a.png", "--scheduler", "EulerAncestralDiscreteScheduler"),
            "--scheduler: EulerAncestralDiscreteScheduler as it is set adds noise at every step; give this noise, or",
        ),
        (
            ("a.png", "--scheduler", "FlowMatchEulerDiscreteScheduler"),
            "--scheduler: must have noise levels of a training in steps (betas), as the model's own DDIMScheduler",
        ),
        (
            ("a.png", "--scheduler", "{name: EulerDiscreteScheduler, prediction_type: epsilon}"),
            "--scheduler: must have the model's own prediction_type 'v_prediction', got 'epsilon'",
        ),
        (
            ("a.png", "--scheduler", "DDIMParallelScheduler", "--timesteps", "9,1"),
            "--timesteps: must be null: DDIMParallelScheduler takes no timesteps, only their number",
        ),
        (
            ("a.png", "--scheduler", "{name: DDIMScheduler, clip_sample: true}"),
            "--model fashion-mnist: clip_sample is not invertible; --clip ignore leaves it out",
        ),
    ],
)
def test_mistakes_are_a_sentence_and_nothing_is_computed(here: Path, arguments: tuple[str, ...], line: str) -> None:
    Path("a.png").write_bytes(as_png(drawn(SHIRT)))
    done = invoke(*arguments, "-q", status=2)
    assert done.stdout == ""
    assert done.stderr.startswith(line)
    assert not Path("runs/invert/report.json").exists()


@pytest.mark.parametrize("named", [True, False])
def test_another_scheduler(named: bool, here: Path) -> None:
    """Named, or that of the folder: what is written are latents of its own samples."""
    scheduler = EulerDiscreteScheduler(use_karras_sigmas=True, timestep_spacing="leading")
    folder_of(small_unet(4), here / "model", clip_sample=False)
    if not named:
        scheduler.save_pretrained(here / "model" / "scheduler")
        index = here / "model" / "model_index.json"
        index.write_text(index.read_text().replace("DDIMScheduler", "EulerDiscreteScheduler"))
    np.save("a.npy", np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32))
    typed = ("--scheduler", "{name: EulerDiscreteScheduler, use_karras_sigmas: true}") if named else ()
    done = invoke("a.npy", "--model", "model", "--steps", 6, "--tolerance", 9, "--interpolate", 1, *typed)
    assert done.stderr == "[2/2] 2 of 2 inverted, " + done.stderr.partition("inverted, ")[2]
    told = json.loads(Path("runs/invert/report.json").read_text())
    assert (told["num_inference_steps"], told["timesteps"], told["notes"]) == (6, None, [])
    assert (told["schedule"]["name"], told["schedule"]["use_karras_sigmas"]) == ("EulerDiscreteScheduler", True)
    stored = stored_in("runs/invert")
    problem = sampling_problem(
        DiffusersModel(path="model").denoiser(DDIMSchedule()), scheduler, stored["latents"], num_inference_steps=6
    )
    serial = fixedpoint.solve(problem, solver="serial").z[:, -1]
    torch.testing.assert_close(serial, stored["reconstructions"], rtol=1e-3, atol=1e-3)
    assert len(load_file("runs/invert/interpolations/0001-0002.safetensors")["interpolations"]) == 1


@pytest.mark.parametrize(
    ("scheduler", "line"),
    [
        (PNDMScheduler, "--model model: its scheduler: PNDMScheduler makes its steps of several evaluations"),
        (EulerAncestralDiscreteScheduler, "--model model: its scheduler: EulerAncestralDiscreteScheduler as it is set"),
        (SCMScheduler, "--model model: its scheduler: cannot be used: SCMScheduler cannot be stepped as it is set"),
    ],
)
def test_a_folder_whose_own_scheduler_has_no_inverse(scheduler: Any, line: str, here: Path) -> None:
    folder_of(small_unet(3), here / "model", clip_sample=False)
    scheduler().save_pretrained(here / "model" / "scheduler")
    Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)).save("a.png")
    assert invoke("a.png", "--model", "model", status=2).stderr.startswith(line)
    if scheduler is not SCMScheduler:
        invoke("a.png", "--model", "model", "--scheduler", "{name: DDIMScheduler, clip_sample: false}", *QUICK)


def test_a_model_that_wants_classes_or_has_none(here: Path) -> None:
    folder_of(small_unet(3), here / "plain", clip_sample=False)
    Path("a.png").write_bytes(as_png(drawn(SHIRT)))
    done = invoke("a.png", "--model", DENOISER, status=2)
    assert done.stderr == f"{DENOISER} is conditioned on classes: --class says which, 0 to 9\n"
    done = invoke("a.png", "--model", "plain", "--class", "1", status=2)
    assert done.stderr == "--class: plain is not conditioned on classes\n"
    done = invoke("a.png", "--model", "plain", "--guidance", "2", status=2)
    assert done.stderr == "--guidance: must be 1: plain/unet is not conditioned on classes\n"
    (here / "plain" / "scheduler" / "scheduler_config.json").unlink()
    done = invoke("a.png", "--model", "plain", status=2)
    assert done.stderr == "--model plain: has no scheduler_config.json, so its noise levels are not known\n"
    assert choose(str(DENOISER), None, 5, False).schedule == FashionMNISTModel().own_schedule


def stopping_at(batch: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the inversion of that batch raise something."""
    kept, count = model.invert, [0]

    def invert(*arguments: Any, **options: Any) -> Any:
        count[0] += 1
        if count[0] == batch:
            raise error
        return kept(*arguments, **options)

    monkeypatch.setattr(model, "invert", invert)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted; 1 of 5 images are done, in runs/invert"),
        (torch.cuda.OutOfMemoryError(), 1, "cpu has not enough memory for 1 images at once; take a smaller --batch"),
    ],
)
def test_what_is_done_is_kept_when_it_ends_early(
    here: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, line: str
) -> None:
    lay_out(here)
    stopping_at(2, error, monkeypatch)
    done = invoke("photos", *QUICK, "--batch", 1, status=status)
    assert done.stderr.splitlines()[-1] == line
    assert stored_in("runs/invert")["latents"].shape == (1, 1, 32, 32)
    report = json.loads(Path("runs/invert/report.json").read_text())
    assert (report["interrupted"], report["ok"], len(report["images"])) == (True, False, 1)
    assert Path("runs/invert/reconstructions.png").is_file()


def test_a_process_that_is_killed_leaves_the_batches_that_were_done(here: Path) -> None:
    lay_out(here)
    stored, report = Path("runs/invert/latents/000001.safetensors"), Path("runs/invert/report.json")
    command = [sys.executable, "-m", "fixedpoint", "invert", "photos", *QUICK, "--batch", "1", "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not stored.exists():
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    names, rows = (told_in("runs/invert", each) for each in ("names", "rows"))
    assert len(stored_in("runs/invert")["latents"]) == len(names) >= 1
    assert names[0] == "photos/a-shirt.png"
    assert [row["name"] for row in rows if row["latent"] is not None] == names
    told = json.loads(report.read_text())
    assert (told["interrupted"], told["ok"], told["images"]) == (True, False, [])


def test_nothing_is_written_before_the_first_batch_is_done(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.png").write_bytes(as_png(drawn(SHIRT)))
    stopping_at(1, KeyboardInterrupt(), monkeypatch)
    assert invoke("a.png", *QUICK, status=130).stderr == "interrupted\n"
    assert list(Path("runs/invert").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_sentence(here: Path) -> None:
    Path("a.png").write_bytes(as_png(drawn(SHIRT)))
    Path("out").write_text("a file")
    assert invoke("a.png", *QUICK, "-o", "out", status=1).stderr == "cannot write out: File exists\n"
    Path("half/reconstructions").mkdir(parents=True)
    done = invoke("a.png", *QUICK, "-o", "half", status=1)
    assert done.stderr == (
        "cannot write half/reconstructions: it is there already, and the folder is not that of an inversion; "
        "choose another output folder\n"
    )
    Path("half/report.json").write_text('{"num_inference_steps": 5}')
    Path("half/reconstructions/0001-a.png").mkdir()
    done = invoke("a.png", *QUICK, "-o", "half", status=1)
    assert done.stderr.startswith("cannot write half/reconstructions/0001-a.png: ")


def test_a_terminal_shows_the_round_in_flight_and_sentences_on_lines_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=60, highlight=False)
    monkeypatch.setattr(console, "Console", lambda **_: terminal)
    sentence = "a.png: has 28 x 28 pixels, the model's images 32 x 32; --resize resizes it"
    with console.reporting(3, quiet=False) as reporter:
        reporter.on_round(InversionProgress("clean end", 12, 1.2e-3))
        time.sleep(0.3)  # it is drawn ten times a second
        reporter.complain(sentence)
        reporter.batch_done([work.Row("a.png", "skipped", "")])
    seen = stream.getvalue()
    assert "clean end, round 12, error 1e-03" in seen
    assert "1/3" in seen
    before, after = seen.split(sentence)
    assert before.endswith("\x1b[2K")  # the bar's line, emptied
    assert after.startswith("\n")


@pytest.mark.parametrize("columns", [60, 80])
def test_the_table_fits(columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    name = "holidays/a-long-way-from-home/picture-0001.png"
    numbers = (1.2e-3, 2.5e-4, 41, 3.75e-4, 88, 12345)
    rows = [
        work.Row(name, "inverted", "", (), 0, True, *numbers),
        work.Row(name, "not_contractive", "", (), 9, False, *numbers),
        work.Row("corrupt.png", "skipped", "cannot be read"),
    ]
    called: Callable[[int | None], str] = lambda label: "" if label is None else "T-shirt/top"  # noqa: E731
    console.print_table(rows, called, "class")
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= columns
    for text in ("1.2e-03", "T-shirt/top ?", "skipped", *(("2.5e-04", "3.8e-04", "88") if columns == 80 else ())):
        assert text in printed
    assert "".join(re.findall(r"^\S+", printed, flags=re.MULTILINE)).count(name) == 2


def pipelines(folder: Path) -> None:
    """The bundled model as the folder of a pipeline, and a tiny Stable Diffusion with one of its own images."""
    FashionMNISTPipeline.bundled().save_pretrained(folder / "clothes")
    pipe = pipeline("sd1", folder=folder / "sd1", scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1))
    made = pipe("a cat", height=16, width=16, num_inference_steps=4, generator=torch.Generator().manual_seed(0))
    made.images[0].save(folder / "cat.png")


def test_a_pipeline_is_inverted_with_a_prompt_for_each_image_and_edited(here: Path) -> None:
    """By the pipeline's own call: its images of the latents that were written are the pictures that were written."""
    pipelines(here)
    lay_out(here)
    done = invoke(
        *("photos/a-shirt.png", "photos/b-trouser.png", "--model", "clothes", "--clip", "ignore", *QUICK),
        *("--prompt", "T-shirt/top", "--prompt", "trouser", "--edit-prompt", "bag", "--interpolate", 1, "-o", "out"),
    )
    assert "prompt" in done.stdout
    assert "in between: the prompt of the nearer image" in done.stdout
    report = json.loads(Path("out/report.json").read_text())
    assert [row["prompt"] for row in report["images"]] == ["T-shirt/top", "trouser"]
    assert report["edit"] == {"prompt": "bag", "guidance_scale": None}
    assert report["ok"]
    assert told_in("out", "prompts") == ["T-shirt/top", "trouser"]
    latents = stored_in("out")["latents"]
    pipe = FashionMNISTPipeline.bundled(DDIMScheduler, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    for kind, prompts in (("reconstructions", ["T-shirt/top", "trouser"]), ("edits", ["bag", "bag"])):
        made = pipe(prompts, latents=latents, num_inference_steps=STEPS).images
        written = [np.asarray(Image.open(file)) for file in sorted(Path("out", kind).iterdir())]
        for one, two in zip(made, written, strict=True):
            assert np.abs(np.asarray(one).astype(int) - two.astype(int)).max() <= 2


def test_a_pipeline_of_texts_has_its_scheduler_replaced(here: Path) -> None:
    """One with a memory, as most folders have; the image that was made with another one is missed or inverted."""
    pipelines(here)
    options = ("--steps", 2, "--tolerance", 10)
    done = invoke("cat.png", "--model", "sd1", "--prompt", "a cat", "--negative-prompt", "a dog", *options)
    assert "sd1: its PNDMScheduler has no inverse; the DDIMScheduler with its noise levels is inverted" in done.stderr
    report = json.loads(Path("runs/invert/report.json").read_text())
    assert (report["schedule"]["name"], report["negative_prompt"]) == ("DDIMScheduler", "a dog")
    assert stored_in("runs/invert")["latents"].shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--model sd1", "is a StableDiffusionPipeline, conditioned on texts; --prompt says on which"),
        ("--model sd1 --prompt a --prompt b", "--prompt: 2 prompts for 1 image; one for all, or one for each"),
        ("--model sd1 --prompt a --class 3", "--class: sd1 is a pipeline, which is told what to make by --prompt"),
        ("--model sd1 --prompt a --edit-class 3", "--edit-class: sd1 is a pipeline"),
        ("--model sd1 --prompt a --timesteps 5,3", "--timesteps: sd1 is a pipeline"),
        ("--model sd1 --prompt a --steps 0", "--steps: must be at least 1, got 0"),
        ("--model sd1 --prompt a --guidance nan", "--guidance: must be finite"),
        ("--model sd1 --prompt a --scheduler PNDM", "did you mean PNDMScheduler"),
        ("--model sd1 --prompt a --scheduler FlowMatchEulerDiscreteScheduler", "--scheduler: must have noise levels"),
        ("--model sd1 --prompt a --scheduler PNDMScheduler", "--scheduler: PNDMScheduler remembers more than its last"),
        ("--model clothes --prompt bag --negative-prompt a", "--negative-prompt: FashionMNISTPipeline takes no"),
        ("--model clothes --prompt bag --height 8", "--height: FashionMNISTPipeline takes no height"),
        ("--model clothes --prompt bags", "prompt must be among T-shirt/top"),
        ("--model clothes --prompt bag", "clips the predicted image (clip_sample=True)"),
        ("--prompt bag", "--prompt: fashion-mnist is not conditioned on texts; this is for pipelines"),
        ("--edit-prompt bag", "--edit-prompt: fashion-mnist is not conditioned on texts"),
        ("--model nothing --prompt bag", "--model nothing: there is no folder nothing"),
    ],
)
def test_mistakes_about_pipelines(here: Path, options: str, sentence: str) -> None:
    if "sd1" in options or "clothes" in options:
        pipelines(here)
    picture = "cat.png"
    if "sd1" not in options:
        (here / picture).write_bytes(as_png(drawn(SHIRT)))
    scheduler = here / "clothes" / "scheduler" / "scheduler_config.json"
    if "bag" in options and scheduler.is_file():
        scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "clip_sample": "bags" not in options}))
    done = invoke(picture, *options.split(), status=2)
    assert sentence in " ".join(done.stderr.split())
