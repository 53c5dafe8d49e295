"""Inversion of chains: what comes back, what is said of what does not, and what it is compared with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ddim_cases import Case, cases
from draws import examples
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor

import fixedpoint as fp
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.inversion.invert import InversionProgress, invert_chain
from fixedpoint.chains.inversion.methods import JointInversion, StepwiseInversion, clean_end_of
from fixedpoint.chains.inversion.problem import InverseProblem
from fixedpoint.chains.inversion.result import Inversion, InversionStatus
from fixedpoint.chains.slope.preconditioner import Gaussian, Identity
from fixedpoint_diffusion import DDIMSchedule, ddim_problem, draw_noise
from fixedpoint_diffusion.models.choices import MixtureModel

TIGHT = JointInversion(rtol=1e-12, clean_rounds=300, max_rounds=400)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rms(difference: Tensor) -> Tensor:
    return difference.flatten(1).double().square().mean(dim=1).sqrt()


def serially(chain: Chain, x: Tensor) -> Tensor:
    rows = torch.arange(len(x))
    for i in range(chain.length):
        x = chain.step(x, torch.full_like(rows, i), rows)
    return x


class Turning(Chain):
    """``x' = 1.05 R x + tanh(x + c_row) / 10``, R a rotation; what is not finite stays so."""

    length = 8

    def __init__(self, conditioning: Tensor, gain: float = 0.1) -> None:
        self.conditioning, self.gain = conditioning, gain
        self.seen = 0

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        self.seen += len(x)
        turned = torch.stack([0.96 * x[:, 0] - 0.28 * x[:, 1], 0.28 * x[:, 0] + 0.96 * x[:, 1]], dim=1)
        return 1.05 * turned + self.gain * torch.tanh(x + self.conditioning[row])


class Projecting(Turning):
    """The last step of it drops the second of the two unknowns."""

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        value = super().step(x, index, row)
        kept = torch.tensor([1.0, 0.0], dtype=x.dtype)
        return torch.where((index == self.length - 1).unsqueeze(1), kept * x, value)


class Folding(Turning):
    """What it makes is on one side of a line: most ends have no start."""

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        return super().step(x.abs(), index, row)


@examples(4, 8)
@given(case=cases(steps=st.sampled_from([10, 50, 100]), clip=st.just(False)), gaussian=st.booleans())
def test_the_noise_of_what_a_chain_has_sampled_comes_back(case: Case, gaussian: bool) -> None:
    """Noise that is known is no matter, as long as it does not drown the start."""
    case = replace(case, eta=0.3 * case.eta)
    if case.schedule.rescale_betas_zero_snr:
        case = replace(case, schedule=replace(case.schedule, rescale_betas_zero_snr=False))
    problem = case.problem()
    end = fp.solve(problem, solver="serial").z[:, -1]
    method = replace(TIGHT, preconditioner=Gaussian() if gaussian else Identity())
    found = invert_chain(problem.chain, end, method=method, max_batch=problem.max_batch)
    assert found.succeeded.all()
    assert float((rms(found.latents - problem.x0) / rms(problem.x0)).max()) <= 1e-8
    assert float(found.residuals.max()) <= 1e-9
    assert float(found.round_trip.max()) <= 1e-8


def test_euler_steps_of_a_flow_come_back() -> None:
    """From noise at s = 1 to data at s = 0, ``x = (1 - s) x0 + s eps``, of two Gaussians whose velocity is known."""
    from fixedpoint_sequences import EulerChain

    means, variance = draw(0, 2, 6), 0.05

    def velocity(x: Tensor, s: Tensor) -> Tensor:
        s = s.unsqueeze(1)
        spread = (1 - s) ** 2 * variance + s**2
        distances = torch.stack([(x - (1 - s) * mean).square().sum(1) for mean in means], dim=1)
        share = torch.softmax(-0.5 * distances / spread, dim=1)
        off = x - (1 - s) * (share @ means)
        image = share @ means + (1 - s) * variance / spread * off
        return s / spread * off - image

    chain = EulerChain(velocity, torch.linspace(1, 0, 41))
    x_0 = draw(1, 5, 6)
    found = invert_chain(chain, serially(chain, x_0), method=replace(TIGHT, clean_end=2))
    assert found.succeeded.all()
    assert float(rms(found.latents - x_0).max()) <= 1e-8


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_one_evaluation_a_step_is_ddim_inversion_as_diffusers_has_it(set_alpha_to_one: bool, spacing: str) -> None:
    from diffusers import DDIMInverseScheduler

    schedule = DDIMSchedule(clip_sample=False, set_alpha_to_one=set_alpha_to_one)
    model = MixtureModel(dimension=12).denoiser(schedule)
    image = draw(2, 3, 12).float()
    theirs = DDIMInverseScheduler(
        clip_sample=False, set_alpha_to_one=set_alpha_to_one, timestep_spacing="leading", beta_schedule="linear"
    )
    theirs.set_timesteps(25)
    x = image
    for t in theirs.timesteps:
        prediction = model.predict(x, t.repeat(3), torch.arange(3))
        x = theirs.step(prediction, t, x).prev_sample
    chain = ddim_problem(model, schedule, image, num_inference_steps=25).chain
    found = invert_chain(chain, image, method=StepwiseInversion())
    torch.testing.assert_close(found.latents, x, rtol=1e-3, atol=1e-4)
    assert found.stages["step by step"] == 25


def test_more_evaluations_a_step_bring_it_nearer() -> None:
    schedule = DDIMSchedule(clip_sample=False)
    x_T, _ = draw_noise(range(4), (12,), dtype=torch.float64)
    problem = ddim_problem(MixtureModel(dimension=12).denoiser(schedule), schedule, x_T, num_inference_steps=12)
    end = fp.solve(problem, solver="serial").z[:, -1]
    errors = []
    for solver in (fp.Picard(), fp.Anderson(memory=3)):
        for iterations in (1, 3, 10):
            method = StepwiseInversion(iterations=iterations, solver=solver)
            found = invert_chain(problem.chain, end, method=method)
            assert found.stages["step by step"] <= 12 * iterations
            errors.append(float(rms(found.latents - x_T).max()))
    assert errors[0] > 2 * errors[1] > 3 * errors[2]
    assert errors[3] > 2 * errors[4] > 20 * errors[5]


@pytest.mark.parametrize(
    "method", [JointInversion(clean_end=2), StepwiseInversion(iterations=3, preconditioner=Identity())]
)
def test_what_is_told_is_so(method: Any) -> None:
    """Residuals, round trip and counts, worked out anew."""
    chain = Turning(draw(3, 4, 2))
    end = draw(4, 4, 2)
    told: list[InversionProgress] = []
    found = invert_chain(chain, end, method=method, on_round=told.append)
    seen = chain.seen
    assert seen == found.counts.computed == found.evaluations.sum()
    assert found.rounds == sum(found.stages.values())
    assert told[-1].stage == "round trip"
    rows = torch.arange(4)
    after = torch.cat([found.states[:, 1:], end.unsqueeze(1)], dim=1)
    for i in range(chain.length):
        off = chain.step(found.states[:, i], torch.full_like(rows, i), rows) - after[:, i]
        torch.testing.assert_close(found.residuals[:, i], rms(off), rtol=1e-6, atol=1e-13)
    back = serially(chain, found.latents)
    torch.testing.assert_close(found.reconstruction, back, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.round_trip, rms(back - end), rtol=0.05, atol=2e-5)


def test_what_no_start_leads_to_is_told_apart() -> None:
    """The last step drops an unknown: what the end has there is left over, and nothing else."""
    end = draw(5, 4, 2)
    found = invert_chain(Projecting(draw(3, 4, 2)), end, method=replace(TIGHT, clean_end=1))
    assert found.status == (InversionStatus.MISFIT,) * 4
    torch.testing.assert_close(found.misfit, end[:, 1].abs() / 2**0.5, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(found.round_trip, found.misfit, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(found.reconstruction[:, 0], end[:, 0], rtol=1e-6, atol=1e-8)
    assert "the clean end leaves" in found.sentences[0]
    assert found.message.startswith("4 of 4 rows misfit: what is left is left by the clean end")


def test_steps_that_do_not_contract_are_said_not_to() -> None:
    found = invert_chain(Folding(draw(3, 6, 2)), draw(6, 6, 2))
    assert not found.succeeded.any()
    assert InversionStatus.NOT_CONTRACTIVE in found.status
    row = found.status.index(InversionStatus.NOT_CONTRACTIVE)
    assert "the inverse of some steps does not contract" in found.sentences[row]
    chain = Folding(draw(3, 6, 2)[[row]])
    alone = invert_chain(chain, draw(6, 6, 2)[[row]])
    assert alone.status == (InversionStatus.NOT_CONTRACTIVE,)
    assert torch.equal(alone.states[0], found.states[row])


def test_rounds_that_end_too_soon_are_said_to() -> None:
    found = invert_chain(Turning(draw(3, 4, 2)), draw(7, 4, 2), method=JointInversion(max_rounds=6), tolerance=1e-9)
    assert found.status == (InversionStatus.UNFINISHED,) * 4
    assert "the rounds ended before the states were found" in found.sentences[0]


def test_a_row_does_not_know_its_neighbours() -> None:
    """One of them is lost."""
    chain = Turning(draw(3, 4, 2))
    end = serially(chain, draw(8, 4, 2))
    chain.conditioning[2] = torch.nan
    together = invert_chain(chain, end, method=JointInversion(clean_end=1))
    assert together.status[2] is InversionStatus.NONFINITE
    for row in (0, 1, 3):
        alone = invert_chain(
            Turning(chain.conditioning[row : row + 1]), end[row : row + 1], method=JointInversion(clean_end=1)
        )
        assert torch.equal(alone.states[0], together.states[row])
        assert torch.equal(alone.residuals[0], together.residuals[row])
        assert alone.status[0] is together.status[row] is InversionStatus.INVERTED


@pytest.mark.parametrize(("steps", "clean"), [(1, 1), (10, 2), (25, 2), (50, 2), (100, 2)])
def test_the_clean_end_is_where_a_step_hands_on_little(steps: int, clean: int) -> None:
    schedule = DDIMSchedule(clip_sample=False)
    chain = ddim_problem(MixtureModel().denoiser(schedule), schedule, draw(9, 1, 16), num_inference_steps=steps).chain
    assert clean_end_of(chain) == clean
    assert JointInversion().clean_steps(chain) == clean
    assert clean_end_of(Turning(draw(3, 1, 2))) == 0


def test_parts_of_a_chain_are_inverted_alone() -> None:
    chain = Turning(draw(3, 3, 2))
    x, rows = draw(10, 3, 2), torch.arange(3)
    states = [x]
    for i in range(8):
        states.append(chain.step(states[-1], torch.full_like(rows, i), rows))
    part = fp.solve(InverseProblem(chain, states[6], steps=range(2, 6)), solver="anderson", rtol=1e-12)
    torch.testing.assert_close(part.z, torch.stack(states[2:6], dim=1), rtol=1e-9, atol=1e-9)
    assert part.evaluations.max() == 4 * part.rounds.max()
    for wrong in (range(2, 9), range(3, 3), range(0, 4, 2), range(-1, 3)):
        with pytest.raises(ValueError, match="must be range"):
            InverseProblem(chain, x, steps=wrong)


def test_bad_input_is_refused() -> None:
    chain, end = Turning(draw(3, 2, 2)), draw(4, 2, 2)
    with pytest.raises(TypeError, match="method must be an Inverter"):
        invert_chain(chain, end, method="joint")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance must be positive, got 0"):
        invert_chain(chain, end, tolerance=0.0)
    with pytest.raises(ValueError, match="must not be a solver of chains"):
        JointInversion(solver=fp.ChainSolver())
    clipping = ddim_problem(MixtureModel().denoiser(DDIMSchedule()), DDIMSchedule(), draw(9, 1, 16)).chain
    with pytest.raises(ValueError, match="has no inverse: clip_sample is not invertible"):
        invert_chain(clipping, draw(9, 1, 16))


def test_it_reads_well() -> None:
    found = invert_chain(Turning(draw(3, 2, 2)), draw(4, 2, 2))
    assert isinstance(found, Inversion)
    assert repr(found).startswith("Inversion(2 inverted; ")
    assert found.message == "2 of 2 rows inverted: the chain makes the end of it, to the tolerance"
    assert found.sentences[0].startswith("inverted: rms ")
    assert np.array_equal(found.succeeded, [True, True])


class Expanding(Chain):
    """Linear steps in three dimensions that stretch and turn: no plain round of their inverse contracts."""

    def __init__(self, length: int, good: int) -> None:
        self.length, self.good = length, good

    def step(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
        slopes = torch.tensor([1.4, -0.9, 0.6], dtype=x.dtype)
        turned = x @ torch.linalg.matrix_exp(torch.tensor([[0.0, 1, 0], [-1, 0, 0.5], [0, -0.5, 0]], dtype=x.dtype))
        return torch.where((row < self.good).unsqueeze(1), 0.9 * x, slopes * turned)


def test_rows_that_the_joint_part_leaves_are_rescued_step_by_step() -> None:
    """The other rows stay what they were, to the bit, and cost no evaluation more."""
    chain, x_0 = Expanding(12, good=1), draw(5, 3, 3)
    end = serially(chain, x_0)
    left = invert_chain(chain, end, method=JointInversion(rtol=1e-10))
    assert left.succeeded.tolist() == [True, False, False]
    rescued = invert_chain(chain, end, method=JointInversion(rtol=1e-10, rescue=True))
    assert rescued.succeeded.all(), rescued.message
    torch.testing.assert_close(rescued.latents, x_0, rtol=1e-6, atol=1e-6)
    assert torch.equal(rescued.states[0], left.states[0])
    assert rescued.evaluations[0] == left.evaluations[0]
    assert (rescued.residuals[1:] <= 1e-8).all()
    assert "step by step" in rescued.stages


class Turned(Chain):
    """Linear steps, and an end of two that turn some directions over and keep next to nothing of others."""

    length = 8

    def __init__(self, seed: int, hard: int = 2) -> None:
        turned = [torch.linalg.qr(draw(seed + i, 12, 12))[0] for i in range(2)]
        self.matrix = turned[0] @ torch.diag(torch.linspace(-1.2, 1.6, 12, dtype=torch.float64)) @ turned[0].T
        self.hard = hard

    def step(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
        bent = x @ self.matrix
        bent = bent + 0.05 * torch.tanh(bent)
        return torch.where((index >= self.length - self.hard).unsqueeze(1), bent, 0.9 * x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_end_that_does_not_contract_is_solved_by_least_squares(dtype: torch.dtype) -> None:
    """Step by step it is missed; by least squares over the whole end, which is found by measuring, it is not."""
    chain = Turned(7)
    chain.matrix = chain.matrix.to(dtype)
    end = serially(chain, draw(8, 3, 12).to(dtype))
    plain = JointInversion(clean_end=0, rescue=True, vectors=0)
    left = invert_chain(chain, end, method=plain, tolerance=1e-5)
    found = invert_chain(chain, end, method=replace(plain, vectors=96), tolerance=1e-5)
    assert not left.succeeded.all()
    assert found.succeeded.all(), found.message
    assert float(rms(serially(chain, found.latents) - end).max()) <= 1e-5
    assert "least squares" in found.stages
    # From two starts, two evaluations of each of two steps for each vector, and a few for each Gauss-Newton step; then
    # the rates, the joint part, the serial runs and the residuals.
    spent = found.evaluations - left.evaluations
    assert (spent <= 2 * (2 * 2 * 96 + 12 * 4 * 2) + (9 + 40 + 3 + 15) * chain.length).all()
    # A row does not depend on its neighbours.
    alone = invert_chain(chain, end[1:2], method=replace(plain, vectors=96), tolerance=1e-5)
    torch.testing.assert_close(alone.states[0], found.states[1], rtol=1e-4, atol=1e-4)


def test_least_squares_never_comes_out_farther() -> None:
    """Of an end that no start leads to, the nearest is kept, and the status says that it is missed."""
    chain, end = Folding(draw(3, 6, 2)), draw(6, 6, 2)
    left = invert_chain(chain, end, method=JointInversion(rescue=True, vectors=0))
    found = invert_chain(chain, end, method=JointInversion(rescue=True))
    assert (found.round_trip <= left.round_trip * (1 + 1e-4) + 1e-5).all()
    assert found.succeeded.tolist() == (found.round_trip <= 2e-3).tolist()
    assert not found.succeeded.all()


class Unseen(Turned):
    """The same, of which autograd sees nothing."""

    def step(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
        return super().step(x.detach(), index, row)


def test_without_a_gradient_least_squares_bring_nothing_and_raise_nothing() -> None:
    chain = Unseen(7)
    end = serially(chain, draw(8, 3, 12))
    plain = JointInversion(clean_end=0, rescue=True, vectors=0)
    left = invert_chain(chain, end, method=plain, tolerance=1e-5)
    found = invert_chain(chain, end, method=replace(plain, vectors=96), tolerance=1e-5)
    assert not left.succeeded.all()
    assert (found.round_trip <= left.round_trip * (1 + 1e-4) + 1e-6).all()
    assert found.succeeded.tolist() == left.succeeded.tolist()
