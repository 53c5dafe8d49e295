"""The joint fixed point is the sequential chain: property-based, float64, on mixtures with exact scores."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.chains.chain import ChainProblem
from fixedpoint_diffusion import DDIMSchedule, ddim_problem, draw_noise
from fixedpoint_diffusion.models import MixtureModel
from fixedpoint_diffusion.noise import row_seeds

JOINT = {
    "picard, zero": fixedpoint.ChainSolver(preconditioner="zero"),
    "picard, coefficient": fixedpoint.ChainSolver(preconditioner="coefficient"),
    "picard, identity": fixedpoint.ChainSolver(preconditioner="identity"),
    "anderson": fixedpoint.ChainSolver(accelerator=fixedpoint.Anderson(memory=3)),
    "broyden": fixedpoint.ChainSolver(accelerator=fixedpoint.Broyden(memory=10)),
}


ANY_BOOL = st.booleans()
ANY_ETA = st.floats(0.0, 1.0)
ANY_LENGTH = st.integers(1, 300) | st.sampled_from([1, 2, 50, 61, 300])  # 61 and 300 do not divide 1000


@dataclass(frozen=True)
class Case:
    """One chain: schedule, length, stochasticity, batch, mixture."""

    schedule: DDIMSchedule
    steps: int
    eta: float
    batch: int
    model: MixtureModel
    seed: int

    def problem(self) -> ChainProblem:
        x_T, noise = draw_noise(
            row_seeds(self.seed, self.batch),
            self.model.event_shape,
            self.steps if self.eta > 0 else 0,
            dtype=torch.float64,
        )
        return ddim_problem(
            self.model.denoiser(self.schedule),
            self.schedule,
            x_T,
            num_inference_steps=self.steps,
            eta=self.eta,
            noise=noise,
        )


@st.composite
def cases(
    draw: st.DrawFn,
    eta: st.SearchStrategy[float] = ANY_ETA,
    steps: st.SearchStrategy[int] = ANY_LENGTH,
    clip: st.SearchStrategy[bool] = ANY_BOOL,
) -> Case:
    prediction = draw(st.sampled_from(["epsilon", "sample", "v_prediction"]))
    schedule = DDIMSchedule(
        prediction_type=prediction,
        timestep_spacing=draw(st.sampled_from(["leading", "trailing", "linspace"])),
        beta_schedule=draw(st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"])),
        set_alpha_to_one=draw(st.booleans()),
        rescale_betas_zero_snr=prediction != "epsilon" and draw(st.booleans()),
        clip_sample=draw(clip),
    )
    model = MixtureModel(
        components=draw(st.integers(4, 8)),
        dimension=draw(st.integers(16, 24)),
        variance_low=0.02,
        variance_high=draw(st.floats(0.02, 0.1)),
        separation=draw(st.floats(4.0, 8.0)),
        seed=draw(st.integers(0, 10**6)),
    )
    return Case(
        schedule=schedule,
        steps=draw(steps),
        eta=draw(eta),
        batch=draw(st.integers(1, 7)),
        model=model,
        seed=draw(st.integers(0, 10**6)),
    )


def worst(solution: fixedpoint.Solution, serial: fixedpoint.Solution) -> float:
    """Largest relative difference of any state of any row from the sequential chain's."""
    difference = (solution.z - serial.z).norm(dim=2) / serial.z.norm(dim=2)
    return float(difference[:, -1].amax())


@pytest.mark.parametrize("name", JOINT)
@settings(max_examples=30)
@given(case=cases())
def test_every_joint_solver_converges_to_the_serial_chain(name: str, case: Case) -> None:
    problem = case.problem()
    serial = fixedpoint.solve(problem, solver="serial")
    solution = fixedpoint.solve(problem, solver=JOINT[name], rtol=1e-11)
    assert solution.converged.all(), solution.message
    assert solution.counts.rounds <= case.steps + 1
    assert worst(solution, serial) <= 1e-9


@pytest.mark.parametrize("name", ["picard, identity", "anderson"])
@settings(max_examples=25)
@given(case=cases(eta=st.just(0.0), steps=st.integers(50, 300), clip=st.just(False)))
def test_deterministic_chains_take_at_most_half_their_length(name: str, case: Case) -> None:
    problem = case.problem()
    solution = fixedpoint.solve(problem, solver=JOINT[name], rtol=1e-11)
    assert solution.converged.all()
    assert solution.counts.rounds <= case.steps / 2


@pytest.mark.parametrize("name", JOINT)
@settings(max_examples=8)
@given(case=cases(steps=st.integers(5, 60)))
def test_alone_equals_in_a_batch_bit_for_bit(name: str, case: Case) -> None:
    problem = case.problem()
    together = fixedpoint.solve(problem, solver=JOINT[name], rtol=1e-8)
    for row in range(case.batch):
        alone = fixedpoint.solve(problem.take(torch.tensor([row])), solver=JOINT[name], rtol=1e-8)
        assert torch.equal(alone.z[0], together.z[row])
        assert alone.rounds[0] == together.rounds[row]


@pytest.mark.slow
@pytest.mark.parametrize("name", JOINT)
@settings(max_examples=200)
@given(case=cases())
def test_every_joint_solver_converges_to_the_serial_chain_at_length(name: str, case: Case) -> None:
    test_every_joint_solver_converges_to_the_serial_chain.hypothesis.inner_test(name, case)
