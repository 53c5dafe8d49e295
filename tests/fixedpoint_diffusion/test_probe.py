"""Tables of samplers: a run from them is the scheduler's own loop, for every scheduler of diffusers that has tables."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_cases import (
    EVERY,
    HISTORY,
    KINDS,
    NOISE_LEVELS,
    PREDICTIONS,
    arguments_of_steps,
    difference,
    images,
    made,
    network,
)

from fixedpoint_diffusion import SamplerTables, sampler_tables
from fixedpoint_diffusion.samplers.recurrence import local_form, serial_run

# Some schedulers compute with numpy as it was.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def looped(
    scheduler: Any, x: torch.Tensor, noise: torch.Tensor, dtype: torch.dtype, step_kwargs: Mapping[str, Any]
) -> torch.Tensor:
    """The scheduler's own loop as pipelines write it; inputs ``u_1 .. u_{K-1}`` and the sample."""
    drawn = iter(noise.unbind(1))

    def randn(*size: Any, dtype: torch.dtype | None = None, **others: Any) -> torch.Tensor:
        return next(drawn).to(dtype or torch.float32)

    x, inputs = x.to(dtype) * getattr(scheduler, "init_noise_sigma", 1.0), []
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        inputs.append(scaled)
        with mock.patch("torch.randn", randn):
            x = scheduler.step(network(scaled, t).to(dtype), t, x, **step_kwargs).prev_sample
    return torch.stack([*inputs[1:], x], dim=1).double()


def assert_is_its_own_loop(
    make: Callable[[], Any],
    count: int | None,
    seed: int = 0,
    step_kwargs: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> SamplerTables | None:
    """None where it is refused; then its own loop must fail or end in what is not finite."""
    step_kwargs = step_kwargs or {}
    counted = {} if count is None else {"num_inference_steps": count}
    scheduler = make()

    def loop(dtype: torch.dtype, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        fresh = copy.deepcopy(scheduler)
        fresh.set_timesteps(**counted, **arguments)
        return looped(fresh, x, noise, dtype, step_kwargs)

    try:
        tables = sampler_tables(scheduler, count, step_kwargs=step_kwargs, **arguments)
    except ValueError as refused:
        assert_fails_by_itself(lambda: loop(torch.float64, *images(200, seed)), str(refused))
        return None
    x_0, noise = images(len(tables.draws), seed)
    expected = loop(torch.float64, x_0, noise)
    narrow = difference(loop(torch.float32, x_0, noise), expected)
    found = serial_run(tables, lambda u, j: network(u, tables.timesteps[j]), x_0, noise)
    assert difference(found, expected) <= max(2e-5 if "DPM" in tables.scheduler else 2e-6, 3 * narrow)
    assert found.shape[1] == expected.shape[1] == tables.evaluations
    assert torch.equal(tables.weights, tables.weights.tril(-1))
    return tables


def assert_fails_by_itself(loop: Callable[[], torch.Tensor], sentence: str) -> None:
    if "not finite" in sentence:
        assert not loop().isfinite().all()
    else:
        assert "no affine recurrence" not in sentence
        with pytest.raises(Exception) as own:  # noqa: PT011
            loop()
        assert str(own.value).strip().splitlines()[0] in sentence


@pytest.mark.parametrize("name", EVERY)
def test_every_scheduler_has_tables_or_a_sentence(name: str) -> None:
    try:
        scheduler = made(name)
    except ImportError:
        assert name in ("CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler")  # torchsde is not installed
        return
    if name not in HISTORY:
        with pytest.raises(ValueError, match=rf"^{name} "):
            sampler_tables(scheduler, 10)
        return
    tables = assert_is_its_own_loop(lambda: made(name), 10)
    assert tables is not None
    assert tables.history == HISTORY[name]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6)
@given(data=st.data(), count=st.integers(2, 60), seed=st.integers(0, 10**6))
def test_a_run_from_the_tables_is_the_schedulers_own_loop(
    kind: str, data: st.DataObject, count: int, seed: int
) -> None:
    name, chosen = data.draw(KINDS[kind])
    step_kwargs = data.draw(arguments_of_steps(name))
    assert_is_its_own_loop(lambda: made(name, **chosen), count, seed, step_kwargs)


@pytest.mark.parametrize(
    ("name", "chosen", "arguments"),
    [
        ("DDPMScheduler", {}, {"timesteps": [900, 500, 30, 2]}),
        ("EulerDiscreteScheduler", {}, {"timesteps": [900, 500, 30, 2]}),
        ("EulerDiscreteScheduler", {}, {"sigmas": [14.0, 5.0, 0.7, 0.1, 0.0]}),
        ("HeunDiscreteScheduler", {}, {"timesteps": [900, 500, 30, 2]}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, {"timesteps": [900, 700, 500, 200, 30]}),
        ("LCMScheduler", {"original_inference_steps": 100}, {"timesteps": [999, 499, 9]}),
        ("LCMScheduler", {}, {"timesteps": [999, 519, 39]}),
        ("TCDScheduler", {}, {"timesteps": [999, 519, 39]}),
        ("FlowMatchEulerDiscreteScheduler", {}, {"sigmas": [1.0, 0.6, 0.1]}),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, {"sigmas": [1.0, 0.6, 0.1], "mu": 0.8}),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, {"sigmas": np.array([1.0, 0.6, 0.3, 0.1])}),
    ],
)
def test_arguments_of_set_timesteps(name: str, chosen: dict[str, Any], arguments: dict[str, Any]) -> None:
    assert assert_is_its_own_loop(lambda: made(name, **chosen), None, **arguments) is not None


@pytest.mark.parametrize(
    ("make", "q"),
    [
        (lambda: made("DDIMScheduler"), 1),
        (lambda: DPMSolverMultistepScheduler(solver_order=1), 1),
        (lambda: DPMSolverMultistepScheduler(), 2),
        (lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), 2),
        (lambda: DPMSolverMultistepScheduler(solver_order=3), 3),
        (lambda: HeunDiscreteScheduler(use_karras_sigmas=True), 2),
        (lambda: UniPCMultistepScheduler(solver_order=2), 3),
        (lambda: UniPCMultistepScheduler(solver_order=3), 4),
        (lambda: PNDMScheduler(skip_prk_steps=True), 4),
        (lambda: PNDMScheduler(), None),
        (lambda: LMSDiscreteScheduler(), 4),
        (lambda: EulerAncestralDiscreteScheduler(), 1),
    ],
)
def test_the_local_form_says_the_same_as_the_tables(make: Callable[[], Any], q: int | None) -> None:
    tables = sampler_tables(make(), 20)
    assert tables.history == q
    if q is None:
        return
    if q > 1:
        assert local_form(tables, q - 1) is None
    form = local_form(tables, q)
    assert form is not None
    # Followed from the start, it gives back every coefficient, those of the noise included.
    rows, count = [tables.joined[0]], tables.evaluations
    for j in range(count):
        row = torch.zeros_like(rows[0])
        for i in range(min(q, j + 1)):
            row += form.inputs[j, i] * rows[j - i]
            row[1 + j - i] += form.outputs[j, i]
        row[1 + count :] += form.noise[j]
        rows.append(row)
        # noise that an earlier input contains is inherited through it alone
        assert not form.noise[j][(tables.noise[: j + 1] != 0).any(0)].any()
    expected = tables.joined
    assert float(((torch.stack(rows) - expected).abs() / expected.abs().amax(1, keepdim=True)).max()) < 1e-7


def test_q_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="q must be at least 1, got 0"):
        local_form(sampler_tables(made("DDIMScheduler"), 3), 0)


@pytest.mark.parametrize("make", [EulerAncestralDiscreteScheduler, PNDMScheduler, UniPCMultistepScheduler])
def test_a_row_alone_has_the_bits_that_it_has_in_a_batch(make: Callable[[], Any]) -> None:
    tables = sampler_tables(make(), 6)
    x_0, noise = images(len(tables.draws), 0, rows=3)

    def run(rows: slice) -> torch.Tensor:
        return serial_run(tables, lambda u, j: network(u, tables.timesteps[j]), x_0[rows].float(), noise[rows])

    assert torch.equal(run(slice(1, 2)), run(slice(None))[1:2])


def test_noise_belongs_to_its_draw() -> None:
    tables = sampler_tables(DDPMScheduler(clip_sample=False), 5)
    assert tables.stochastic
    assert tables.draws == (0, 1, 2, 3)  # DDPM draws none in its last step
    assert tables.draws_per_step == (1, 1, 1, 1, 0)
    x_0, noise = images(4, 0)
    for given_noise in (None, noise[:, :3]):
        with pytest.raises(ValueError, match=r"noise must have shape \(2, 4, 2, 3, 4\)"):
            serial_run(tables, lambda u, _: u, x_0, given_noise)
    ancestral = sampler_tables(EulerAncestralDiscreteScheduler(), 5)
    assert ancestral.draws == (0, 1, 2, 3, 4)
    assert bool((ancestral.noise[:, 4] == 0).all())  # drawn, and multiplied by 0


@pytest.mark.parametrize("levels", NOISE_LEVELS)
def test_states_and_start_are_the_schedulers_own(levels: dict[str, Any]) -> None:
    tables = sampler_tables(EulerDiscreteScheduler(**levels), 7)
    scheduler = EulerDiscreteScheduler(**levels)
    scheduler.set_timesteps(7)
    assert tables.init_noise_sigma == pytest.approx(float(scheduler.init_noise_sigma))
    assert torch.equal(tables.timesteps, scheduler.timesteps)
    scale = (scheduler.sigmas.double() ** 2 + 1).sqrt()
    assert float(tables.starts[0]) == pytest.approx(tables.init_noise_sigma / float(scale[0]))
    # Each input is the state before it, scaled; the sample is not.
    rows = tables.states.joined / torch.cat([scale[1:7], torch.ones(1, dtype=torch.float64)]).unsqueeze(1)
    torch.testing.assert_close(rows, tables.joined[1:], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        *(lambda p=p: made("DDIMScheduler", prediction_type=p) for p in PREDICTIONS),
        *(lambda p=p: EulerDiscreteScheduler(prediction_type=p, use_karras_sigmas=True) for p in PREDICTIONS),
        *(lambda p=p: DPMSolverMultistepScheduler(prediction_type=p, solver_order=3) for p in PREDICTIONS),
        *(lambda p=p: made("EDMEulerScheduler", prediction_type=p) for p in PREDICTIONS[:2]),
        lambda: made("KDPM2AncestralDiscreteScheduler"),
        lambda: UniPCMultistepScheduler(),
        lambda: HeunDiscreteScheduler(),
        lambda: LMSDiscreteScheduler(),
        lambda: EulerAncestralDiscreteScheduler(),
        lambda: made("LCMScheduler"),
        lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
        lambda: made("FlowMatchHeunDiscreteScheduler"),
        lambda: DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    ],
)
def test_a_network_that_knows_the_image_leads_to_it(make: Callable[[], Any]) -> None:
    """The levels say how an output implies a clean image; where all outputs imply the same one, that is the sample."""
    tables = sampler_tables(make(), 12)
    levels = tables.levels
    assert levels is not None
    x_0, noise = images(len(tables.draws), 3)
    clean = torch.linspace(-1, 1, x_0[0].numel(), dtype=torch.float64).view(1, *x_0.shape[1:]).expand_as(x_0)

    def predict(u: torch.Tensor, j: int) -> torch.Tensor:
        return (clean - levels.clean_input[j] * u) / levels.clean_output[j]

    sample = serial_run(tables, predict, x_0, noise)[:, -1]
    torch.testing.assert_close(sample, clean, rtol=0, atol=0.02 if tables.scheduler == "DDIMScheduler" else 1e-4)


def test_levels_are_those_of_the_schedule() -> None:
    tables = sampler_tables(made("DDIMScheduler"), 10)
    assert tables.levels is not None
    share = DDIMScheduler().alphas_cumprod.double()[tables.timesteps]
    torch.testing.assert_close(tables.levels.signal, share.sqrt())
    torch.testing.assert_close(tables.levels.noise, (1 - share).sqrt())
    flow = sampler_tables(FlowMatchEulerDiscreteScheduler(shift=3.0), 10)
    assert flow.levels is not None
    assert flow.prediction_type == "flow_prediction"
    torch.testing.assert_close(flow.levels.noise, flow.timesteps.double() / 1000, rtol=1e-6, atol=0)
    torch.testing.assert_close(flow.levels.signal, 1 - flow.timesteps.double() / 1000, rtol=1e-5, atol=1e-6)


def frozen(value: Any) -> Any:
    """What an object is made of, for comparison."""
    if isinstance(value, torch.Tensor):
        return ("tensor", value.dtype, tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, Mapping):
        return {key: frozen(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [frozen(each) for each in value]
    return value


@pytest.mark.parametrize(
    "name", ["PNDMScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler", "SASolverScheduler"]
)
def test_the_scheduler_itself_is_not_changed_nor_is_the_random_state(name: str) -> None:
    scheduler = made(name)
    scheduler.set_timesteps(9)
    x = torch.zeros(1, 2, 3, 4)
    for t in scheduler.timesteps[:3]:  # with a history of its own
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    before, state = frozen(vars(scheduler)), torch.get_rng_state()
    stopped = sampler_tables(scheduler)
    sampler_tables(scheduler, 4)
    assert frozen(vars(scheduler)) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(stopped.joined, sampler_tables(made(name), 9).joined)


def test_a_scheduler_is_taken_as_it_was_set() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    assert sampler_tables(scheduler).evaluations == 50
    scheduler.set_shift(3.0)
    scheduler.set_timesteps(6)
    assert torch.equal(sampler_tables(scheduler).timesteps, scheduler.timesteps)
    euler = EulerDiscreteScheduler()
    euler.config.use_karras_sigmas = True
    expected = sampler_tables(EulerDiscreteScheduler(use_karras_sigmas=True), 6)
    assert torch.equal(sampler_tables(euler, 6).joined, expected.joined)
    scheduler.set_timesteps(sigmas=[1.0, 0.9, 0.1])
    with pytest.raises(ValueError, match=r"its timesteps are not those that set_timesteps\(3\) sets"):
        sampler_tables(scheduler)


class Halved(EulerDiscreteScheduler):
    """Somebody's own, and affine."""

    def step(self, model_output: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        return super().step(0.5 * model_output, *arguments, **options)


class Overwriting(EulerDiscreteScheduler):
    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **options: Any) -> Any:
        stepped = super().step(model_output.mul_(0.5), timestep, sample, **options)
        sample.zero_()
        return stepped


class Bent(DDIMScheduler):
    def step(self, model_output: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        return super().step(torch.tanh(model_output), *arguments, **options)


class Shifted(DDIMScheduler):
    """Affine, with a part that is no image: 0 at every unit vector is what it is not."""

    def step(self, model_output: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        return super().step(model_output + 1.0, *arguments, **options)


class Uniform(DDIMScheduler):
    def step(self, model_output: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        return super().step(model_output + torch.rand(model_output.shape), *arguments, **options)


class OnePerRow(DDIMScheduler):
    def step(self, model_output: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        return super().step(model_output + torch.randn(len(model_output), 1, 1, 1), *arguments, **options)


class InPlace(DDIMScheduler):
    def step(self, model_output: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        drawn = torch.empty_like(model_output).normal_(std=2.0) + torch.randn_like(model_output)
        return super().step(model_output + drawn, *arguments, **options)


def test_schedulers_of_strangers() -> None:
    assert assert_is_its_own_loop(Halved, 9) is not None
    halved = sampler_tables(Halved(), 9)
    assert torch.equal(sampler_tables(Overwriting(), 9).joined, halved.joined)
    assert torch.equal(sampler_tables(Overwriting(), 9).states.joined, halved.states.joined)
    tables = sampler_tables(InPlace(clip_sample=False), 3)
    assert tables.draws == (0, 0, 1, 1, 2, 2)
    torch.testing.assert_close(tables.noise[:, ::2], 2 * tables.weights)
    torch.testing.assert_close(tables.noise[:, 1::2], tables.weights)


def changed(scheduler: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(scheduler, name, value)
    return scheduler


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: DDIMScheduler(), "DDIMScheduler has clip_sample=True: .*clip_sample=False, or sample .* ddim_problem"),
        (lambda: DDPMScheduler(), "DDPMScheduler has clip_sample=True"),
        (lambda: DPMSolverMultistepScheduler(thresholding=True), "has thresholding=True"),
        (lambda: made("DDPMScheduler", variance_type="learned_range"), "has variance_type='learned_range'"),
        (lambda: Bent(clip_sample=False), "Bent is no affine recurrence: on random images"),
        (lambda: Shifted(clip_sample=False), "Shifted is no affine recurrence: on random images"),
        (lambda: Uniform(clip_sample=False), "Uniform is no affine recurrence: its step draws by torch.rand, not"),
        (lambda: OnePerRow(clip_sample=False), "its step draws noise of shape .1, 1, 1, 1. for images of shape"),
        (lambda: made("UnCLIPScheduler"), "is told by its pipelines where every step leads"),
        (lambda: made("RePaintScheduler"), "missing 2 required positional arguments: 'original_image' and 'mask'"),
        (lambda: made("LCMScheduler"), "cannot be stepped as it is set: ValueError: The combination of"),
        (
            lambda: UniPCMultistepScheduler(solver_type="bh1"),
            "makes the sample of coefficients .* not finite; final_sig",
        ),
        (lambda: changed(made("DDIMScheduler"), step=print), "its step was replaced by hand; derive a class"),
        (lambda: changed(made("DDIMScheduler"), alphas_cumprod=torch.ones(1000)), "alphas_cumprod was changed by hand"),
        (lambda: changed(made("DDPMScheduler"), variance_type="fixed_large"), "variance_type was changed by hand"),
        (lambda: changed(made("DDIMScheduler"), init_noise_sigma=2.0), "init_noise_sigma was changed by hand"),
    ],
)
def test_what_has_no_tables_is_refused_with_a_sentence(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        sampler_tables(make(), 60)


@pytest.mark.parametrize(
    ("given_object", "sentence"),
    [
        (DDIMScheduler, "got the class DDIMScheduler itself; pass an instance"),
        (None, "requires a scheduler of diffusers, got NoneType"),
        ({"beta_schedule": "linear"}, "requires a scheduler of diffusers, got dict"),
    ],
)
def test_what_is_no_scheduler_is_refused(given_object: Any, sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        sampler_tables(given_object)


def test_a_pipeline_is_refused() -> None:
    unet = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    with pytest.raises(TypeError, match=r"got a whole DDIMPipeline; pass pipeline\.scheduler"):
        sampler_tables(DDIMPipeline(unet, DDIMScheduler()))


@pytest.mark.parametrize("value", [torch.Generator(), torch.ones(2)])
def test_noise_is_no_argument_of_the_steps(value: Any) -> None:
    with pytest.raises(ValueError, match="step_kwargs may contain numbers and the like, got generator, a"):
        sampler_tables(made("DDIMScheduler"), 4, step_kwargs={"generator": value})
