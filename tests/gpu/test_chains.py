"""Chains on a device: those of the CPU, joint equal to serial, and hardly a wait for the device a round."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from devices import Device, waits_between, watched

import fixedpoint as fp
from fixedpoint import Anderson, Broyden, ChainSolver, Squarem
from fixedpoint.chains.joint.solver import BlockSecant
from fixedpoint.chains.joint.start import NestedStart, OneJumpStart
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.slope.preconditioner import Banded, Coefficient, Diagonal, Gaussian, Jacobian, Zero
from fixedpoint_diffusion import DDIMSchedule, ddim_problem, draw_noise
from fixedpoint_diffusion.models.choices import FashionMNISTModel, MixtureModel
from fixedpoint_diffusion.samplers.noise import row_seeds
from fixedpoint_diffusion.task import Sampling
from fixedpoint_sequences.euler_task import EulerODE

pytestmark = pytest.mark.gpu

MIXTURE = MixtureModel(components=4, dimension=12, variance_low=0.02, variance_high=0.08, separation=5.0, seed=1)
# What the engine decides by.
ENGINE = 1


def mixture(device: str, eta: float, prediction: str = "epsilon", clip: bool = False, steps: int = 16) -> ChainProblem:
    schedule = DDIMSchedule(prediction_type=prediction, clip_sample=clip)
    seeds = row_seeds(7, 3)
    x_T, noise = draw_noise(seeds, MIXTURE.event_shape, steps if eta else 0, dtype=torch.float64, device=device)
    denoiser = MIXTURE.denoiser(schedule)
    return ddim_problem(denoiser, schedule, x_T, num_inference_steps=steps, eta=eta, noise=noise)


def images(device: str) -> ChainProblem:
    problem = Sampling(model=FashionMNISTModel(), num_inference_steps=10, batch=2, device=device).problem(0)
    assert isinstance(problem, ChainProblem)
    return problem


COMPOSITIONS: dict[str, tuple[float, Any]] = {
    "serial": (1.0, "serial"),
    "parareal": (1.0, "parareal"),
    "deq-ddim": (0.0, "deq-ddim"),
    "plain": (0.0, ChainSolver()),
    "triangular": (0.0, ChainSolver(accelerator=Anderson(memory=2))),
    "triangular, window, one jump": (
        1.0,
        ChainSolver(accelerator=Anderson(memory=2), window=5, start=OneJumpStart()),
    ),
    "coefficient, joint, window": (
        0.5,
        ChainSolver(preconditioner=Coefficient(), accelerator=Anderson(memory=2, mixing="joint"), window=8),
    ),
    "secants, nested": (1.0, ChainSolver(accelerator=BlockSecant(memory=2), start=NestedStart(6, 2, OneJumpStart()))),
    "gaussian, secants, window": (
        0.0,
        ChainSolver(preconditioner=Gaussian(variance=0.3), accelerator=BlockSecant(), window=5),
    ),
    "banded, window, nested": (0.0, ChainSolver(preconditioner=Banded(order=4), window=5, start=NestedStart(6, 2))),
    "zero, Broyden": (0.0, ChainSolver(preconditioner=Zero(), accelerator=Broyden(memory=5))),
    "coefficient, SQUAREM": (0.0, ChainSolver(preconditioner=Coefficient(), accelerator=Squarem())),
}


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference of any state of any row, of the state's size."""
    one, other = (part.cpu().double().flatten(2) for part in (one, other))
    return float(((one - other).norm(dim=2) / other.norm(dim=2)).amax())


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_agrees_with_the_cpu(device: Device, name: str) -> None:
    eta, solver = COMPOSITIONS[name]
    here = fp.solve(mixture("cpu", eta), solver=solver, rtol=1e-11)
    there = fp.solve(mixture(device.device, eta), solver=solver, rtol=1e-11)
    assert there.converged.all(), there.message
    assert abs(there.counts.rounds - here.counts.rounds) <= 1
    assert apart(there.z, here.z) <= 1e-9


@pytest.mark.parametrize(
    ("prediction", "eta"),
    [
        ("epsilon", 0.0),
        ("sample", 1.0),
        ("v_prediction", 0.0),
        *(
            pytest.param(*more, marks=pytest.mark.slow)
            for more in [("epsilon", 1.0), ("sample", 0.0), ("v_prediction", 1.0)]
        ),
    ],
)
def test_joint_is_serial_for_every_prediction(device: Device, prediction: str, eta: float) -> None:
    problem = mixture(device.device, eta, prediction, clip=True)
    serial = fp.solve(problem, solver="serial")
    joint = fp.solve(problem, solver=ChainSolver(accelerator=Anderson(memory=2), window=10), rtol=1e-11)
    assert joint.converged.all(), joint.message
    assert apart(joint.z, serial.z) <= 1e-9


@pytest.mark.parametrize(
    ("preconditioner", "window"),
    [
        pytest.param(Diagonal(), None, marks=pytest.mark.slow),
        (Diagonal(), 7),
        (Jacobian(), None),
        (Jacobian(), 7),
    ],
    ids=lambda each: getattr(each, "variant", str(each)),
)
def test_newtons_method_on_a_chain(device: Device, preconditioner: Any, window: int | None) -> None:
    solver = ChainSolver(preconditioner=preconditioner, window=window)
    here = EulerODE(length=30, batch=2).problem(3)
    assert isinstance(here, ChainProblem)
    there = ChainProblem(here.chain, here.x0.to(device.device))
    serial = fp.solve(here, solver="serial")
    solution = fp.solve(there, solver=solver, rtol=1e-12)
    assert solution.converged.all(), solution.message
    assert apart(solution.z, serial.z) <= 1e-10


@pytest.mark.parametrize("name", [name for name in COMPOSITIONS if "nested" not in name])
def test_the_host_waits_once_a_round(device: Device, name: str) -> None:
    """Once tables have been brought and slopes looked at; never in the serial chain."""
    eta, solver = COMPOSITIONS[name]
    problem, seen = mixture(device.device, eta), list[int]()
    chain: Any = problem.chain
    chain.denoiser.predict = watched(chain.denoiser.predict, device, seen)
    solution = fp.solve(problem, solver=solver, rtol=1e-9)
    assert solution.converged.all(), solution.message
    most = {"serial": 0, "parareal": 1, "deq-ddim": 1}.get(name, ENGINE)
    assert max(waits_between(seen)[2 if name != "parareal" else 10 :]) <= most


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(ChainSolver(), marks=pytest.mark.slow),
        ChainSolver(accelerator=Anderson(memory=2), start=OneJumpStart()),
        pytest.param(
            ChainSolver(preconditioner=Coefficient(), window=6, accelerator=BlockSecant()), marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_the_bundled_model(device: Device, solver: ChainSolver) -> None:
    """In single precision a device of its own rounds otherwise: its joint solve is held against its own serial one."""
    problem = images(device.device)
    serial = fp.solve(problem, solver="serial")
    assert apart(serial.z, fp.solve(images("cpu"), solver="serial").z) <= 1e-2
    joint = fp.solve(problem, solver=solver, rtol=1e-4)
    assert joint.converged.all(), joint.message
    assert apart(joint.z[:, -1:], serial.z[:, -1:]) <= 1e-3
