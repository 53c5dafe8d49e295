"""Mixtures with classes, guidance, float timesteps and flow predictions, against densities and closed forms."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from draws import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fixedpoint
from fixedpoint.chains import ChainAdjoint
from fixedpoint_diffusion import DDIMSchedule, GaussianMixture, ddim_problem, sampler_tables
from fixedpoint_diffusion.samplers.recurrence import serial_run

SIZE, COMPONENTS = 4, 6
CLASSES = torch.tensor([0, 3, 1, 0, 3, 3])
PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")
BETAS: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SEEDS = st.integers(0, 10**6)


def mixture(seed: int, kind: Any = "epsilon", classes: Tensor | None = CLASSES) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(COMPONENTS, SIZE, generator=generator, dtype=torch.float64)
    variances, weights = 0.05 + torch.rand(2, COMPONENTS, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, variances, weights, DDIMSchedule(), classes=classes, prediction_type=kind)


def states(seed: int, rows: int = 3) -> Tensor:
    return torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)


def log_density(x: Tensor, signal: Tensor, noise: Tensor, model: GaussianMixture, label: int | None = None) -> Tensor:
    """Of ``signal * x0 + noise * n``, for the data of a class, in logarithms that need no share of the whole."""
    chosen = torch.ones(COMPONENTS, dtype=torch.bool) if label is None else label == CLASSES
    spread = signal**2 * model.variances + noise**2
    squares = (x.unsqueeze(1) - signal * model.means).square().sum(2)
    parts = model.weights.log() - 0.5 * SIZE * spread.log() - 0.5 * squares / spread
    return parts[:, chosen].logsumexp(1)


def score(x: Tensor, signal: Tensor, noise: Tensor, model: GaussianMixture, label: int | None = None) -> Tensor:
    """By central differences."""
    step, columns = 1e-5, []
    for unit in torch.eye(SIZE, dtype=torch.float64):
        ahead, behind = (log_density(x + sign * step * unit, signal, noise, model, label) for sign in (1, -1))
        columns.append((ahead - behind) / (2 * step))
    return torch.stack(columns, dim=1)


def predictions(x: Tensor, signal: Tensor, noise: Tensor, slope: Tensor) -> dict[str, Tensor]:
    """Tweedie's formula, and what follows from it."""
    eps = -noise * slope
    clean = (x - noise * eps) / signal
    velocity = signal * eps - noise * clean
    return {"epsilon": eps, "sample": clean, "v_prediction": velocity, "flow_prediction": eps - clean}


def close(found: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


@given(seed=SEEDS, sigma=st.floats(0.02, 150.0), kind=st.sampled_from(PREDICTIONS[:3]))
def test_float_timesteps_are_those_of_the_samplers_with_sigmas(seed: int, sigma: float, kind: str) -> None:
    """At the timestep to which diffusers converts a sigma, the level is that sigma."""
    model = mixture(seed, kind)
    table = model.schedule.alphas_cumprod.numpy()
    logs = 0.5 * np.log((1 - table) / table)
    timestep = diffusers.EulerDiscreteScheduler()._sigma_to_t(np.array([sigma]), logs)
    x, level = states(seed), torch.tensor(sigma, dtype=torch.float64)
    signal, noise = 1 / (1 + level**2).sqrt(), level / (1 + level**2).sqrt()
    found = model.predict(x, torch.from_numpy(timestep).expand(3), torch.arange(3))
    exact = predictions(x, signal, noise, score(x, signal, noise, model))[kind]
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5 / float(signal))


@given(seed=SEEDS, timestep=st.integers(0, 999), kind=st.sampled_from(PREDICTIONS[:3]))
def test_whole_float_timesteps_have_the_bits_of_integers(seed: int, timestep: int, kind: str) -> None:
    model, x, rows = mixture(seed, kind), states(seed), torch.arange(3)
    whole = torch.full((3,), timestep)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(model.predict(x, whole.to(dtype), rows), model.predict(x, whole, rows))


def test_levels_without_signal_are_reached_without_a_gap() -> None:
    """The last timestep of a schedule of zero signal is finite, from below as well."""
    schedule = DDIMSchedule(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    model = GaussianMixture(torch.ones(1, SIZE), torch.ones(1), torch.ones(1), schedule)
    x = states(0, 1)
    last, nearly = (model.predict(x, torch.tensor([t]), torch.tensor([0])) for t in (999, 998.9999))
    torch.testing.assert_close(last, -torch.ones_like(x))  # v = -x0 without signal
    torch.testing.assert_close(nearly, last, atol=1e-3, rtol=0.0)


@given(seed=SEEDS, time=st.floats(1.0, 999.0), label=st.sampled_from([None, 0, 1, 3]))
def test_the_flow_is_noise_less_the_clean_image(seed: int, time: float, label: int | None) -> None:
    model, x, rows = mixture(seed, "flow_prediction"), states(seed), torch.arange(3)
    noise = torch.tensor(time / 1000, dtype=torch.float64)
    denoiser = model if label is None else model.conditioned(torch.full((3,), label))
    found = denoiser.predict(x, torch.full((3,), time, dtype=torch.float64), rows)
    exact = predictions(x, 1 - noise, noise, score(x, 1 - noise, noise, model, label))
    torch.testing.assert_close(found, exact["flow_prediction"], rtol=1e-5, atol=1e-5 / (1 - float(noise)))


@given(seed=SEEDS, timestep=st.integers(0, 900), labels=st.lists(st.sampled_from([0, 1, 3]), min_size=3, max_size=3))
def test_each_row_has_the_score_of_its_class(seed: int, timestep: int, labels: list[int]) -> None:
    model, x = mixture(seed), states(seed)
    signal = model.schedule.alphas_cumprod[timestep]
    found = model.conditioned(torch.tensor(labels)).predict(x, torch.full((3,), timestep), torch.arange(3))
    for row, label in enumerate(labels):
        slope = score(x[row : row + 1], signal.sqrt(), (1 - signal).sqrt(), model, label)
        close(found[row : row + 1], -(1 - signal).sqrt() * slope)


@given(seed=SEEDS, timestep=st.integers(0, 900), kind=st.sampled_from(PREDICTIONS))
def test_a_class_is_the_mixture_of_its_components(seed: int, timestep: int, kind: str) -> None:
    model, x = mixture(seed, kind), states(seed)
    own = CLASSES == 3
    alone = GaussianMixture(
        model.means[own],
        model.variances[own],
        model.weights[own],
        model.schedule,
        prediction_type=kind,  # type: ignore[arg-type]  # sampled from the names
    )
    at = (x, torch.full((3,), timestep), torch.arange(3))
    conditioned = model.conditioned(torch.full((3,), 3))
    assert conditioned.rows == 3
    torch.testing.assert_close(conditioned.predict(*at), alone.predict(*at), rtol=1e-12, atol=1e-12)


@given(seed=SEEDS, timestep=st.integers(0, 900), scale=st.floats(-1.0, 8.0))
def test_guidance_follows_the_probability_of_the_class(seed: int, timestep: int, scale: float) -> None:
    """The guided noise is that of ``p(x) p(class | x)^s`` (Ho & Salimans 2022, section 3)."""
    model, x = mixture(seed), states(seed)
    signal = model.schedule.alphas_cumprod[timestep]
    levels = signal.sqrt(), (1 - signal).sqrt()
    found = model.conditioned(torch.full((3,), 3), guidance_scale=scale).predict(
        x, torch.full((3,), timestep), torch.arange(3)
    )
    free, own = (score(x, *levels, model, label) for label in (None, 3))
    torch.testing.assert_close(found, -levels[1] * (free + scale * (own - free)), rtol=1e-4, atol=1e-4)


@given(seed=SEEDS, scale=st.sampled_from([0.0, 1.0, 2.5]), kind=st.sampled_from(PREDICTIONS))
def test_the_gradient_by_the_guidance_scale_is_the_difference(seed: int, scale: float, kind: str) -> None:
    """At a scale of 1 as well, where nothing is added."""
    model, x = mixture(seed, kind), states(seed)
    at = (x, torch.tensor([3, 400, 850]), torch.arange(3))
    leaf = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 1])
    (found,) = torch.autograd.grad(model.conditioned(labels, leaf).predict(*at).sum(), leaf)
    difference = model.conditioned(labels).predict(*at) - model.predict(*at)
    torch.testing.assert_close(found, difference.sum())


@examples(6, 15)
@given(seed=SEEDS, scale=st.sampled_from([1.0, 3.0]), steps=st.integers(2, 20))
def test_chain_adjoint_by_the_guidance_scale_is_autograd_through_the_serial_chain(
    seed: int, scale: float, steps: int
) -> None:
    model = mixture(seed)
    schedule = DDIMSchedule(clip_sample=False)
    leaf = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    labels, x_T = torch.tensor([0, 3, 1]), states(seed)
    problem = ddim_problem(model.conditioned(labels, leaf), schedule, x_T, num_inference_steps=steps)
    x, rows = x_T, torch.arange(3)
    for i in range(steps):
        x = problem.chain.step(x, torch.full_like(rows, i), rows)
    (exact,) = torch.autograd.grad(x.square().sum(), leaf)
    estimator = ChainAdjoint(termination=fixedpoint.Termination(rtol=1e-13))
    solution = fixedpoint.solve(problem, solver=fixedpoint.ChainSolver(), gradient=estimator, rtol=1e-13)
    (found,) = torch.autograd.grad(solution.z[:, -1].square().sum(), leaf)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=SEEDS, rows=st.integers(2, 17), kind=st.sampled_from(PREDICTIONS))
def test_bits_do_not_depend_on_the_batch(dtype: torch.dtype, seed: int, rows: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    model, x = mixture(seed, kind), states(seed, rows).to(dtype)
    times = torch.rand(rows, generator=generator, dtype=torch.float64) * 999
    labels = CLASSES[torch.randint(0, COMPONENTS, (rows,), generator=generator)]
    denoiser = model.conditioned(labels, guidance_scale=2.0)
    together = denoiser.predict(x, times, torch.arange(rows))
    for row in range(rows):
        one = slice(row, row + 1)
        assert torch.equal(denoiser.predict(x[one], times[one], torch.arange(rows)[one]), together[one])


SAMPLERS: dict[str, tuple[Any, Any]] = {
    "Euler Karras": ("epsilon", lambda: diffusers.EulerDiscreteScheduler(use_karras_sigmas=True)),
    "KDPM2": ("epsilon", lambda: diffusers.KDPM2DiscreteScheduler(**BETAS)),
    "flow matching": ("flow_prediction", lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers, about its own use of numpy
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_at_float_timesteps_lead_to_the_closed_form_of_a_gaussian(name: str) -> None:
    """The probability flow of ``N(mu, v)`` takes unit noise ``z`` to ``mu + sqrt(v) z``."""
    kind, make = SAMPLERS[name]
    variance, mean = 0.3, torch.tensor([[0.5, -1.0, 2.0, 0.0]], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    model = GaussianMixture(mean, variance * one, one, DDIMSchedule(), prediction_type=kind)
    x, rows = states(5), torch.arange(3)
    errors = []
    for steps in (50, 200):
        tables = sampler_tables(make(), steps)
        times = tables.timesteps
        assert times.is_floating_point()

        def predict(u: Tensor, j: int, times: Tensor = times) -> Tensor:
            return model.predict(u, times[j].expand(3), rows)

        sample = serial_run(tables, predict, x)[:, -1]
        errors.append(float((sample - mean - variance**0.5 * x).abs().max()))
    # In the limit 0.007 is left, since a schedule begins with a little signal.
    assert errors[0] <= 0.07
    assert errors[1] <= 0.02


@pytest.mark.parametrize(
    ("act", "error", "sentence"),
    [
        (lambda: mixture(0, "velocity"), ValueError, "prediction_type must be one of epsilon, .* got 'velocity'"),
        (lambda: mixture(0, classes=torch.zeros(2, dtype=torch.int64)), ValueError, "6 labels of at least 0, got"),
        (lambda: mixture(0, classes=CLASSES - 1), ValueError, "6 labels of at least 0, got"),
        (lambda: mixture(0, classes=torch.zeros(6)), TypeError, r"tensor of integers .* got torch.float32 \(6,\)"),
        (lambda: mixture(0, classes=None).conditioned(torch.tensor([0])), ValueError, "without classes .* classes="),
        (lambda: mixture(0).conditioned([0]), TypeError, "labels must be a tensor of integers .* got list"),  # type: ignore[arg-type]  # that is the point
        (lambda: mixture(0).conditioned(torch.tensor([0, 2])), ValueError, r"which are \[0, 1, 3\], got 2"),
        (
            lambda: mixture(0).conditioned(torch.tensor([0]), guidance_scale=torch.ones(1)),
            TypeError,
            r"a tensor of shape \(\), got a tensor of shape \(1,\)",
        ),
        (lambda: mixture(0).conditioned(torch.tensor([0]), float("inf")), ValueError, "must be finite, got inf"),
        (
            lambda: ddim_problem(mixture(0).conditioned(torch.tensor([0])), DDIMSchedule(), states(0)),
            ValueError,
            "conditioned for 1 rows, x_T has 3",
        ),
    ],
)
def test_bad_input_is_a_sentence(act: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        act()
