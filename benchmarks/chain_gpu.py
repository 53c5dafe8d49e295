"""Serial against joint sampling on a GPU: seconds, rounds, evaluations, error and memory.

    python benchmarks/chain_gpu.py
    python benchmarks/chain_gpu.py --network unet [--weights FOLDER] [--dtype bfloat16]

The network is the bundled Fashion-MNIST model, or a U-Net of the size of DDPM's for CIFAR-10 (Ho et al. 2020: 32 x 32 x
3, 35.7 million parameters, the configuration of ``google/ddpm-cifar10-32``). The U-Net has random weights from a seed,
or, with FOLDER, those of a model that ``save_pretrained`` wrote. The cost of rounds and evaluations does not depend on
the weights, but the number of rounds does: measure it with trained weights.

Joint solves start from one jump and are accelerated by triangular Anderson, memory 2. They solve for the whole chain if
it fits into half of the free memory, and in a window. The error is that of the last state, relative to that of the
serial chain, of the worst image. States are float32. TF32 is off unless requested: networks round differently in
batches of another size, and TF32 has a precision of three digits only.

Every solve is run once as a warm-up and then timed, with the device synchronised before and after; the best time
counts. Memory is the peak of the memory allocated during the solve, including the network. ``--device cpu`` prints the
same table without memory.
"""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

import fixedpoint
from fixedpoint.chains import ChainProblem
from fixedpoint_diffusion import (
    DDIMSchedule,
    Denoiser,
    DiffusersModel,
    FashionMNISTModel,
    NetworkDenoiser,
    ddim_problem,
    draw_noise,
    row_seeds,
)

MEMORY = 2
BUFFERS = 2 * MEMORY + 8  # of the size of the window, at most, that such a solve holds
CIFAR = DDIMSchedule(beta_schedule="linear", beta_start=1e-4, beta_end=2e-2, clip_sample=True)


@dataclass(frozen=True)
class Network:
    """A denoiser, the shape of its images, and the schedule it was trained with."""

    name: str
    denoiser: Denoiser
    event_shape: tuple[int, ...]
    schedule: DDIMSchedule


def bundled(rows: int, dtype: str, device: str) -> Network:
    model = FashionMNISTModel(dtype=dtype)
    schedule = model.own_schedule
    assert schedule is not None  # it comes with one
    return Network("bundled Fashion-MNIST model", model.denoiser(schedule, rows, device), model.event_shape, schedule)


def unet(rows: int, dtype: str, device: str, weights: Path | None) -> Network:
    if weights is not None:
        model = DiffusersModel(path=str(weights), dtype=dtype)
        schedule = model.own_schedule or CIFAR
        return Network(str(weights), model.denoiser(schedule, rows, device), model.event_shape, schedule)
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )
    network = network.to(device).eval().requires_grad_(False)
    network = network if dtype == "float32" else network.to(torch.bfloat16)
    return Network("U-Net of CIFAR-10's size, random weights", NetworkDenoiser(network), (3, 32, 32), CIFAR)


def joint(window: int | None) -> fixedpoint.ChainSolver:
    return fixedpoint.ChainSolver(accelerator=fixedpoint.Anderson(memory=MEMORY), start="one-jump", window=window)


def fits(problem: ChainProblem) -> bool:
    """Whether a solve of the whole chain is expected to take less than half of the free memory."""
    if problem.x0.device.type != "cuda":
        return True
    needed = BUFFERS * problem.length * problem.x0.numel() * problem.x0.element_size()
    return 2 * needed < torch.cuda.mem_get_info(problem.x0.device)[0]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(
    problem: ChainProblem, solver: object, rtol: float, repeats: int
) -> tuple[fixedpoint.Solution, float, float | None]:
    """The solution, the best time in seconds, and the peak of the memory in bytes."""
    device, best, solution = problem.x0.device, float("inf"), None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for repeat in range(repeats + 1):
        del solution  # of the peak that follows it is no part
        wait(device)
        began = time.perf_counter()
        solution = fixedpoint.solve(problem, solver=solver, rtol=rtol)
        wait(device)
        best = best if repeat == 0 else min(best, time.perf_counter() - began)
    return solution, best, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The relative error of the worst image."""
    difference = (found - wanted).flatten(1).double().norm(dim=1)
    return float((difference / wanted.flatten(1).double().norm(dim=1)).amax())


def machine(device: str) -> str:
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def main(
    network: Annotated[Literal["bundled", "unet"], typer.Option(help="The denoiser.")] = "bundled",
    weights: Annotated[Path | None, typer.Option(help="Folder of a diffusers U-Net; default: random ones.")] = None,
    steps: Annotated[list[int] | None, typer.Option(help="N, repeat for several; default: 50 100 1000.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Images, repeat for several; default: 1 4 16.")] = None,
    window: Annotated[int, typer.Option(help="Steps of the windowed solve, of longer chains.")] = 64,
    rtol: Annotated[float, typer.Option(help="Tolerance of the joint solves.")] = 1e-3,
    repeats: Annotated[int, typer.Option(min=1, help="Number of timed solves; the best one counts.")] = 5,
    max_batch: Annotated[
        int | None, typer.Option(help="Largest number of images per call; default: that of the library.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Dtype of the network; states are float32.")
    ] = "float32",
    tf32: Annotated[bool, typer.Option(help="Let float32 networks compute in TF32.")] = False,
    device: str = "cuda",
    seed: int = 0,
) -> None:
    """Print the table."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no CUDA device here; --device cpu runs on the CPU")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    titled = False
    for rows in batch or [1, 4, 16]:
        made = bundled(rows, dtype, device) if network == "bundled" else unet(rows, dtype, device, weights)
        if not titled:
            print(f"{made.name}, {dtype}{', TF32' if tf32 else ''}, to {rtol:g}: {machine(device)}, ", end="")
            print(f"torch {torch.__version__}\n")
            print("| N | images | solver | rounds | evaluations an image | error | seconds | of serial | peak memory |")
            print("|--:|--:|---|--:|--:|--:|--:|--:|--:|", flush=True)
            titled = True
        for length in steps or [50, 100, 1000]:
            x_T, _ = draw_noise(row_seeds(seed, rows), made.event_shape, device=device)
            problem = ddim_problem(made.denoiser, made.schedule, x_T, num_inference_steps=length, max_batch=max_batch)
            solvers: dict[str, object] = {"serial": "serial"}
            if fits(problem):
                solvers["joint"] = joint(None)
            else:
                print(f"N = {length}, {rows} images: too much for a whole chain", file=sys.stderr)
            if window < length:
                solvers[f"joint, window {window}"] = joint(window)
            wanted, reference = x_T, 0.0
            for name, solver in solvers.items():
                solution, seconds, peak = timed(problem, solver, rtol, repeats)
                if name == "serial":
                    wanted, reference = solution.z[:, -1], seconds
                print(
                    f"| {length} | {rows} | {name} | {solution.counts.rounds} | {solution.evaluations.mean():.0f} "
                    f"| {apart(solution.z[:, -1], wanted):.1e} | {seconds:.3f} | {seconds / reference:.2f} "
                    f"| {'' if peak is None else f'{peak / 2**20:.0f} MiB'} |",
                    flush=True,
                )


if __name__ == "__main__":
    typer.run(main)
