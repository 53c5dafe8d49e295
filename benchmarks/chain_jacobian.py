"""Why inexact gradients can descend faster: the Jacobian of a chain's end by its noise, and two directions of descent.

    python benchmarks/chain_jacobian.py [--images 2] [--steps 50]

The chain is DDIM with eta 0 of the bundled model with the classes of test images, in float32, from random noise. With
the residual ``r = x_0(x_T) - x*``, the exact gradient of ``||r||^2`` points along ``J^T r``, and the gradient by a
single step of the joint map (Pokle, Geng & Kolter 2022) along ``r``. The whole Jacobian ``J``, computed by 1024
products through the serial chain in forward mode, shows the effect of both: the part of ``||r||^2`` that is left after
the best step along each direction, and after many steps if ``x_0`` were linear (steepest descent, and the method of
minimal residuals, which converges if the symmetric part of ``J`` is positive definite). It takes some eight minutes per
image on two cores.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fixedpoint_diffusion import DDIMChain, FashionMNISTModel, ddim_problem, draw_noise, held_out_images, row_seeds

BATCH = 64
COUNTS = (1, 10, 50, 200)


def chain_of(steps: int, label: int) -> DDIMChain:
    """The chain of the bundled model for images of one class."""
    model = FashionMNISTModel(classes=(label,) * BATCH)
    schedule = model.own_schedule
    assert schedule is not None
    start = torch.zeros(BATCH, *model.event_shape)
    problem = ddim_problem(model.denoiser(schedule, BATCH), schedule, start, num_inference_steps=steps)
    assert isinstance(problem.chain, DDIMChain)
    return problem.chain


def linearised(chain: DDIMChain, x_T: Tensor) -> tuple[Tensor, Tensor]:
    """``x_0``, shape ``(D,)``, and its Jacobian with respect to the noise, shape ``(D, D)``; both float64."""
    rows = torch.arange(BATCH)
    columns = []
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for directions in torch.eye(x_T.numel()).view(-1, *x_T.shape).split(BATCH):
            with forward_ad.dual_level():
                x = forward_ad.make_dual(x_T.expand_as(directions).clone(), directions)
                for step in range(chain.length):
                    x = chain.step(x, torch.full_like(rows, step), rows)
                value, tangent = forward_ad.unpack_dual(x)
            assert tangent is not None
            columns.append(tangent.flatten(1))
    return value[0].flatten().double(), torch.cat(columns).T.double()


def left(jacobian: Tensor, residual: Tensor, transposed: bool) -> list[float]:
    """The parts of ``||r||^2`` left after given numbers of steps of optimal length, for the linearised chain."""
    found, r = [], residual
    for count in range(1, COUNTS[-1] + 1):
        along = jacobian @ (jacobian.T @ r if transposed else r)
        r = r - (r @ along) / (along @ along) * along
        if count in COUNTS:
            found.append(float(r @ r / (residual @ residual)))
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    images, labels = held_out_images()
    start, _ = draw_noise(row_seeds(0, asked.images), images.shape[1:])
    for number in range(asked.images):
        began = time.perf_counter()
        made, jacobian = linearised(chain_of(asked.steps, int(labels[number])), start[number])
        residual = made - images[number].flatten().double()
        sizes = torch.linalg.svdvals(jacobian)
        eigenvalues = torch.linalg.eigvals(jacobian)
        symmetric = torch.linalg.eigvalsh((jacobian + jacobian.T) / 2)
        print(
            f"\nimage {number}: singular values {sizes[0]:.3g} (largest), {sizes.median():.3g} (median), "
            f"{sizes[-1]:.3g} (smallest); eigenvalues with a real part from {eigenvalues.real.min():.3g} to "
            f"{eigenvalues.real.max():.3g}, {int((eigenvalues.real <= 0).sum())} of {len(eigenvalues)} not positive; "
            f"of the symmetric part {int((symmetric <= 0).sum())}; squared error {residual @ residual:.4g}; "
            f"{time.perf_counter() - began:.0f} s\n"
        )
        print("| direction | " + " | ".join(f"left after {count}" for count in COUNTS) + " |")
        print("|:--|" + "--:|" * len(COUNTS))
        for name, transposed in (("J^T r, the gradient", True), ("r, the one step", False)):
            parts = " | ".join(f"{part:.3f}" for part in left(jacobian, residual, transposed))
            print(f"| {name} | {parts} |", flush=True)


if __name__ == "__main__":
    main()
