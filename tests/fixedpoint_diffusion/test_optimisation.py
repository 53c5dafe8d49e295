"""Inversion by optimisation: its gradients against closed forms and autograd, its losses against a loop by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ddim_cases import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fixedpoint
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.slope.preconditioner import Coefficient
from fixedpoint_diffusion import DDIMChain, DDIMSchedule, Denoiser, draw_noise, row_seeds
from fixedpoint_diffusion.inversion.latent_gradients import Exact, LossAndGradient, OneStep, Phantom, Serial, joint_map
from fixedpoint_diffusion.inversion.optimisation import OptimisedInversion
from fixedpoint_diffusion.models.choices import MixtureModel

TIGHT = fixedpoint.Termination(rtol=1e-12)
EXACT = Exact(termination=TIGHT, adjoint_termination=TIGHT)
SCHEDULE = DDIMSchedule(clip_sample=False)
MODEL = MixtureModel(dimension=6, separation=4.0)
B, N = 3, 8
GRADIENTS = [Serial(), OneStep(tau=1.0), Phantom(), Exact()]


def drawn(seed: int, rows: int = B, steps: int = 0) -> tuple[Tensor, Tensor | None]:
    return draw_noise(row_seeds(seed, rows), MODEL.event_shape, steps, dtype=torch.float64)


def chained(eta: float = 0.0, rows: slice = slice(None), denoiser: Any = None) -> DDIMChain:
    noise = drawn(5, steps=N)[1] if eta > 0 else None
    noise = None if noise is None else noise[rows]
    return DDIMChain(denoiser or MODEL.denoiser(SCHEDULE), SCHEDULE, N, eta=eta, noise=noise)


def sampled(chain: Chain, x_T: Tensor) -> Tensor:
    image: Tensor = fixedpoint.solve(ChainProblem(chain, x_T), solver="serial").z[:, -1]
    return image


def gap(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@settings(max_examples=5)
@given(case=cases(steps=st.integers(1, 40), clip=st.just(False)))
def test_the_adjoint_chain_has_the_gradient_of_backpropagation(case: Any) -> None:
    problem = case.problem()
    images = torch.randn(problem.x0.shape, generator=torch.Generator().manual_seed(case.seed), dtype=torch.float64)
    serial, exact = Serial().find(problem, images, {}), EXACT.find(problem, images, {})
    again = EXACT.find(problem, images, exact.kept)
    for found in (exact, again):
        assert gap(found.misfit, serial.misfit) <= 1e-9
        assert gap(found.gradient, serial.gradient) <= 1e-8
    assert again.calls <= 6  # it began with the solution


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("gradient", [Serial(), EXACT])
def test_it_is_the_slope_of_the_loss(eta: float, gradient: Any) -> None:
    chain, (images, _), (x_T, _), (along, _) = chained(eta), drawn(1), drawn(2), drawn(3)
    found = gradient.find(ChainProblem(chain, x_T), images, {})
    losses = [(sampled(chain, x_T + h * along) - images).square().sum(1) for h in (-1e-5, 0.0, 1e-5)]
    torch.testing.assert_close(found.loss, losses[1], rtol=1e-9, atol=0.0)
    slope = (losses[2] - losses[0]) / 2e-5
    torch.testing.assert_close((found.gradient * along).sum(1), slope, rtol=1e-6, atol=1e-6)


@settings(max_examples=5)
@given(case=cases(steps=st.integers(1, 40), clip=st.just(False)), tau=st.sampled_from([0.1, 1.0]))
def test_one_step_of_the_joint_map_has_no_jacobian_of_the_network(case: Any, tau: float) -> None:
    """``2 tau sqrt(ab_0 / ab_T) (x_0 - x*)``; the root is a product where steps lead past the next timestep."""
    problem = case.problem()
    if case.schedule.rescale_betas_zero_snr and case.schedule.timestep_spacing != "leading":
        return  # may start from no signal, see below
    images = torch.zeros_like(problem.x0)
    found = OneStep(termination=TIGHT, tau=tau).find(problem, images, {})
    signal, later = (torch.as_tensor(levels) for levels in case.schedule.signal(case.steps))
    closed = 2 * tau * (later / signal).sqrt().prod() * (sampled(problem.chain, problem.x0) - images)
    assert gap(found.gradient, closed) <= 1e-8


def test_the_joint_map_is_the_papers() -> None:
    """``x_k = sqrt(ab_k / ab_T) x_T + sqrt(ab_k) sum_{j>k} (s_{j-1} - s_j) eps(x_j)``, ``s = sqrt(1 / ab - 1)``."""
    chain, (x_T, states) = chained(), drawn(4, steps=N)
    assert states is not None
    problem = ChainProblem(chain, x_T)
    linear = Coefficient().linear_part(problem, x_T)
    found = joint_map(problem, linear, x_T, torch.cat([x_T.unsqueeze(1), states], dim=1))

    signal, later = SCHEDULE.signal(N)
    levels = torch.cat([torch.as_tensor(signal), torch.as_tensor(later)[-1:]]).double()
    s = (1 / levels - 1).sqrt()
    total, inputs = torch.zeros_like(x_T), torch.cat([x_T.unsqueeze(1), states], dim=1)
    for k in range(N):
        time = chain.timesteps[k].expand(B)
        total = total + (s[k + 1] - s[k]) * chain.denoiser.predict(inputs[:, k], time, torch.arange(B))
        expected = (levels[k + 1] / levels[0]).sqrt() * x_T + levels[k + 1].sqrt() * total
        torch.testing.assert_close(found[:, k], expected, rtol=1e-9, atol=1e-9)

    flat = states.flatten(1)
    residual = (problem(flat) - flat).view(B, N, -1)
    swept = states + torch.einsum("ij,bjd->bid", linear.matrix, residual)
    torch.testing.assert_close(found, swept, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_many_steps_of_the_joint_map_are_backpropagation(eta: float) -> None:
    problem, (images, _) = ChainProblem(chained(eta), drawn(2)[0]), drawn(1)
    exact = Serial().find(problem, images, {})
    errors = [
        gap(Phantom(termination=TIGHT, steps=k, tau=1.0).find(problem, images, {}).gradient, exact.gradient)
        for k in (1, N // 2, N + 1)
    ]
    assert errors[0] > 1e-2
    assert errors[2] <= 1e-9
    damped = Phantom(termination=TIGHT, steps=80, tau=0.5).find(problem, images, {})
    assert gap(damped.gradient, exact.gradient) <= 1e-6


class Counting(Denoiser):
    """How often the network is called, at how many states, and how often backwards."""

    def __init__(self) -> None:
        self.inner = MODEL.denoiser(SCHEDULE)
        self.forward = self.states = self.backward = 0

    def predict(self, x: Tensor, timestep: Tensor, row: Tensor) -> Tensor:
        self.forward += 1
        self.states += len(x)
        value = self.inner.predict(x, timestep, row)
        if value.requires_grad:
            value.register_hook(self._backwards)
        return value

    def _backwards(self, gradient: Tensor) -> None:
        self.backward += 1


@pytest.mark.parametrize("gradient", [Serial(), OneStep(), Phantom(steps=3), Exact()], ids=lambda g: g.variant)
def test_calls_that_are_told_are_those_that_are_made(gradient: Any) -> None:
    network = Counting()
    problem, (images, _) = ChainProblem(chained(denoiser=network), drawn(2)[0]), drawn(1)
    kept: dict[str, Tensor] = {}
    for _ in range(2):
        network.forward = network.states = network.backward = 0
        found: LossAndGradient = gradient.find(problem, images, kept)
        kept = found.kept
        assert found.calls == network.forward + network.backward
        assert found.evaluations.sum() == network.states
        assert bool((found.products > 0).all())


def by_hand(chain: DDIMChain, images: Tensor, start: Tensor, steps: int) -> list[Tensor]:
    """Losses of Adam on the whole batch, by autograd through the steps."""
    x_T = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([x_T], lr=0.05)
    losses, rows = [], torch.arange(len(images))
    for _ in range(steps + 1):
        x = x_T
        for i in range(chain.length):
            x = chain.step(x, torch.full_like(rows, i), rows)
        loss = (x - images).square().sum(1)
        losses.append(loss.detach())
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
    return losses


@pytest.mark.parametrize(("eta", "gradient"), [(0.0, EXACT), (0.6, Serial())])
def test_losses_are_those_of_a_loop_by_hand(eta: float, gradient: Any) -> None:
    chain, (start, _) = chained(eta), drawn(2)
    images = sampled(chain, drawn(1)[0])
    found = OptimisedInversion(gradient=gradient, learning_rate=0.05, steps=10, enough=0.0).invert(chain, images, start)
    expected = torch.stack(by_hand(chain, images, start, 10)).numpy()
    np.testing.assert_allclose(found.losses, expected, rtol=1e-6)
    assert found.stopped == ("steps",) * B
    assert found.solved.all()
    np.testing.assert_array_equal(found.loss, found.losses.min(axis=0))
    again = (sampled(chain, found.latents) - images).square().sum(1).numpy()
    np.testing.assert_allclose(again, found.loss, rtol=1e-8)
    assert (np.diff(found.calls) > 0).all()
    assert (np.diff(found.seconds) > 0).all()


@pytest.mark.parametrize(("eta", "gradient"), [(0.0, Serial()), (0.6, Exact())])
def test_losses_fall_and_those_of_lbfgs_further(eta: float, gradient: Any) -> None:
    chain, (start, _) = chained(eta), drawn(2)
    images = sampled(chain, drawn(1)[0])
    options = OptimisedInversion(gradient=gradient, steps=12, enough=0.0, learning_rate=0.05)
    adam = options.invert(chain, images, start)
    lbfgs = replace(options, optimiser="lbfgs", learning_rate=None).invert(chain, images, start)
    assert (adam.loss < 0.9 * adam.losses[0]).all()
    assert lbfgs.loss.mean() < 1e-2 * adam.loss.mean()


@pytest.mark.parametrize(
    ("optimiser", "gradient"),
    [
        *(("adam", gradient) for gradient in GRADIENTS),
        ("lbfgs", GRADIENTS[0]),
        *(pytest.param("lbfgs", gradient, marks=pytest.mark.slow) for gradient in GRADIENTS[1:]),
    ],
)
def test_a_row_has_the_same_bits_alone(optimiser: Any, gradient: Any) -> None:
    images, start = drawn(1)[0], drawn(2)[0]
    options = OptimisedInversion(gradient=gradient, optimiser=optimiser, learning_rate=0.05, steps=3, enough=0.0)
    together = options.invert(chained(0.4), images, start)
    for row in (0, B - 1):
        part = slice(row, row + 1)
        alone = options.invert(chained(0.4, part), images[part], start[part])
        assert torch.equal(alone.latents[0], together.latents[row])
        np.testing.assert_array_equal(alone.losses[:, 0], together.losses[:, row])


@pytest.mark.parametrize(
    "options",
    [
        OptimisedInversion(learning_rate=0.1, steps=4),
        OptimisedInversion(learning_rate=0.1, steps=4, redraw=True, seed=7, gradient=Phantom()),
        OptimisedInversion(optimiser="lbfgs", steps=4, enough=1e-3),
        OptimisedInversion(optimiser="lbfgs", steps=4, gradient=Serial(), enough=0.0),
    ],
    ids=["adam", "redrawn", "lbfgs", "lbfgs serial"],
)
def test_it_goes_on_to_the_bit(options: OptimisedInversion, tmp_path: Path) -> None:
    chain, (start, _) = chained(0.5), drawn(2)
    images = sampled(chain, drawn(1)[0])
    whole = options.invert(chain, images, start)
    path = tmp_path / "checkpoint.safetensors"
    for steps in (2, 4):
        part = replace(options, steps=steps).begin(chain, images, start)
        if path.exists():
            part.restore(path)
        while part.goes_on:
            part.step()
            part.save(path)
            part = replace(options, steps=steps).begin(chain, images, start)
            part.restore(path)
    found = part.result()
    assert torch.equal(found.latents, whole.latents)
    for name in ("loss", "losses", "calls", "solved", "evaluations", "products", "stopped"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert (np.diff(found.seconds) > 0).all()


def test_rows_stop_where_it_is_enough_and_the_others_go_on() -> None:
    chain, (truth, _) = chained(), drawn(1)
    images = sampled(chain, truth)
    start = truth + torch.tensor([1e-9, 1.0, 1.0], dtype=torch.float64).view(B, 1)
    network = Counting()
    seen: list[float] = []
    found = OptimisedInversion(gradient=Serial(), learning_rate=0.05, enough=0.05, steps=20).invert(
        chained(denoiser=network), images, start, on_step=lambda step: seen.append(step.losses[0])
    )
    assert found.stopped == ("enough", "enough", "steps")
    assert torch.equal(found.latents[0], start[0])
    steps = [int(np.isfinite(found.losses[:, row]).sum()) for row in range(B)]
    assert steps[0] == 1 < steps[1] < steps[2] == 21
    for row in range(B):
        assert (found.losses[: steps[row] - 1, row] >= 0.05).all()
    assert (found.loss[:2] < 0.05).all()
    assert network.states == sum(steps) * N == found.evaluations.sum()
    assert len(seen) == len(found.losses)


def test_noise_drawn_anew_is_another_function_at_every_step_and_the_same_again() -> None:
    chain, images, start = chained(0.8), drawn(1)[0], drawn(2)[0]
    still = OptimisedInversion(gradient=Serial(), learning_rate=1e-12, steps=3, enough=0.0)
    fixed = still.invert(chain, images, start).losses
    anew = replace(still, redraw=True).invert(chain, images, start).losses
    np.testing.assert_allclose(fixed, np.broadcast_to(fixed[0], fixed.shape), rtol=1e-8)
    assert (np.abs(np.diff(anew, axis=0)) > 1e-3).all()
    np.testing.assert_array_equal(replace(still, redraw=True).invert(chain, images, start).losses, anew)
    other = replace(still, redraw=True, seed=1).invert(chain, images, start).losses
    assert (np.abs(other - anew) > 1e-3).all()
    fewer = replace(still, redraw=True).invert(chained(0.8, slice(2)), images[:2], start[:2]).losses
    np.testing.assert_array_equal(fewer, anew[:, :2])


@pytest.mark.parametrize("redraw", [False, True])
def test_solves_go_by_the_moves_before_unless_these_were_of_another_function(redraw: bool) -> None:
    moves: list[bool] = []

    class Watched(Exact):
        def find(self, problem: ChainProblem, images: Tensor, kept: Any) -> LossAndGradient:
            moves.append(any(bool(value.any()) for name, value in kept.items() if name.endswith("_move")))
            return super().find(problem, images, kept)

    options = OptimisedInversion(steps=3, enough=0.0, redraw=redraw)
    object.__setattr__(options, "gradient", Watched())  # not one that has a name
    options.invert(chained(0.8), drawn(1)[0], drawn(2)[0])
    assert moves == [False, False, not redraw, not redraw]


def test_what_is_not_finite_or_goes_nowhere_stops() -> None:
    def broken(x: Tensor, timestep: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 50, torch.nan, 0.1 * x)

    start = drawn(2)[0]
    start[0, 0] = 100.0
    found = OptimisedInversion(gradient=Serial(), steps=3).invert(chained(denoiser=broken), drawn(1)[0], start)
    assert found.stopped == ("not finite", "steps", "steps")
    assert torch.equal(found.latents[0], start[0])
    assert np.isinf(found.loss[0])
    there = OptimisedInversion(gradient=Serial(), optimiser="lbfgs", enough=0.0)
    chain = chained()
    assert there.invert(chain, sampled(chain, start[1:]), start[1:]).stopped == ("stationary",) * 2


def test_gradients_have_names() -> None:
    for gradient in (Serial(), OneStep(), Phantom(), Exact()):
        assert OptimisedInversion(gradient=gradient.variant).gradient == gradient


def test_solves_that_fail_are_told() -> None:
    rough = Exact(adjoint_termination=fixedpoint.Termination(rtol=1e-12, max_rounds=2))
    found = OptimisedInversion(gradient=rough, steps=2, enough=0.0).invert(chained(), drawn(1)[0], drawn(2)[0])
    assert not found.solved.any()


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: OptimisedInversion(optimiser="sgd"), "optimiser must be one of 'adam', 'lbfgs'"),
        (lambda: OptimisedInversion(steps=0), "steps must be at least 1, got 0"),
        (lambda: OptimisedInversion(redraw=True, optimiser="lbfgs"), "redraw requires adam: lbfgs compares losses"),
        (lambda: Exact(solver=fixedpoint.Anderson()), "Exact: solver must be a solver of chains, got Anderson"),
        (lambda: Exact(adjoint_solver=fixedpoint.Picard()), "adjoint_solver must be a solver of chains, got Picard"),
        (lambda: Phantom(tau=0.0), "tau must be greater than 0.0, got 0.0"),
        (lambda: OptimisedInversion().begin(None, drawn(1)[0], drawn(1)[0]), "must be a DDIMChain, got NoneType"),
        (
            lambda: OptimisedInversion().begin(chained(), drawn(1)[0], drawn(1)[0].float()),
            r"start must have shape \(3, 6\), torch.float64 on cpu, to go with the images, got .* torch.float32",
        ),
        (
            lambda: OptimisedInversion().begin(chained(), drawn(1)[0] / 0, drawn(1)[0]),
            "images must be finite, got 18 entries that are not",
        ),
        (
            lambda: OptimisedInversion().begin(chained(0.5, slice(2)), drawn(1)[0], drawn(1)[0]),
            "the noise of the chain is for 2 rows, and there are 3 images",
        ),
        (
            lambda: OptimisedInversion(redraw=True).begin(chained(), drawn(1)[0], drawn(1)[0]),
            r"redraw=True requires a stochastic chain \(eta > 0\)",
        ),
        (lambda: OneStep().find(without_signal(), drawn(1)[0], {}), "no coefficient for a first step"),
    ],
)
def test_bad_input_is_a_sentence(act: Any, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        act()


def without_signal() -> ChainProblem:
    schedule = DDIMSchedule(
        clip_sample=False, prediction_type="sample", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    return ChainProblem(DDIMChain(MODEL.denoiser(schedule), schedule, N), drawn(2)[0])


def test_another_checkpoint_is_refused(tmp_path: Path) -> None:
    path, options, images, start = tmp_path / "x.safetensors", OptimisedInversion(), drawn(1)[0], drawn(2)[0]
    begun = options.begin(chained(), images, start)
    begun.save(path)
    others = {
        "seed is 0 there, and 1 here": replace(options, seed=1).begin(chained(), images, start),
        r"eta is 0.0 there, and 0.5 here": options.begin(chained(0.5), images, start),
        "images is .* there, and .* here": options.begin(chained(), images + 1, start),
        "start is .* there, and .* here": options.begin(chained(), images, start + 1),
    }
    for sentence, other in others.items():
        with pytest.raises(ValueError, match=f"belongs to another inversion: {sentence}"):
            other.restore(path)
    replace(options, steps=3).begin(chained(), images, start).restore(path)
    path.write_bytes(b"nothing at all")
    with pytest.raises(ValueError, match="is no checkpoint, or a damaged one"):
        begun.restore(path)
