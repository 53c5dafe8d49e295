"""Schedulers by name in run files, and folders sampled by their own: both are the loops of diffusers, or a sentence."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)

import fixedpoint
from fixedpoint.chains.capabilities import HasCoefficients, HasGaussianSlopes
from fixedpoint.chains.coarse import HasCoarse, HasExtension, HasJumps
from fixedpoint.config.errors import ConfigError
from fixedpoint.config.runfile import load, to_yaml
from fixedpoint.core.options import OptionError
from fixedpoint.registry import registry
from fixedpoint.runs.plan import plan
from fixedpoint_diffusion import DDIMSchedule, draw_noise, row_seeds
from fixedpoint_diffusion.models.choices import DiffusersModel, FashionMNISTModel, MixtureModel
from fixedpoint_diffusion.schedules.by_name import SchedulerChoice
from fixedpoint_diffusion.task import Sampling

# Some schedulers compute with numpy as it was.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

EVERY = sorted(name for name in dir(diffusers) if name.endswith("Scheduler"))
# Those with tables as they are made by their name, or without clipping.
PROBED = {
    *("CMStochasticIterativeScheduler", "CogVideoXDDIMScheduler", "DDIMParallelScheduler", "DDIMScheduler"),
    *("DDPMParallelScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler"),
    *("DPMSolverSinglestepScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"),
    *("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "FlowMapEulerDiscreteScheduler"),
    *("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"),
    *("HeunDiscreteScheduler", "IPNDMScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler"),
    *("LCMScheduler", "LMSDiscreteScheduler", "LTXEulerAncestralRFScheduler", "MiniMaxH3Scheduler"),
    *("PNDMScheduler", "SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler"),
}
STEPS, ROWS = 5, 2
# By name, as tasks declare them.
ABILITIES = {
    "coarse": HasCoarse,
    "jumps": HasJumps,
    "extension": HasExtension,
    "coefficients": HasCoefficients,
    "gaussian-slopes": HasGaussianSlopes,
}


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()


@pytest.fixture(scope="module")
def bare(unet: UNet2DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "bare"
    unet.save_pretrained(folder)
    return folder


def looped(unet: UNet2DModel, scheduler: Any, noise: Iterable[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The loop of the pipelines, with the given draws of noise."""
    drawn = iter(noise)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)

    def randn(*size: Any, **others: Any) -> torch.Tensor:
        return next(drawn)

    with torch.no_grad():
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            output = unet(scaled, t).sample
            given = {"eta": 0.0} if "eta" in inspect.signature(scheduler.step).parameters else {}
            with mock.patch("torch.randn", randn):
                x = scheduler.step(output, t, x, **given).prev_sample
    return x


def assert_is_the_loop(task: Sampling, unet: UNet2DModel, scheduler: Any, **steps: Any) -> None:
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(**(steps or {"num_inference_steps": STEPS}))
    x, noise = draw_noise(row_seeds(0, ROWS), (1, 8, 8), task.sampler.draws)
    expected = looped(unet, scheduler, () if noise is None else noise.unbind(1), x)
    with torch.no_grad():
        found = fixedpoint.solve(task.problem(0), solver="serial").z[:, -1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def written(folder: Path, scheduler: str, model: str, **options: str) -> Path:
    more = "".join(f", {key}: {value}" for key, value in options.items())
    text = (
        f"tasks:\n  - {{name: sampling, model: {model}, num_inference_steps: {STEPS}, batch: {ROWS}{more},\n"
        f"     scheduler: {scheduler}}}\nsolvers: [serial, parareal, {{name: chain, preconditioner: coefficient}}]\n"
    )
    (folder / "run.yaml").write_text(text)
    return folder / "run.yaml"


def refusal(folder: Path, scheduler: str, model: str = "fashion-mnist", **options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(written(folder, scheduler, model, **options))
    (mistake,) = caught.value.mistakes
    return f"{mistake.where}: {mistake.sentence}"


@pytest.mark.parametrize("name", EVERY)
def test_every_scheduler_by_name_is_its_loop_or_a_sentence(
    name: str, bare: Path, unet: UNet2DModel, tmp_path: Path
) -> None:
    taken = inspect.signature(getattr(diffusers, name).__init__).parameters
    # Of what clips, DDIM and DDPM are samplers as they are.
    clips = () if name in ("DDIMScheduler", "DDPMScheduler") else ("clip_sample", "clip_denoised")
    settings = {each: False for each in clips if each in taken}
    said = "".join(f", {key}: false" for key in settings)
    try:
        config = load(written(tmp_path, f"{{name: {name}{said}}}", f"{{name: diffusers, path: {bare}}}"))
    except ConfigError as error:
        (mistake,) = error.mistakes
        assert mistake.where.startswith("tasks[0].scheduler")
        assert name not in PROBED
        assert re.search(r"requires|is no affine|cannot be|must|has no", mistake.sentence), mistake.sentence
        return
    assert name in PROBED
    task = registry.create("task", config.tasks[0].config)
    assert_is_the_loop(task, unet, getattr(diffusers, name)(**settings))
    # the file with every default filled in is the same request
    (tmp_path / "again.yaml").write_text(to_yaml(config.plain()))
    again = load(tmp_path / "again.yaml")
    assert [cell.hash for cell in plan(again)] == [cell.hash for cell in plan(config)]
    # and what is promised is what the chain can do
    chain = task.problem(0).chain
    able = {ability for ability, base in ABILITIES.items() if isinstance(chain, base)}
    assert task.provides - {"chain"} == able - ({"gaussian-slopes"} if chain.levels is None else set())


@pytest.mark.parametrize(
    ("scheduler", "sentence"),
    [
        (
            "EulerScheduler",
            'scheduler.name: is no scheduler of diffusers: "EulerScheduler"; '
            "did you mean EulerAncestralDiscreteScheduler or EulerDiscreteScheduler or",
        ),
        (
            "{name: EulerDiscreteScheduler, use_karras: true}",
            r'scheduler.use_karras: is no setting of EulerDiscreteScheduler; did you mean "use_karras_sigmas"\?',
        ),
        (
            "{name: EulerDiscreteScheduler, use_karras_sigmas: sure}",
            "scheduler.use_karras_sigmas: must be true or false or null, got 'sure'",
        ),
        (
            "{name: DPMSolverMultistepScheduler, solver_order: 2.5}",
            "scheduler.solver_order: must be an integer, got 2.5",
        ),
        (
            "{name: EulerDiscreteScheduler, beta_schedule: sigmoid}",
            "scheduler: cannot be built: NotImplementedError: sigmoid is not implemented",
        ),
        ("{use_karras_sigmas: true}", "scheduler: requires a name, that of a scheduler of diffusers"),
        ("5", "scheduler: must be a string or a mapping or null, got 5"),
        (
            "{name: EulerDiscreteScheduler, prediction_type: epsilon}",
            "scheduler: must have the model's own prediction_type 'v_prediction', got 'epsilon'",
        ),
        (
            "{name: UniPCMultistepScheduler, beta_end: 0.03}",
            "scheduler: must have the noise levels the model was trained with",
        ),
        (
            "{name: UniPCMultistepScheduler, use_flow_sigmas: true}",
            "scheduler: must have noise levels of a training in steps .*has noise levels of flow matching",
        ),
        ("EDMEulerScheduler", "EDMEulerScheduler has noise levels given as sigmas"),
        ("DDIMInverseScheduler", "scheduler: cannot be DDIMInverseScheduler, which leads from images to noise"),
        (
            "{name: UniPCMultistepScheduler, thresholding: true}",
            "scheduler: cannot be used: UniPCMultistepScheduler has thresholding=True: it changes the clean image",
        ),
    ],
)
def test_a_scheduler_that_cannot_be_is_a_sentence(scheduler: str, sentence: str, tmp_path: Path) -> None:
    assert re.search(sentence, refusal(tmp_path, scheduler))


def test_the_place_of_a_mistake_is_that_of_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run.yaml:3:48: tasks\[0\].scheduler.use_karras: "):
        load(written(tmp_path, "{name: EulerDiscreteScheduler, use_karras: true}", "fashion-mnist"))


@pytest.mark.parametrize(
    ("scheduler", "options", "sentence"),
    [
        ("PNDMScheduler", {"timesteps": "[900, 20]"}, "timesteps: must be null: PNDMScheduler takes no timesteps"),
        ("PNDMScheduler", {"sigmas": "[9, 1]"}, "sigmas: must be null: PNDMScheduler takes no sigmas"),
        ("DDIMScheduler", {"sigmas": "[9, 1]"}, "sigmas: must be null: DDIM takes timesteps only"),
        ("EulerDiscreteScheduler", {"eta": "0.5"}, "eta: must be 0: the steps of EulerDiscreteScheduler take no eta"),
        ("EulerDiscreteScheduler", {"schedule": "{}"}, "schedule: is that of DDIM"),
        (
            "EulerDiscreteScheduler",
            {"timesteps": "[900, 20]"},
            "timesteps: are 2, which does not go with num_inference_steps = 5",
        ),
    ],
)
def test_an_option_that_the_scheduler_has_not_is_a_sentence(
    scheduler: str, options: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    assert sentence in refusal(tmp_path, scheduler, **options)


def test_a_mixture_needs_noise_levels(tmp_path: Path) -> None:
    said = refusal(tmp_path, "FlowMatchEulerDiscreteScheduler", "gaussian-mixture")
    assert "scheduler: must have the noise levels of betas, which this model requires" in said


def test_what_is_not_given_is_as_in_the_models_own_scheduler() -> None:
    """As ``from_config`` of diffusers does it; what is given wins."""
    model = FashionMNISTModel()
    task = Sampling(model=model, scheduler={"name": "UniPCMultistepScheduler", "timestep_spacing": "trailing"})
    expected = UniPCMultistepScheduler.from_config(
        DDIMScheduler.from_pretrained(model.folder.path).config, timestep_spacing="trailing"
    )
    own = inspect.signature(UniPCMultistepScheduler.__init__).parameters
    theirs = {key: value for key, value in expected.config.items() if key in own}
    ours = {key: value for key, value in task.sampler.scheduler.config.items() if key in theirs}
    assert ours == theirs
    assert ours["prediction_type"] == "v_prediction"


def test_levels_are_those_of_the_models_scheduler_where_its_file_says_nothing() -> None:
    """LCM has defaults of its own for the variances, which must not replace those of DDIM."""
    found = SchedulerChoice("LCMScheduler").build({"_class_name": "DDIMScheduler"})
    assert (found.config.beta_schedule, found.config.beta_end) == ("linear", 0.02)


def test_choices_are_values() -> None:
    one, other = (SchedulerChoice({"name": "EulerDiscreteScheduler", "use_karras_sigmas": on}) for on in (True, False))
    again = SchedulerChoice({"use_karras_sigmas": True, "name": "EulerDiscreteScheduler"})
    assert one == again
    assert hash(one) == hash(again)
    assert one != other
    assert SchedulerChoice("EulerDiscreteScheduler") == {"name": "EulerDiscreteScheduler"}
    assert repr(one) == "EulerDiscreteScheduler(use_karras_sigmas=True)"


def test_a_named_ddim_scheduler_is_the_default_bit_for_bit() -> None:
    """With eta, too: the same seeds in the same order."""
    for eta in (0.0, 1.0):
        default = Sampling(model=MixtureModel(), num_inference_steps=6, batch=2, eta=eta)
        named = Sampling(model=MixtureModel(), num_inference_steps=6, batch=2, eta=eta, scheduler="DDIMScheduler")
        one, other = (fixedpoint.solve(task.problem(3), solver="serial").z for task in (default, named))
        assert torch.equal(one, other)
        assert named.provides == default.provides == Sampling.provides


def test_eta_goes_to_steps_that_take_it() -> None:
    x, noise = draw_noise(row_seeds(0, 2), (16,), 6, dtype=torch.float64)
    model = MixtureModel()
    scheduler = {"name": "DDIMParallelScheduler", "clip_sample": False}
    task = Sampling(model=model, scheduler=scheduler, eta=0.7, num_inference_steps=6, batch=2, dtype="float64")
    plain = DDIMSchedule(clip_sample=False)
    ddim = Sampling(model=model, schedule=plain, eta=0.7, num_inference_steps=6, batch=2, dtype="float64")
    one, other = (fixedpoint.solve(each.problem(0), solver="serial").z[:, -1] for each in (task, ddim))
    assert torch.equal(task.problem(0).x0, x)
    assert noise is not None
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("scheduler", "options", "arguments"),
    [
        ("EulerDiscreteScheduler", {"sigmas": (10.0, 3.0, 1.0, 0.2, 0.0)}, {"sigmas": [10.0, 3.0, 1.0, 0.2, 0.0]}),
        ("DPMSolverMultistepScheduler", {"timesteps": (900, 500, 300, 20)}, {"timesteps": [900, 500, 300, 20]}),
        ("HeunDiscreteScheduler", {"num_inference_steps": 4}, {"num_inference_steps": 4}),
    ],
)
def test_steps_of_ones_own(
    scheduler: str, options: dict[str, Any], arguments: dict[str, Any], bare: Path, unet: UNet2DModel
) -> None:
    task = Sampling(model=DiffusersModel(path=str(bare)), scheduler=scheduler, batch=ROWS, **options)
    assert_is_the_loop(task, unet, getattr(diffusers, scheduler)(), **arguments)


def test_cells_that_a_memory_rules_out_are_skipped_when_the_run_is_planned(tmp_path: Path) -> None:
    for scheduler, skipped in (("UniPCMultistepScheduler", 2), ("EulerDiscreteScheduler", 1), ("DDIMScheduler", 0)):
        cells = plan(load(written(tmp_path, scheduler, "fashion-mnist")))
        reasons = [cell.skip for cell in cells if cell.skip]
        assert len(reasons) == skipped
        assert all("which sampling does not provide" in reason for reason in reasons)


FOLDERS = [
    (PNDMScheduler, {}),
    (PNDMScheduler, {"skip_prk_steps": True, "steps_offset": 1}),
    (EulerDiscreteScheduler, {"use_karras_sigmas": True, "timestep_spacing": "trailing"}),
    (EulerAncestralDiscreteScheduler, {"beta_schedule": "scaled_linear"}),
    (UniPCMultistepScheduler, {"beta_start": 0.001}),
    (DPMSolverMultistepScheduler, {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}),
    (FlowMatchEulerDiscreteScheduler, {"shift": 3.0}),
    (LCMScheduler, {}),
    (DDPMScheduler, {"clip_sample": False}),
    (DDPMScheduler, {}),
    (DDPMScheduler, {"thresholding": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    (DDPMScheduler, {"variance_type": "fixed_small_log", "clip_sample_range": 0.5, "steps_offset": 1}),
]


@pytest.mark.parametrize(("made", "settings"), FOLDERS)
def test_a_folder_is_sampled_by_its_own_scheduler(
    made: Any, settings: dict[str, Any], unet: UNet2DModel, tmp_path: Path
) -> None:
    scheduler = made(**settings)
    unet.save_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path)
    task = Sampling(model=DiffusersModel(path=str(tmp_path)), num_inference_steps=STEPS, batch=ROWS)
    assert task.notes() == ()
    assert_is_the_loop(task, unet, scheduler)


def test_another_scheduler_in_the_place_of_the_folders_own(unet: UNet2DModel, tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path)
    model = DiffusersModel(path=str(tmp_path))
    flow = {"name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    task = Sampling(model=model, scheduler={**flow, "flow_shift": 3.0}, num_inference_steps=STEPS, batch=ROWS)
    expected = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    assert_is_the_loop(task, unet, expected)
    with pytest.raises(OptionError, match="noise levels of flow matching, as the model's own FlowMatchEuler"):
        Sampling(model=model, scheduler="EulerDiscreteScheduler")


def test_a_folder_whose_own_scheduler_cannot_be_solved_for_says_what_to_do(unet: UNet2DModel, tmp_path: Path) -> None:
    unet.save_pretrained(tmp_path)
    UniPCMultistepScheduler(thresholding=True).save_pretrained(tmp_path)
    model = DiffusersModel(path=str(tmp_path))
    sentence = (
        "model has a scheduler of its own, UniPCMultistepScheduler, that cannot be used: .*scheduler: names another"
    )
    with pytest.raises(OptionError, match=sentence):
        Sampling(model=model)
    Sampling(model=model, scheduler={"name": "UniPCMultistepScheduler", "thresholding": False})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"_class_name": "EulerScheduler"}, "is no scheduler of diffusers"),
        ({"beta_schedule": "sigmoid"}, "cannot be built: NotImplementedError"),
    ],
)
def test_a_folder_with_a_scheduler_that_is_none(
    change: dict[str, str], sentence: str, unet: UNet2DModel, tmp_path: Path
) -> None:
    unet.save_pretrained(tmp_path)
    EulerDiscreteScheduler().save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(OptionError, match=f"path cannot be used: the scheduler of .* {sentence}"):
        DiffusersModel(path=str(tmp_path))
