"""The task ``sampling`` with a whole pipeline: its reference is the pipeline's own call, and mistakes are sentences."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipelines import pipeline

import fixedpoint
from fixedpoint.chains import BlockSecant, ChainSolver
from fixedpoint.config.errors import ConfigError
from fixedpoint.config.runfile import RunConfig, load, to_yaml
from fixedpoint.core.options import OptionError
from fixedpoint.registry import registry
from fixedpoint.runs.plan import plan
from fixedpoint.runs.run import execute
from fixedpoint.runs.work import Work
from fixedpoint.tasks.task import Context, Result
from fixedpoint_diffusion import row_seeds
from fixedpoint_diffusion.fashion_mnist.pipeline import FashionMNISTPipeline
from fixedpoint_diffusion.models.folder import FolderError
from fixedpoint_diffusion.pipelines.model import PipelineModel
from fixedpoint_diffusion.task import Sampling

# Some schedulers compute with numpy as it was.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

JOINT = ChainSolver(accelerator=BlockSecant())
SIZE = {"height": 16, "width": 16}
# Pipeline, its options, those of the task, and the scheduler in its place.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sd1": ("sd1", {"prompt": ("a cat", "a dog"), "negative_prompt": "fog", "guidance_scale": 4.0, **SIZE}, {}),
    "rescaled": ("sd1", {"prompt": "a cat", "call": {"guidance_rescale": 0.5}, **SIZE}, {"scheduler": "PNDMScheduler"}),
    "eta": ("sd1", {"prompt": "a cat", **SIZE}, {"eta": 1.0}),
    "dit": ("dit", {"class_labels": (1, 2)}, {"scheduler": {"name": "DPMSolverMultistepScheduler"}}),
    "ddpm": ("ddpm", {}, {}),
    "flux": ("flux", {"prompt": "a cat", "call": {"max_sequence_length": 8}, **SIZE}, {"sigmas": (1.0, 0.7, 0.4, 0.2)}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pipelines")
    for name in ("sd1", "dit", "ddpm", "flux", "img2img"):
        pipeline(name, folder=root / name)
    return root


def task(folders: Path, case: str, **more: Any) -> Sampling:
    name, model, options = CASES[case]
    steps = {} if "sigmas" in options else {"num_inference_steps": 4}
    return Sampling(model=PipelineModel(path=str(folders / name), **model), batch=2, **steps, **options, **more)


def run(asked: Sampling, solver: fixedpoint.Solver, rtol: float = 1e-5, shared: dict[Any, Any] | None = None) -> Result:
    stop = fixedpoint.Termination(rtol=rtol)
    return asked.run(Context(solver=solver, termination=stop, seed=3, shared={} if shared is None else shared))


@pytest.mark.parametrize("case", CASES)
def test_the_reference_is_the_pipelines_own_call(folders: Path, case: str) -> None:
    asked = task(folders, case)
    shared: dict[Any, Any] = {}
    serial, joint = run(asked, fixedpoint.Serial(), shared=shared), run(asked, JOINT, shared=shared)
    pipe = asked.model.load(asked.scheduler, "cpu")
    generators = [torch.Generator().manual_seed(seed) for seed in row_seeds(3, 2)]
    name, model, options = CASES[case]
    call = {
        key: value for key, value in model.items() if key not in ("prompt", "negative_prompt", "class_labels", "call")
    }
    if "prompt" in model:
        call["prompt"] = [model["prompt"]] * 2 if isinstance(model["prompt"], str) else list(model["prompt"])
    call |= {"negative_prompt": ["fog"] * 2} if "negative_prompt" in model else {}
    call |= {"class_labels": [1, 2]} if name == "dit" else {}
    call |= {"batch_size": 2} if name == "ddpm" else {}
    call |= {"sigmas": list(options["sigmas"])} if "sigmas" in options else {"num_inference_steps": 4}
    call |= {"eta": 1.0} if "eta" in options else {}
    own = pipe(**call, **model.get("call", {}), generator=generators, output_type="np").images
    np.testing.assert_allclose(serial.images.pixels, own, rtol=0, atol=2e-6)
    steps = 13 if case == "rescaled" else 4  # PNDM begins with Runge-Kutta steps
    assert (serial.rounds, serial.evaluations, serial.metrics["relative_error"]) == (steps, 2 * steps, 0.0)
    assert serial.metrics["picture_error"] == 0.0
    np.testing.assert_array_equal(joint.reference.pixels, serial.images.pixels)
    assert joint.status == {"converged": 2}
    assert joint.metrics["relative_error"] < 1e-3
    assert float(np.abs(joint.images.pixels - own).max()) == pytest.approx(joint.metrics["picture_error"], abs=1e-5)
    assert np.abs(own[0] - own[1]).max() > 1e-2


def test_rows_have_seeds_of_their_own(folders: Path) -> None:
    """The first of two is the one of one, whatever the batch."""
    two = task(folders, "ddpm")
    one = Sampling(model=two.model, batch=1, num_inference_steps=4)
    np.testing.assert_allclose(
        run(one, fixedpoint.Serial()).images.pixels[0], run(two, fixedpoint.Serial()).images.pixels[0], atol=1e-5
    )


def test_the_bundled_pipeline_with_classes_by_name() -> None:
    asked = Sampling(model=PipelineModel(prompt=("bag", "3")), batch=3, num_inference_steps=4)
    found = run(asked, fixedpoint.Serial())
    generators = [torch.Generator().manual_seed(seed) for seed in row_seeds(3, 3)]
    own = FashionMNISTPipeline.bundled()(
        ["bag", "dress", "bag"], num_inference_steps=4, generator=generators, output_type="np"
    )
    np.testing.assert_allclose(found.images.pixels, own.images[..., 0], rtol=0, atol=2e-6)
    assert PipelineModel().conditions("prompt")[8] == "bag"


def written(folder: Path, text: str) -> Path:
    (folder / "run.yaml").write_text(text)
    return folder / "run.yaml"


def configured(folders: Path, *overrides: str) -> RunConfig:
    text = (
        "name: tiny\ntasks:\n  - {name: sampling, model: {name: pipeline, path: sd1, prompt: a cat, height: 16, "
        "width: 16}, num_inference_steps: 4, batch: 2}\nsolvers: [serial, {name: chain, window: 2}, auto, parareal]\n"
        "termination: {rtol: 1e-3}\n"
    )
    return load(written(folders, text), overrides)


def test_a_run_with_records_pictures_and_a_report(folders: Path, tmp_path: Path) -> None:
    outcome = execute(configured(folders), tmp_path / "out")
    assert outcome.ok, outcome.failures
    assert [record.status for record in outcome.records] == ["ok"] * 4
    digest = PipelineModel(path=str(folders / "sd1"), prompt="a cat").sha256
    assert all(record.config["task"]["model"]["sha256"] == digest for record in outcome.records)
    assert {"diffusers", "transformers"} <= set(outcome.records[0].made_by)
    again = execute(configured(folders), tmp_path / "out")
    assert again.reused == 4


def test_work_and_its_cells_can_be_sent_to_another_process(folders: Path) -> None:
    cells = plan(configured(folders, "tasks[0].model.call={guidance_rescale: 0.5}", "solvers=[serial]"))
    work, cell = pickle.loads(pickle.dumps((Work(1), cells[0])))
    finished = pickle.loads(pickle.dumps(work(cell)))
    assert finished.record.status == "ok"
    assert finished.record.hash == cells[0].hash
    built = registry.create("task", cells[0].task)
    assert pickle.loads(pickle.dumps(built)) == built


def test_the_resolved_file_says_the_same(folders: Path) -> None:
    config = configured(folders, "tasks[0].model.call={guidance_rescale: 0.5}", "tasks[0].model.prompt=[a, b]")
    again = load(written(folders, to_yaml(config.plain())))
    assert again.plain() == config.plain()
    assert again.tasks == config.tasks


def test_other_contents_are_another_pipeline(folders: Path, tmp_path: Path) -> None:
    pipeline("ddpm", folder=tmp_path / "model")
    before = PipelineModel(path=str(tmp_path / "model"))
    assert before.sha256 == PipelineModel(path=str(folders / "ddpm")).sha256
    config = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "beta_end": 0.03}))
    assert PipelineModel(path=str(tmp_path / "model")).sha256 != before.sha256
    with pytest.raises(FolderError, match="has changed since it was looked at"):
        before.load(None, "cpu")


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        ({"path": "nowhere"}, {}, r"path cannot be used: there is no folder nowhere"),
        ({"path": "sd1"}, {}, r"prompt is required: StableDiffusionPipeline is conditioned on text"),
        ({"path": "sd1", "prompt": ()}, {}, r"prompt must have at least one entry, got an empty list"),
        ({"path": "dit"}, {}, r"class_labels is required: DiTPipeline is conditioned on it"),
        ({"path": "dit", "class_labels": (1,), "height": 8}, {}, r"height must be null: DiTPipeline takes no height"),
        ({"path": "ddpm", "prompt": "a cat"}, {}, r"prompt must be null: DDPMPipeline takes no prompt"),
        ({"path": "ddpm", "dtype": "float8"}, {}, r"dtype must be one of"),
        ({"path": "img2img", "prompt": "a cat"}, {}, r"path cannot be used: \w+Img2ImgPipeline starts from images; "),
        (
            {"prompt": "sneeker"},
            {},
            r"prompt must be a class of fashion-mnist, got 'sneeker'; did you mean \"sneaker\"",
        ),
        ({"prompt": "bag", "call": {"etta": 1}}, {}, r"call.etta is no argument of FashionMNISTPipeline; did you mean"),
        ({"prompt": "bag", "call": {"prompt": "x"}}, {}, r"call.prompt is an option of the model itself"),
        ({"prompt": "bag", "call": {"latents": 1}}, {}, r"call.latents is set by the options of the task"),
        ({"sha256": "0"}, {}, r"sha256 says other files than fashion-mnist has now"),
        ({}, {"scheduler": "UniPC"}, r"scheduler.name is no scheduler of diffusers"),
        ({}, {"scheduler": {"name": "DDIMScheduler", "beta_end": 0.3}}, r"scheduler must "),
        ({}, {"timesteps": (9, 1)}, r"timesteps must be null: FashionMNISTPipeline takes no timesteps"),
        ({}, {"sigmas": (1.0, 0.5)}, r"sigmas must be null: FashionMNISTPipeline takes no sigmas"),
        ({"path": "ddpm"}, {"eta": 0.5}, r"eta must be 0: DDPMPipeline takes no eta"),
        ({}, {"dtype": "float64"}, r"dtype must be float32; the dtype of a pipeline's networks is model.dtype"),
        ({}, {"schedule": {}}, r"schedule must be null: a pipeline has a scheduler"),
    ],
)
def test_what_does_not_go_with_the_pipeline_is_refused_before_it_is_loaded(
    folders: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    monkeypatch.chdir(folders)
    with pytest.raises(OptionError, match=sentence):
        registry.create("task", {"name": "sampling", "model": {"name": "pipeline", **model}, **options})


def test_a_run_file_points_at_the_mistake(folders: Path) -> None:
    with pytest.raises(ConfigError, match=r"tasks\[0\].model.call.guidance_rescaling: is no argument of Stable"):
        configured(folders, "tasks[0].model.call={guidance_rescaling: 0.5}")
