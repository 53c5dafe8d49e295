"""Later states from one step that was taken: against the jumps of the model's own prediction, and serial chains."""

from __future__ import annotations

import pytest
import torch
from ddim_cases import Case, cases, fixed_image_chains
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.coarse import HasExtension
from fixedpoint.chains.problem import ChainProblem
from fixedpoint_diffusion import DDIMChain, DDIMSchedule, draw_noise


def trajectory(chain: Chain, x_T: torch.Tensor) -> torch.Tensor:
    """The states 0 to N, shape (B, N + 1, *event)."""
    states = fixedpoint.solve(ChainProblem(chain, x_T), solver="serial").z
    return torch.cat([x_T.unsqueeze(1), states], dim=1)


def every_pair(length: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Index, target and row of every pair of states of every row."""
    index, target = torch.triu_indices(length, length)
    return index.repeat(rows), target.repeat(rows) + 1, torch.arange(rows).repeat_interleave(len(index))


@settings(max_examples=40)
@given(made=fixed_image_chains())
def test_exact_where_the_clean_image_stays(made: tuple[DDIMChain, torch.Tensor]) -> None:
    """From any state to any later one: any eta, prediction, spacing, clipping, zero terminal SNR."""
    chain, x_T = made
    length = min(chain.length, 30)
    states = trajectory(chain, x_T)
    index, target, row = every_pair(length, 2)
    index, target = index * chain.length // length, target * chain.length // length
    found = chain.extend(states[row, index], states[row, index + 1], index, target, row)
    torch.testing.assert_close(found, states[row, target], rtol=1e-7, atol=1e-7)


@settings(max_examples=40)
@given(case=cases(steps=st.integers(1, 40), clip=st.just(False)), seed=st.integers(0, 10**6))
def test_a_jump_from_any_state_is_that_of_the_coarse_chain(case: Case, seed: int) -> None:
    """Whose own first step, from the model's prediction, leads from there to there."""
    problem = case.problem()
    chain = problem.chain
    assert isinstance(chain, DDIMChain)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(problem.x0.shape, generator=generator, dtype=torch.float64)
    index = int(torch.randint(case.steps, (), generator=generator))
    target = int(torch.randint(index + 1, case.steps + 1, (), generator=generator))
    kept = torch.tensor(sorted({index, target, case.steps} - {0}))
    coarse = chain.coarse(kept)
    step = int((kept <= index).sum())
    row = problem.rows
    value = chain.step(x, torch.full_like(row, index), row)
    assume(float(chain.steps.gain[index]) != 0.0 or target == index + 1)  # equal noise levels say nothing
    found = chain.extend(x, value, torch.full_like(row, index), torch.full_like(row, target), row)
    wanted = coarse.step(x, torch.full_like(row, step), row)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)


@settings(max_examples=40)
@given(case=cases(steps=st.integers(1, 60)), seed=st.integers(0, 10**6))
def test_the_next_state_is_the_value(case: Case, seed: int) -> None:
    """Whatever the value is, clipped or not of this chain at all."""
    problem = case.problem()
    generator = torch.Generator().manual_seed(seed)
    shape = (case.steps, *problem.x0.shape[1:])
    x, value = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    index = torch.arange(case.steps)
    row = torch.randint(case.batch, (case.steps,), generator=generator)
    found = problem.extend(x, value, index, index + 1, row)
    torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)


@settings(max_examples=40)
@given(case=cases(steps=st.integers(2, 60), clip=st.just(False)))
def test_from_the_start_it_agrees_with_the_jumps(case: Case) -> None:
    problem = case.problem()
    chain, steps, row = problem.chain, case.steps, problem.rows
    assert isinstance(chain, DDIMChain)
    value = chain.step(problem.x0, torch.zeros_like(row), row)
    found = [
        chain.extend(problem.x0, value, torch.zeros_like(row), torch.full_like(row, target), row)
        for target in range(1, steps + 1)
    ]
    torch.testing.assert_close(torch.stack(found, dim=1), chain.jumps(problem.x0, row), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("anew", [False, True])
def test_clipping_is_followed_as_far_as_a_mixture_goes(anew: bool) -> None:
    """With the noise derived anew the state is the mixture of both, and the jump is exact; else it is another one."""
    schedule = DDIMSchedule(clip_sample_range=0.5)
    chain = DDIMChain(lambda x, _: torch.tanh(2 * x), schedule, 40, use_clipped_model_output=anew)
    x = draw_noise([0, 1, 2], (16,), dtype=torch.float64)[0]
    row = torch.arange(3)
    value = chain.step(x, torch.zeros_like(row), row)
    found = chain.extend(x, value, torch.zeros_like(row), torch.full_like(row, 30), row)
    gap = (found - chain.jumps(x, row)[:, 29]).norm() / found.norm()
    assert (gap < 1e-9) if anew else (gap > 1e-3)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_what_float32_loses(beta_schedule: str, eta: float) -> None:
    """The bounds that the docstring of ``DDIMChain.extend`` gives, N = 1000; the model sees the rounded state."""
    schedule = DDIMSchedule(clip_sample=False, beta_schedule=beta_schedule)
    table = schedule.alphas_cumprod

    def score(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        signal = table[timestep].unsqueeze(1)
        return ((1 - signal).sqrt() / (0.25 * signal + 1 - signal)).to(x) * (x + 0.3 * torch.sin(3 * x))

    start, noise = draw_noise(range(4), (256,), 1000 if eta else 0, dtype=torch.float64)
    row, first = torch.arange(4), torch.zeros(4, dtype=torch.int64)
    for dtype, part in ((torch.float32, 1.0), (torch.float64, 1e-8)):
        x = start.to(dtype)
        chain = DDIMChain(score, schedule, 1000, eta=eta, noise=None if noise is None else noise.to(dtype))
        value, jumps = chain.step(x, first, row), chain.jumps(x, row)
        for target, bound in ((1, 1e-5), (100, 1e-3), (500, 1e-2), (1000, 0.1)):
            found = chain.extend(x, value, first, first + target, row)
            assert found.dtype == dtype
            wanted = jumps[:, target - 1]
            assert (found - wanted).norm() <= part * bound * wanted.norm(), (dtype, target)


@settings(max_examples=20)
@given(case=cases(steps=st.integers(2, 40)))
def test_a_row_alone_has_the_same_bits(case: Case) -> None:
    problem = case.problem()
    states = trajectory(problem.chain, problem.x0)
    index, target, row = every_pair(case.steps, case.batch)
    together = problem.extend(states[row, index], states[row, index + 1], index, target, row)
    for number in range(case.batch):
        alone, mine = problem.take(torch.tensor([number])), row == number
        found = alone.extend(
            states[number, index[mine]], states[number, index[mine] + 1], index[mine], target[mine], row[mine] * 0
        )
        assert torch.equal(found, together[mine])


@pytest.mark.parametrize("eta", [0.0, 0.8])
def test_a_step_between_equal_levels_says_nothing(eta: float) -> None:
    """Then later states are the value, but for the noise; those before it know where they go all the same."""
    betas = (0.1, 0.2, 0.0, 0.3, 0.2)
    schedule = DDIMSchedule(num_train_timesteps=5, trained_betas=betas, clip_sample=False, timestep_spacing="trailing")
    x, noise = draw_noise([1, 2], (4,), 5 if eta else 0, dtype=torch.float64)
    chain = DDIMChain(lambda x, _: torch.sin(x), schedule, 5, eta=eta, noise=noise)
    states = trajectory(chain, x)
    row, two = torch.arange(2), torch.full((2,), 2)
    assert torch.allclose(states[:, 3], states[:, 2], rtol=1e-14)  # from timestep 2 to 1, without noise
    late = chain.extend(states[:, 2], states[:, 3], two, two + 2, row)
    arrived = 0.0 if chain.added is None else chain.added.at(two + 1, row, x)
    torch.testing.assert_close(late, states[:, 3] + arrived, rtol=1e-12, atol=1e-12)
    early = chain.extend(x, states[:, 1], two * 0, two + 3, row)
    torch.testing.assert_close(early, chain.jumps(x, row)[:, 4], rtol=1e-9, atol=1e-9)


def test_a_coarse_chain_extends_its_own_states() -> None:
    """Its tables are not those of the chain that it was made of."""
    schedule = DDIMSchedule(clip_sample=False)
    x, noise = draw_noise([3, 4], (8,), 40, dtype=torch.float64)
    chain = DDIMChain(lambda x, _: torch.tanh(x), schedule, 40, eta=0.7, noise=noise)
    row, first = torch.arange(2), torch.zeros(2, dtype=torch.int64)
    chain.extend(x, x, first, first + 1, row)
    coarse = chain.coarse(torch.arange(4, 41, 4))
    value = coarse.step(x, first, row)
    for target in (1, 5, 10):
        found = coarse.extend(x, value, first, first + target, row)
        torch.testing.assert_close(found, coarse.jumps(x, row)[:, target - 1], rtol=1e-9, atol=1e-9)


def test_nothing_is_evaluated() -> None:
    def never(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    chain = DDIMChain(never, DDIMSchedule(), 10)
    assert isinstance(chain, HasExtension)
    x, index = torch.ones(2, 3), torch.tensor([0, 4])
    assert chain.extend(x, 0.9 * x, index, index + 3, index * 0).isfinite().all()


def test_what_does_not_go_together_is_a_sentence() -> None:
    chain = DDIMChain(lambda x, _: x, DDIMSchedule(), 10)
    index, x = torch.tensor([0, 4]), torch.ones(2, 3)
    with pytest.raises((TypeError, ValueError), match=r"value must have shape \(2, 3\)"):
        chain.extend(x, x.double(), index, index + 1, index)

    class Plain(Chain):
        length = 3

        def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(TypeError, match=r"Plain does not know what a step says of later states \(no extend\)"):
        ChainProblem(Plain(), x).extend(x, x, index, index + 1, index)
