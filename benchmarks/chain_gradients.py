"""The gradient of a sample's squared error with respect to its noise: rounds of the adjoint chain, and their cost.

    python benchmarks/chain_gradients.py [--steps 50 100] [--batch 4]
    python benchmarks/chain_gradients.py --sampler 2m-20 unipc-20 heun-18
    python benchmarks/chain_gradients.py --memory [--steps 50 200 1000] [--limit 16]

The chain is DDIM with eta 0 of the bundled model, in float32; the targets are test images. The reference is
backpropagation through the chain step by step. The script prints the relative error of the worst image after every
round of vector-Jacobian products, by preconditioner and accelerator, and that of the single phantom step of the authors
of the joint map (Pokle, Geng & Kolter 2022), which contains no Jacobian of the network.

With ``--sampler`` it does this for other samplers, named as ``samplers.py`` names them.

With ``--memory`` it prints, for the adjoint chain and for backpropagation through the steps one after another, the
seconds of one gradient and the largest resident size of a process that computes it, beyond that before the chain; "-"
if it requires more than ``--limit`` GiB. For the adjoint chain it also prints a bound: twenty tensors of the size of
all states, and the activations of two micro-batches of steps, as measured by backpropagation through sixteen steps of
one image.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from samplers import SAMPLERS, Sampler, named
from torch import Tensor

import fixedpoint
from fixedpoint.chains import (
    AdjointChain,
    AffineAdjointChain,
    BlockSecant,
    ChainAdjoint,
    ChainProblem,
    Coefficient,
    Gaussian,
    Identity,
)
from fixedpoint.plugin import Progress
from fixedpoint_diffusion import DDIMChain, FashionMNISTModel, ddim_problem, draw_noise, held_out_images, row_seeds

WAYS = {
    "identity": fixedpoint.ChainSolver(preconditioner=Identity()),
    "identity, triangular Anderson(3)": fixedpoint.ChainSolver(accelerator=fixedpoint.Anderson(memory=3)),
    "identity, block secant": fixedpoint.ChainSolver(accelerator=BlockSecant()),
    "Gaussian slopes": fixedpoint.ChainSolver(preconditioner=Gaussian()),
    "Gaussian slopes, triangular Anderson(3)": fixedpoint.ChainSolver(
        preconditioner=Gaussian(), accelerator=fixedpoint.Anderson(memory=3)
    ),
    "coefficients (the joint map)": fixedpoint.ChainSolver(preconditioner=Coefficient()),
}
TOLERANCE = fixedpoint.Termination(rtol=1e-3)
LEVELS = (1e-1, 1e-2, 1e-3, 1e-4)


def main() -> None:
    """Print one table per number of steps, or a table of memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+")
    parser.add_argument("--sampler", nargs="+", choices=list(SAMPLERS), help="samplers instead of DDIM")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--limit", type=int, default=16, help="memory limit of a process, in GiB")
    parser.add_argument("--child", choices=("adjoint", "serial"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(measured(asked.child, asked.steps[0], asked.batch)))
    elif asked.memory:
        memory(asked.steps or [50, 200, 1000], asked.batch, asked.limit)
    elif asked.sampler:
        for sampler in named(asked.sampler).values():
            of_sampler(sampler, asked.batch)
    else:
        for steps in asked.steps or [50, 100]:
            rounds(steps, asked.batch)


def rounds(steps: int, batch: int) -> None:
    """Print the rounds to each relative error."""
    problem, target = posed(steps, batch)
    trajectory, exact = serial_gradient(problem, target)
    table(f"N = {steps}, {batch} images", problem, trajectory, target, exact, WAYS)
    chain = problem.chain
    assert isinstance(chain, DDIMChain)
    phantom = 2 * (trajectory[:, -1] - target) / chain.levels.signal[0].float()
    cosine = torch.nn.functional.cosine_similarity(phantom.flatten(1), exact.flatten(1))
    size = phantom.flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    error = (0.1 * phantom - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    print(
        f"\none phantom step: cosine {float(cosine.min()):.2f} to {float(cosine.max()):.2f}, with tau = 1 "
        f"{float(size.min()):.0f} to {float(size.max()):.0f} times as long, with tau = 0.1 a relative error of "
        f"{float(error.min()):.1f} to {float(error.max()):.1f}"
    )


def of_sampler(sampler: Sampler, batch: int) -> None:
    """Print the rounds to each relative error for another sampler."""
    problem = sampler.problem(batch)
    target = held_out_images()[0][:batch]
    trajectory, exact = serial_gradient(problem, target)
    ways = {name: WAYS[name] for name in tuple(WAYS)[:3]}
    table(f"{sampler}, {batch} images", problem, trajectory, target, exact, ways)


def table(
    title: str,
    problem: ChainProblem,
    trajectory: Tensor,
    target: Tensor,
    exact: Tensor,
    ways: dict[str, fixedpoint.ChainSolver],
) -> None:
    """Print the rounds of the adjoint chain to each relative error."""
    print(f"\n{title}\n")
    print("| adjoint chain by | " + " | ".join(f"rounds to {level:g}" for level in LEVELS) + " |")
    print("|:--|" + "--:|" * len(LEVELS))
    for name, solver in ways.items():
        errors = errors_by_round(problem, trajectory, target, exact, solver)
        reached = [next((n for n, e in enumerate(errors, 1) if e <= level), None) for level in LEVELS]
        print(f"| {name} | " + " | ".join("-" if each is None else str(each) for each in reached) + " |", flush=True)


def memory(lengths: list[int], batch: int, limit: int) -> None:
    """Print resident sizes and seconds, measured in fresh processes."""
    activations = 2 * (fresh("serial", 16, 1, limit) or (float("nan"), 0.0))[0]
    print("| N | adjoint chain: MiB | bound | seconds | serial backpropagation: MiB | seconds |")
    print("|--:|--:|--:|--:|--:|--:|")
    for steps in lengths:
        bound = 20 * batch * steps * 1024 * 4 / 2**20 + activations
        ours, theirs = (fresh(way, steps, batch, limit) for way in ("adjoint", "serial"))
        cells = [["-", "-"] if each is None else [f"{each[0]:.0f}", f"{each[1]:.0f}"] for each in (ours, theirs)]
        print(f"| {steps} | {cells[0][0]} | {bound:.0f} | {cells[0][1]} | " + " | ".join(cells[1]) + " |", flush=True)


def fresh(way: str, steps: int, batch: int, limit: int) -> tuple[float, float] | None:
    """The measurement of a fresh process; None if it runs out of memory."""
    command = [sys.executable, __file__, "--child", way, "--steps", str(steps), "--batch", str(batch)]
    bytes_ = limit * 2**30
    told = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (bytes_, bytes_)),
    )
    if told.returncode:
        if "memory" not in told.stderr:
            raise RuntimeError(told.stderr)
        return None
    size, seconds = json.loads(told.stdout.splitlines()[-1])
    return size, seconds


def measured(way: str, steps: int, batch: int) -> tuple[float, float]:
    """Resident MiB beyond those before the chain, and the seconds of sample and gradient."""
    problem, target = posed(steps, batch)
    x_T = problem.x0.clone().requires_grad_()
    problem.pairs(x_T[:1].detach(), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    if way == "serial":
        serial_gradient(problem, target)
    else:
        problem = ChainProblem(problem.chain, x_T, max_batch=problem.max_batch)
        solution = fixedpoint.solve(
            problem, solver=fixedpoint.ChainSolver(), gradient=ChainAdjoint(termination=TOLERANCE), rtol=1e-3
        )
        (solution.z[:, -1] - target).square().sum().backward()
    seconds = time.perf_counter() - began
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10, seconds


def posed(steps: int, batch: int) -> tuple[ChainProblem, Tensor]:
    """A chain of the bundled model from random noise, and the target images."""
    model = FashionMNISTModel()
    schedule = model.own_schedule
    assert schedule is not None
    x_T, _ = draw_noise(row_seeds(0, batch), model.event_shape, 0)
    problem = ddim_problem(model.denoiser(schedule, batch, "cpu"), schedule, x_T, num_inference_steps=steps)
    images, _ = held_out_images()
    return problem, images[:batch]


def serial_gradient(problem: ChainProblem, target: Tensor) -> tuple[Tensor, Tensor]:
    """All states of the chain, and the gradient by backpropagation through the steps one after another."""
    x = problem.x0.clone().requires_grad_()
    rows, inputs, predictions, states = torch.arange(len(x)), [x], list[Tensor](), list[Tensor]()
    for i in range(problem.length):
        predictions.insert(0, problem.pairs(inputs[0], torch.full_like(rows, i), rows))
        states.append(problem.next_state(i, inputs, predictions, rows))
        inputs.insert(0, states[-1])
    state = states[-1]
    (gradient,) = torch.autograd.grad((state - target).square().sum(), x)
    return torch.stack([each.detach() for each in states], dim=1), gradient


def errors_by_round(
    problem: ChainProblem, trajectory: Tensor, target: Tensor, exact: Tensor, solver: fixedpoint.ChainSolver
) -> list[float]:
    """The relative error of the worst image's gradient after every round."""
    errors: list[float] = []

    def note(progress: Progress) -> None:
        assert progress.latest is not None
        found = progress.latest.view(exact.shape)
        errors.append(float(((found - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).max()))

    cotangent = 2 * (trajectory[:, -1] - target)
    kind = AdjointChain if problem.memoryless else AffineAdjointChain
    chain = kind(problem, trajectory, cotangent)
    joint = ChainProblem(chain, chain.start, max_batch=problem.max_batch)
    fixedpoint.solve(joint, solver=solver, rtol=1e-6, max_rounds=30, on_round=note)
    return errors


if __name__ == "__main__":
    main()
