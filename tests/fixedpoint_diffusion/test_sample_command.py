"""``fixedpoint sample``: what it writes is what the pipeline makes, a mistake is a sentence, what is done stays."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_pipelines import pipeline
from typer.testing import CliRunner, Result

from fixedpoint.cli.main import app
from fixedpoint_diffusion.command.sampling import work
from fixedpoint_diffusion.fashion_mnist.pipeline import FashionMNISTPipeline

# Some schedulers compute with numpy as it was.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

JOINT = ("--solver", "chain,accelerator=block-secant")
QUICK = ("--steps", "5", *JOINT)
SD = ("sd1", "--height", "16", "--width", "16", *QUICK)


def invoke(*arguments: object, status: int = 0, columns: int = 80) -> Result:
    done = CliRunner().invoke(
        app,
        ["sample", *map(str, arguments)],
        env={"COLUMNS": str(columns)},
        catch_exceptions=False,
        terminal_width=columns,
    )
    assert done.exit_code == status, done.output
    return done


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pipelines")
    for name in ("sd1", "dit", "ddpm", "img2img"):
        pipeline(name, folder=root / name)
    return root


@pytest.fixture
def here(tmp_path: Path, folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in folders.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    return tmp_path


def report(folder: str = "runs/sample") -> dict[str, Any]:
    return json.loads(Path(folder, "report.json").read_text())


def pictures(told: dict[str, Any]) -> list[np.ndarray]:
    return [np.asarray(Image.open(Path(told["folder"]) / row["file"])) for row in told["images"]]


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def assert_near(found: Sequence[np.ndarray], own: np.ndarray) -> None:
    """Equal to a grey level: the joint solve ends within a thousandth."""
    assert len(found) == len(own) > 0
    for one, other in zip(found, (255 * own).round(), strict=True):
        assert np.abs(one.astype(int) - other.squeeze().astype(int)).max() <= 1


def test_images_are_the_pipelines_own_with_the_documented_seeds(here: Path) -> None:
    done = invoke(*SD, "--prompt", "a cat", "--prompt", "two dogs", "--count", 2, "--seed", 7, "--guidance-scale", 3)
    own = pipeline("sd1")(
        ["a cat", "a cat", "two dogs", "two dogs"],
        height=16,
        width=16,
        num_inference_steps=5,
        guidance_scale=3.0,
        output_type="np",
        generator=seeded(7, 8, 7, 8),
    )
    told = report()
    assert_near(pictures(told), own.images)
    assert [(row["prompt"], row["seed"]) for row in told["images"]] == [
        *(("a cat", 7), ("a cat", 8), ("two dogs", 7), ("two dogs", 8))
    ]
    assert [row["file"] for row in told["images"]] == [
        f"images/{name}-seed-{seed}.png" for name in ("a-cat", "two-dogs") for seed in (7, 8)
    ]
    assert (told["pipeline"], told["scheduler"], told["ok"]) == ("StableDiffusionPipeline", "DDIMScheduler", True)
    assert re.search(r"^two dogs +8 +converged +\d +\de-0\d$", done.stdout, flags=re.MULTILINE)
    assert "4 of 4 images sampled within a relative error of 0.001\n" in done.stdout
    assert done.stderr == "[4/4] 4 of 4 sampled, " + done.stderr.partition("sampled, ")[2]
    with Image.open("runs/sample/samples.png") as sheet:
        assert sheet.size == (2 + 2 * 66, 2 + 2 * 66)


def test_the_bundled_model_without_a_folder_beside_the_serial_loop(here: Path) -> None:
    done = invoke(*QUICK, "--prompt", "bag", "--prompt", "3", "--beside-serial", "--json")
    told = json.loads(done.stdout)
    assert told == report()
    own = FashionMNISTPipeline.bundled()(
        ["bag", "dress"], num_inference_steps=5, generator=seeded(0, 0), output_type="np"
    )
    assert_near(pictures(told), own.images)
    for row in told["images"]:
        assert 0 < row["difference"] < 1e-3
        assert 0 < row["levels"] < 2
        assert row["rounds"] <= 5
    assert told["batches"][0]["serial_seconds"] > 0


def test_what_it_says_fits_eighty_columns(here: Path) -> None:
    prompt = "two dogs that run over a very long meadow " * 3
    done = invoke(*SD, "--prompt", prompt, "--beside-serial", "--seed", 4294967296)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["prompt", "seed", "status", "rounds", "error", "differs", "levels"]
    assert re.search(r"\d rounds for 5 steps, [\d.]+ s; the pipeline's own loop took [\d.]+ s\n", done.stdout)
    planned = invoke("--prompt", "bag", "--steps", 4, "-o", "planned")
    assert "planned " in planned.stdout
    assert max(map(len, planned.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        ("DPMSolverMultistepScheduler,use_karras_sigmas=true,solver_order=3", {"solver_order": 3}),
        ("{name: DPMSolverMultistepScheduler, use_karras_sigmas: true}", {}),
    ],
)
def test_another_scheduler_and_further_arguments(here: Path, scheduler: str, settings: dict[str, Any]) -> None:
    invoke(*SD, "--prompt", "a cat", "--scheduler", scheduler, "--call", "guidance_rescale=0.5", "--rtol", 1e-4)
    pipe = pipeline("sd1")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True, **settings)
    own = pipe("a cat", height=16, width=16, num_inference_steps=5, guidance_rescale=0.5, output_type="np",
               generator=seeded(0))  # fmt: skip
    assert_near(pictures(report()), own.images)
    assert report()["scheduler"]["use_karras_sigmas"] is True


def test_classes_and_nothing_to_be_conditioned_on(here: Path) -> None:
    invoke("dit", "--class", "3,5", *QUICK, "-o", "classes")
    own = pipeline("dit")([3, 5], num_inference_steps=5, generator=seeded(0, 0), output_type="np")
    assert_near(pictures(report("classes")), own.images)
    done = invoke("ddpm", "--steps", 5, "--count", 3, "--batch", 2, "-o", "plain", "--solver", "serial")
    own = pipeline("ddpm")(batch_size=3, num_inference_steps=5, generator=seeded(0, 1, 2), output_type="np")
    told = report("plain")
    assert_near(pictures(told), own.images)
    assert "prompt" not in done.stdout
    assert [line.partition("]")[0] for line in done.stderr.splitlines()] == ["[2/3", "[3/3"]
    assert all(row["relative_error"] == 0 for row in told["images"])


def test_what_is_there_is_not_sampled_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    kept = work._batch

    def noted(job: Any, entries: Any, told: Any) -> Any:
        asked.extend(entry.number for entry in entries)
        return kept(job, entries, told)

    monkeypatch.setattr(work, "_batch", noted)

    def sampled(*arguments: object) -> list[int]:
        asked.clear()
        done = invoke("ddpm", *QUICK, *arguments)
        told = report()
        assert told["reused"] == len(told["images"]) - len(asked)
        assert ("were there already" in done.stdout) == (told["reused"] > 0)
        return list(asked)

    assert sampled("--count", 2) == [1, 2]
    before = Path("runs/sample/images/seed-0.png").read_bytes()
    assert sampled("--count", 2) == []
    assert sampled("--count", 3) == [3]
    assert sampled("--count", 3, "--rtol", 1e-4) == [1, 2, 3]
    assert sampled("--count", 3, "--rtol", 1e-4, "--fresh") == [1, 2, 3]
    Path("runs/sample/images/seed-1.png").write_bytes(before[:100])  # damaged
    assert sampled("--count", 3, "--rtol", 1e-4) == [2]
    Path("runs/sample/report.json").write_text("{")  # whose folder it is cannot be told
    refused = invoke("ddpm", *QUICK, "--count", 1, "--rtol", 1e-4, status=1)
    assert "cannot write runs/sample/images: it is there already" in refused.stderr


def test_prompts_that_begin_alike_have_files_of_their_own(here: Path) -> None:
    beginning = "a cat " * 10
    invoke(*SD, "--prompt", f"{beginning} one", "--prompt", f"{beginning} TWO", "--prompt", "dog")
    files = [row["file"] for row in report()["images"]]
    assert len(set(files)) == 3
    assert files[0].endswith("-seed-0-1.png")
    assert files[2] == "images/dog-seed-0.png"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted; 1 of 3 images are done; the same command again goes on from there"),
        (torch.cuda.OutOfMemoryError(), 1, "cpu has not enough memory for 1 images at once; take a smaller --batch"),
        (ValueError("is odd"), 2, "ddpm: is odd; --solver serial runs the pipeline's own loop"),
    ],
)
def test_what_is_done_is_kept_when_it_ends_early(
    here: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, line: str
) -> None:
    kept, count = work._batch, [0]

    def stopping(*arguments: Any) -> Any:
        count[0] += 1
        if count[0] == 2:
            raise error
        return kept(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(work, "_batch", stopping)
        done = invoke("ddpm", *QUICK, "--count", 3, "--batch", 1, status=status)
    assert done.stderr.splitlines()[-1] == line
    told = report()
    assert (told["interrupted"], told["ok"], len(told["images"])) == (True, False, 1)
    assert Path("runs/sample/samples.png").is_file()
    invoke("ddpm", *QUICK, "--count", 3, "--batch", 1)
    assert (report()["reused"], report()["interrupted"]) == (1, False)


def test_an_image_that_is_missed_is_that(here: Path) -> None:
    shutil.copytree("ddpm", "broken")
    weights = Path("broken/unet/diffusion_pytorch_model.safetensors")
    save_file({**load_file(weights), "conv_out.bias": torch.full((3,), torch.nan)}, weights)
    done = invoke("broken", *QUICK, "-q", status=1)
    assert done.stdout == ""
    assert re.fullmatch(r"images/seed-0.png: .*\n", done.stderr)
    told = report()
    assert (told["images"][0]["status"], told["ok"]) == ("nonfinite", False)
    invoke("broken", *QUICK, "-q", status=1)
    assert report()["reused"] == 0  # what was missed is tried again


def test_quiet_says_nothing_and_a_folder_that_cannot_be_written_is_a_sentence(here: Path) -> None:
    assert invoke("ddpm", *QUICK, "--quiet").output == ""
    Path("file").write_text("")
    done = invoke("ddpm", *QUICK, "-o", "file/out", status=1)
    assert done.stderr.startswith("cannot write file")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("nowhere",), "nowhere: cannot be used: there is no folder nowhere; a pipeline is a folder as "),
        (("owner/nowhere",), "owner/nowhere: cannot be used: there is no folder owner/nowhere, and no model of this "),
        (("sd1",), "--prompt: is required: StableDiffusionPipeline is conditioned on text"),
        (("sd1", "--prompt", "a", "--class", "3"), "--class: must be null: StableDiffusionPipeline takes no class"),
        (("dit",), "--class: is required: DiTPipeline is conditioned on it"),
        (("dit", "--class", "cat"), '--class: must be a number, got "cat"; classes by name are prompts'),
        (("ddpm", "--prompt", "x"), "--prompt: must be null: DDPMPipeline takes no prompt"),
        (("ddpm", "--eta", "0.5"), "--eta: must be 0: DDPMPipeline takes no eta"),
        (("ddpm", "--eta", "2"), "--eta: must be from 0 to 1, got 2"),
        (("img2img", "--prompt", "a"), "img2img: cannot be used: StableDiffusionImg2ImgPipeline starts from images"),
        (("--prompt", "sandel"), "--prompt: must be a class of fashion-mnist, got 'sandel'; did you mean \"sandal\"?"),
        (("--height", "3"), "--height: must be null: FashionMNISTPipeline takes no height"),
        (("sd1", "--prompt", "a", "--height", "0"), "--height: must be at least 1, got 0"),
        (("--guidance-scale", "-1"), "--guidance-scale: must be at least 0.0, got -1.0"),
        (("--solver", "chian"), '--solver.name: unknown solver "chian"; did you mean "chain"?'),
        (("--solver", "chain,windw=3"), '--solver.windw: unknown option; did you mean "window"?'),
        (("--scheduler", "UniPC"), '--scheduler.name: is no scheduler of diffusers: "UniPC"; did you mean UniPCMult'),
        (("--scheduler", "EulerDiscreteScheduler,use_karras=1"), "--scheduler.use_karras: is no setting of EulerDis"),
        (("--scheduler", "DDIMScheduler,beta_end=0.3"), "--scheduler: must "),
        (("--scheduler", "DDIMScheduler,beta_end"), '--scheduler: must be KEY=VALUE, got "beta_end"'),
        (
            ("--call", "guidance_scael=3"),
            "--call.guidance_scael: is no argument of FashionMNISTPipeline; did you mean ",
        ),
        (("--call", "latents=3"), "--call.latents: is set by the options of the task"),
        (("--call", "x"), '--call: must be KEY=VALUE, got "x"'),
        (("--device", "toaster"), "--device toaster: cannot be used: "),
        (("--dtype", "float8"), "--dtype: must be one of 'float32', 'bfloat16', 'float16', 'float64', got 'float8'"),
        (("--rtol", "2"), "--rtol: must be between 0 and 1, got 2"),
        (("--steps", "0"), "--steps: must be at least 1, got 0"),
        (("--promt", "bag"), 'there is no option --promt; did you mean "--prompt"?'),
    ],
)
def test_mistakes_are_a_sentence_and_nothing_is_computed(here: Path, arguments: tuple[str, ...], line: str) -> None:
    done = invoke(*arguments, status=2)
    assert done.stdout == ""
    assert done.stderr.startswith(line)
    assert len(done.stderr.splitlines()) == 1
    assert not Path("runs").exists()


def test_from_a_shell_with_nothing_but_the_table(here: Path) -> None:
    """In a process of its own, so that nothing is loaded or silenced before; a second one finds all of it done."""
    command = [sys.executable, "-m", "fixedpoint", "sample", *SD, "--prompt", "a cat"]
    for done in (0, 1):
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        said = ran.stderr.splitlines()
        assert len(said) == 1 - done, ran.stderr
        assert ("1 of them were there already" in ran.stdout) == bool(done)
