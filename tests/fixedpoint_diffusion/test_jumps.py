"""Coarse DDIM chains, interpolation and jumps from the start, against closed forms and loops of their own."""

from __future__ import annotations

import pytest
import torch
from ddim_cases import Case, cases, fixed_image_chains, with_fixed_image
from draws import examples
from hypothesis import given, settings
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.chains.coarse import HasCoarse, HasJumps, evenly_kept
from fixedpoint.chains.problem import ChainProblem
from fixedpoint_diffusion import DDIMChain, DDIMSchedule
from fixedpoint_diffusion.samplers.held import HeldSteps

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def serial(problem: ChainProblem) -> torch.Tensor:
    states: torch.Tensor = fixedpoint.solve(problem, solver="serial").z
    return states


@st.composite
def kept_states(draw: st.DrawFn, length: int) -> torch.Tensor:
    inner = draw(st.sets(st.integers(1, max(length - 1, 1)), max_size=length - 1)) if length > 1 else set()
    return torch.tensor(sorted(inner | {length}))


@given(data=st.data(), made=fixed_image_chains())
def test_jumps_are_exact_where_the_clean_image_stays(data: st.DataObject, made: tuple[DDIMChain, torch.Tensor]) -> None:
    """Any eta, prediction, spacing (also where steps lead past the next timestep), clipping, zero terminal SNR."""
    chain, x_T = made
    kept = data.draw(kept_states(chain.length))
    problem = ChainProblem(chain, x_T)
    exact = serial(problem)
    torch.testing.assert_close(serial(problem.coarse(kept)), exact[:, kept - 1], **EXACT)
    torch.testing.assert_close(problem.jumps().unflatten(1, exact.shape[1:]), exact, **EXACT)


@examples(12, 30)
@given(data=st.data(), case=cases(steps=st.integers(1, 60)))
def test_a_coarse_chain_of_all_states_is_the_chain(data: st.DataObject, case: Case) -> None:
    problem = case.problem()
    everything = torch.arange(1, case.steps + 1)
    coarse = problem.coarse(everything)
    torch.testing.assert_close(serial(coarse), serial(problem), rtol=1e-12, atol=1e-12)
    # Coarser in two goes is coarser in one.
    kept = data.draw(kept_states(case.steps))
    again = data.draw(kept_states(len(kept)))
    torch.testing.assert_close(serial(problem.coarse(kept).coarse(again)), serial(problem.coarse(kept[again - 1])))


@settings(max_examples=30)
@given(case=cases(eta=st.just(0.0), steps=st.sampled_from([10, 20, 50]), clip=st.just(False)), jump=st.integers(1, 50))
def test_a_jump_is_the_ddim_formula(case: Case, jump: int) -> None:
    """Between two noise levels, for a spacing whose steps lead to the next timestep."""
    problem = case.problem()
    schedule, jump = case.schedule, min(jump, case.steps)
    if schedule.timestep_spacing == "linspace":
        return
    table = schedule.alphas_cumprod
    timesteps = torch.from_numpy(schedule.timesteps(case.steps).copy())
    levels = torch.cat([table[timesteps], schedule.final_alpha_cumprod.reshape(1)])
    before, after = levels[0], levels[jump]
    prediction = case.model.denoiser(schedule).predict(problem.x0, timesteps[:1].expand(case.batch), problem.rows)
    if schedule.prediction_type == "epsilon":
        noise, image = prediction, (problem.x0 - (1 - before).sqrt() * prediction) / before.sqrt()
    elif schedule.prediction_type == "sample":
        noise, image = (problem.x0 - before.sqrt() * prediction) / (1 - before).sqrt(), prediction
    else:
        noise = before.sqrt() * prediction + (1 - before).sqrt() * problem.x0
        image = before.sqrt() * problem.x0 - (1 - before).sqrt() * prediction
    expected = after.sqrt() * image + (1 - after).sqrt() * noise
    kept = torch.tensor(sorted({jump, case.steps}))
    torch.testing.assert_close(serial(problem.coarse(kept))[:, 0], expected, **EXACT)
    torch.testing.assert_close(problem.jumps().unflatten(1, (case.steps, -1))[:, jump - 1], expected, **EXACT)


@settings(max_examples=10)
@given(case=cases(eta=st.just(1.0), steps=st.just(40), clip=st.just(False)))
def test_coarse_chains_of_a_stochastic_chain_follow_its_noise(case: Case) -> None:
    """They come nearer to the chain with every state more, and far nearer than to another draw of the noise."""
    problem = case.problem()
    exact = serial(problem)[:, -1]
    errors = [
        float((serial(problem.coarse(evenly_kept(40, count)))[:, -1] - exact).norm() / exact.norm())
        for count in (5, 20, 40)
    ]
    assert errors[2] <= 1e-9
    assert errors[1] <= max(errors[0], 0.2)


@given(data=st.data(), made=fixed_image_chains())
def test_interpolation_is_exact_where_the_clean_image_stays(
    data: st.DataObject, made: tuple[DDIMChain, torch.Tensor]
) -> None:
    chain, x_T = made
    kept = data.draw(kept_states(chain.length))
    problem = ChainProblem(chain, x_T)
    exact = serial(problem)
    torch.testing.assert_close(problem.interpolate(exact[:, kept - 1], kept).reshape(exact.shape), exact, **EXACT)


@given(data=st.data(), length=st.integers(1, 60), one=st.booleans(), zero=st.booleans(), seed=st.integers(0, 10**6))
def test_interpolation_is_linear_in_s(data: st.DataObject, length: int, one: bool, zero: bool, seed: int) -> None:
    """``x / sqrt(ab) = a + b s`` with ``s = sqrt(1 / ab - 1)``, from infinity (zero terminal SNR) to zero."""
    schedule = DDIMSchedule(
        prediction_type="sample", timestep_spacing="trailing", set_alpha_to_one=one, rescale_betas_zero_snr=zero
    )
    length = next(n for n in range(length, 0, -1) if 1000 % n == 0)  # so that steps lead to the next timestep
    chain, _ = with_fixed_image(schedule, length, 0.0, seed)
    signal, later = schedule.signal(length)
    level = torch.cat([signal[:1], later]).unsqueeze(1)
    a, b = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    line = level.sqrt() * a + (1 - level).sqrt() * b
    kept = data.draw(kept_states(length))
    filled = chain.interpolate(line[:1], line[kept].unsqueeze(0), kept, torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(filled[0], line[1:], **EXACT)


@examples(12, 30)
@given(data=st.data(), case=cases(steps=st.integers(1, 60)))
def test_interpolation_keeps_what_was_kept(data: st.DataObject, case: Case) -> None:
    problem = case.problem()
    exact = serial(problem)
    kept = data.draw(kept_states(case.steps))
    filled = problem.interpolate(exact[:, kept - 1], kept).unflatten(1, (case.steps, -1))
    assert torch.equal(filled[:, kept - 1], exact[:, kept - 1])
    assert filled.isfinite().all()
    for row in range(case.batch):  # a row alone as in the batch
        alone = problem.take(torch.tensor([row]))
        assert torch.equal(alone.interpolate(exact[row : row + 1, kept - 1], kept)[0], filled[row].flatten())
        assert torch.equal(alone.jumps()[0], problem.jumps()[row])
        assert torch.equal(serial(alone.coarse(kept))[0], serial(problem.coarse(kept))[row])


@given(case=cases(eta=st.just(1.0), steps=st.integers(8, 60), clip=st.just(False)))
@settings(max_examples=15)
def test_interpolation_puts_the_chains_noise_back(case: Case) -> None:
    """Between the states of a stochastic chain it is nearer with the noise than the plain blend is."""
    problem = case.problem()
    chain = problem.chain
    assert isinstance(chain, DDIMChain)
    exact = serial(problem)
    kept = evenly_kept(case.steps, max(case.steps // 4, 1))
    filled = problem.interpolate(exact[:, kept - 1], kept).unflatten(1, (case.steps, -1))
    calm = DDIMChain(chain.denoiser, chain.schedule, case.steps)
    plain = calm.interpolate(problem.x0, exact[:, kept - 1], kept, problem.rows)
    assert (filled - exact).norm() < (plain - exact).norm()


def test_one_jump_costs_one_evaluation_a_row() -> None:
    calls: list[int] = []

    def denoiser(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return torch.tanh(x)

    chain = DDIMChain(denoiser, DDIMSchedule(), 10)
    assert isinstance(chain, HasCoarse)
    assert isinstance(chain, HasJumps)
    ChainProblem(chain, torch.ones(5, 3), max_batch=2).jumps()
    assert calls == [2, 2, 1]


@pytest.mark.parametrize(
    ("kept", "came"),
    [([], r"\[\]"), ([3, 2, 10], r"\[3, 2, 10\]"), ([0, 10], r"\[0, 10\]"), ([5], r"\[5\]"), ([2, 2, 10], "2, 2")],
)
def test_bad_states_to_keep_are_a_sentence(kept: list[int], came: str) -> None:
    problem = ChainProblem(DDIMChain(lambda x, _: x, DDIMSchedule(), 10), torch.ones(2, 3))
    chosen = torch.tensor(kept, dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"kept must increase strictly .* length 10, got .*{came}"):
        problem.coarse(chosen)
    with pytest.raises(ValueError, match="kept must increase strictly"):
        problem.interpolate(torch.ones(2, len(kept), 3), chosen)


def test_states_that_do_not_go_with_kept_are_a_sentence() -> None:
    problem = ChainProblem(DDIMChain(lambda x, _: x, DDIMSchedule(), 10), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"states must have shape \(2, 2, 3\), one for each of kept, got \(2, 3, 3\)"):
        problem.chain.interpolate(problem.x0, torch.ones(2, 3, 3), torch.tensor([5, 10]), problem.rows)
    with pytest.raises(ValueError, match=r"from 1 to 10 states .* can be kept, got 11"):
        evenly_kept(10, 11)


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 40))
def test_running_numbers_say_what_the_steps_do(seed: int, length: int) -> None:
    """From any state to any other, through zeros and through steps that keep 1e-17 of their state."""
    generator = torch.Generator().manual_seed(seed)
    keep, gain = torch.randn(2, length, generator=generator, dtype=torch.float64)
    sizes = torch.tensor([1.0, 0.0, 1e-17], dtype=torch.float64)
    keep = keep.clamp(-1, 1) * sizes[torch.randint(3, (length,), generator=generator)]
    steps = HeldSteps.of(keep, gain)
    start, end = (each.flatten() for each in torch.meshgrid(*[torch.arange(length + 1)] * 2, indexing="ij"))
    ahead = start < end
    kept, gained = steps.jump(start[ahead], end[ahead])
    for i, m, whole, image in zip(*(each.tolist() for each in (start[ahead], end[ahead], kept, gained)), strict=True):
        x, clean = 1.0, 0.0
        for alpha, beta in zip(keep[i:m].tolist(), gain[i:m].tolist(), strict=True):
            x, clean = alpha * x, alpha * clean + beta
        assert whole == pytest.approx(x, rel=1e-12)
        assert image == pytest.approx(clean, rel=1e-9, abs=1e-12)
