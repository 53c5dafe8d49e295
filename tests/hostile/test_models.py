"""Odd folders of models and pipelines: a sentence each, nothing executed, no memory taken."""

from __future__ import annotations

import json
import re
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

sys.path.append(str(Path(__file__).parent))

import models
from models import CLASSES, CONFIGS, FILES, JSONS, SCHEDULERS, Odd, configured, setting, sharded, write
from tiny_pipelines import pipeline

from fixedpoint.core.options import OptionError
from fixedpoint_diffusion.models.choices import DiffusersModel
from fixedpoint_diffusion.models.folder import FolderError, ModelFolder
from fixedpoint_diffusion.pipelines.folder import PipelineFolderError, load_pipeline
from fixedpoint_diffusion.schedules.by_name import SchedulerError
from fixedpoint_diffusion.schedules.schedulers import DDIMSchedule
from fixedpoint_diffusion.task import Sampling

pytestmark = pytest.mark.filterwarnings("ignore")  # those of diffusers, about what is refused
# Bytes. What a folder may ask for beyond what it holds.
MEMORY = 1.5e9


def odd_networks() -> list[Odd]:
    jsons = [
        Odd(f"config.json: {name}", lambda f, c=content: write("config.json", c, f), said)
        for name, content, said in JSONS
    ]
    classes = [Odd(f"class: {name!r}", setting(_class_name=name), said) for name, said in CLASSES]
    configs = [Odd(f"config: {each!s:.60}", setting(**each), said) for each, said in CONFIGS]
    files = [Odd(name, spoil, said) for name, spoil, said in FILES]
    schedulers = [
        Odd(f"scheduler: {each}", setting("scheduler_config.json", **each), "|.") for each, said in SCHEDULERS
    ]
    jsons += [
        Odd(f"scheduler_config.json: {name}", lambda f, c=content: write("scheduler_config.json", c, f), said)
        for name, content, said in JSONS
    ]
    return [*jsons, *classes, *configs, *files, *schedulers]


NETWORKS = odd_networks()
QUICK = 10
"""One in so many is in the quick suite."""


def some(odd: list[Odd]) -> list[Any]:
    return [
        pytest.param(each, id=each.name, marks=[] if number % QUICK == 0 else [pytest.mark.slow])
        for number, each in enumerate(odd)
    ]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("good") / "model"
    UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        num_class_embeds=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).save_pretrained(folder)
    DDIMScheduler().save_pretrained(folder)
    return folder


@pytest.fixture
def copied(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Path(shutil.copytree(good, tmp_path / "model"))


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def loaded(folder: Path) -> None:
    """Do all that a run does with a model."""
    model = DiffusersModel(path=str(folder))
    problem = Sampling(model=model, num_inference_steps=2, batch=1).problem(0)
    model.denoiser(DDIMSchedule(), 1)
    problem(problem.initial())


def check(odd: Odd, folder: Path, load: Callable[[Path], Any], refused: tuple[type[Exception], ...]) -> None:
    odd.spoil(folder)
    before = peak()
    try:
        load(folder)
    except refused as error:
        text = str(error)
        assert re.search(odd.said, text), text
        assert odd.said != "", text
        assert "\n" not in text
    else:
        assert re.fullmatch(odd.said, ""), f"was loaded; wanted: {odd.said}"
    assert peak() - before < MEMORY
    assert not list(Path.cwd().iterdir())  # where a pickle would have written


@pytest.mark.parametrize("odd", some(NETWORKS))
def test_an_odd_folder_of_a_model_is_a_sentence(odd: Odd, copied: Path) -> None:
    check(odd, copied, loaded, (OptionError, FolderError, SchedulerError))


def odd_pipelines() -> list[Odd]:
    jsons = [
        Odd(f"model_index.json: {name}", lambda f, c=content: write("model_index.json", c, f), f"{said}|does not name")
        for name, content, said in JSONS
    ]
    jsons += [
        Odd(f"unet/config.json: {name}", models.within("unet", lambda f, c=content: write("config.json", c, f)), said)
        for name, content, said in JSONS
    ]
    classes = [Odd(f"class: {name!r}", setting("model_index.json", _class_name=name), said) for name, said in CLASSES]
    indexes = [Odd(f"index: {each!s:.70}", setting("model_index.json", **each), said) for each, said in models.INDEXES]
    # Of the weights the same is asked as for a network alone, in the words of a part.
    files = [
        Odd(f"unet: {name}", models.within("unet", spoil), said.replace("UNet2DModel", "UNet2DConditionModel"))
        for name, spoil, said in FILES
        if name.startswith("shards")
    ]
    parts = [Odd(name, spoil, said) for name, spoil, said in models.PARTS]
    return [*jsons, *classes, *indexes, *files, *parts]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "pipeline"
    pipeline("sd1", folder=folder)
    return folder


@pytest.mark.parametrize("odd", some(odd_pipelines()))
def test_an_odd_folder_of_a_pipeline_is_a_sentence(
    odd: Odd, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = Path(shutil.copytree(whole, tmp_path / "pipeline"))
    check(odd, folder, load_pipeline, (PipelineFolderError, SchedulerError))


def test_there_are_as_many_as_were_asked_for() -> None:
    assert len(NETWORKS) >= 123
    assert len({each.name for each in NETWORKS}) == len(NETWORKS)


def test_every_shard_is_in_the_digest(copied: Path, tmp_path: Path) -> None:
    sharded(copied, lambda name: f"renamed-{name}")
    for file in list(copied.glob("*-of-*.safetensors")):
        file.rename(copied / f"renamed-{file.name}")
    folder = ModelFolder.open(copied)
    shards = sorted(copied.glob("renamed-*"))
    assert len(shards) == 2
    assert {*shards, copied / models.INDEX} <= set(folder.files)
    before = folder.sha256()
    content = bytearray(shards[1].read_bytes())
    content[-1] ^= 1
    shards[1].write_bytes(content)
    assert ModelFolder.open(copied).sha256() != before


def test_links_of_the_cache_of_hugging_face_are_followed(good: Path, tmp_path: Path) -> None:
    """There every file of a snapshot is a link to a file of the same model's folder ``blobs``."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1234", tmp_path / "models--a--b" / "blobs"
    shutil.copytree(good, snapshot)
    sharded(snapshot)
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(Path("..", "..", "blobs", str(number)))
    loaded(snapshot)


def test_a_run_of_an_odd_folder_ends_in_sentences(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from fixedpoint.cli.main import app

    configured(copied, layers_per_block=10**6)
    Path("study.yaml").write_text(
        json.dumps(
            {
                "tasks": [{"name": "sampling", "model": {"name": "diffusers", "path": str(copied)}}],
                "solvers": ["serial"],
            }
        )
    )
    done = CliRunner().invoke(app, ["run", "study.yaml", "-o", "out"], catch_exceptions=False)
    assert done.exit_code == 1
    assert "config.json asks for more than" in " ".join(done.output.split())
    assert "Traceback" not in done.output
    done = CliRunner().invoke(app, ["sample", "--model", str(copied), "-o", "out2"], catch_exceptions=False)
    assert done.exit_code == 2
    assert "Traceback" not in done.output
