"""The gradient of a pipeline's sample by its latents: memory, time and network calls, against backpropagation.

    python benchmarks/pipeline_gradients.py [--name sd1] [--steps 50] [--rows 16 4]

The pipeline is a tiny one of the tests with random weights (float32, two images, guidance). The reference is
backpropagation through the undecorated ``__call__``, without and with a checkpoint around every network call. Each line
is a process of its own. "peak" is the largest resident size during the gradient beyond that before it, "ratio" that of
the peaks. "sequential" are the network calls that wait for others: forward, and backward with each evaluation that it
repeats; a round of a joint solve is one. "calls" are all calls of the network, repeated
ones included, of at most ``--rows`` rows each. "off"
is the relative difference from backpropagation.

Large tensors are returned to the system at once (MALLOC_MMAP_THRESHOLD_), so that peaks are those of tensors in use.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ROOT = Path(__file__).resolve().parents[1]
SERIAL = ("backpropagation", "checkpointed")


def status(name: str) -> int:
    """A number of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


class Gradient:
    """One way to compute the gradient, with what it counts."""

    def __init__(self, way: str, name: str, rows: int) -> None:
        from tiny_pipelines import arguments, pipeline

        self.way, self.rows, self.calls = way, rows, 0
        self.pipe, self.given = pipeline(name), arguments(name)
        for part in vars(self.pipe).values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False)
        self.network = getattr(self.pipe, "unet", None) or self.pipe.transformer
        network = self.network.forward

        def counted(*args: Any, **given: Any) -> Any:
            self.calls += 1
            return network(*args, **given)

        self.network.forward = counted

    def __call__(self, steps: int) -> tuple[Tensor, int]:
        """The gradient, and the number of sequential network calls."""
        draws = torch.Generator().manual_seed(0)
        latents = torch.randn(2, 4, 8, 8, generator=draws, requires_grad=True)
        given = {**self.given, "num_inference_steps": steps, "latents": latents}
        if self.way in SERIAL:
            return self._serially(given), (2 if self.way == "backpropagation" else 3) * steps
        return self._jointly(given)

    def _serially(self, given: dict[str, Any]) -> Tensor:
        own = self.network.forward
        if self.way == "checkpointed":
            self.network.forward = lambda *args, **kwargs: checkpoint(own, *args, use_reentrant=False, **kwargs)
        images = inspect.unwrap(type(self.pipe).__call__)(self.pipe, **given).images
        images.square().sum().backward()
        self.network.forward = own
        return given["latents"].grad

    def _jointly(self, given: dict[str, Any]) -> tuple[Tensor, int]:
        from fixedpoint.chains import ChainAdjoint
        from fixedpoint_diffusion import parallel

        solver, adjoint, form = self.way.split()
        by = ChainAdjoint(solver=joint(adjoint))
        sampler = parallel(self.pipe, rtol=1e-4, solver=joint(solver), gradient=by, max_batch=self.rows, form=form)
        sampler(**given).images.square().sum().backward()
        assert sampler.solution is not None
        report = sampler.solution.extras["adjoint"]
        # A round of the adjoint chain evaluates and goes back; the last pass over all steps does so once more.
        return given["latents"].grad, int(sampler.solution.counts.rounds + 2 * report.rounds + 2)


def joint(name: str) -> Any:
    """A solver of chains: joint, or one step after another."""
    import fixedpoint
    from fixedpoint.chains import BlockSecant, ChainSolver

    return fixedpoint.Serial() if name == "serial" else ChainSolver(accelerator=BlockSecant())


def measured(way: str, name: str, steps: int, rows: int) -> dict[str, Any]:
    """Peak, seconds, counts and gradient, in this process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    gradient = Gradient(way, name, rows)
    gradient(3)  # what is imported and made once
    gradient.calls = 0
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here
    before, began = status("VmRSS"), time.perf_counter()
    found, sequential = gradient(steps)
    seconds = time.perf_counter() - began
    peak = status("VmHWM") - before
    return {
        "peak": peak,
        "seconds": seconds,
        "calls": gradient.calls,
        "sequential": sequential,
        "gradient": found.flatten().tolist(),
    }


def fresh(*asked: Any) -> dict[str, Any]:
    """The same, in a fresh process."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "16384", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", *map(str, asked)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="sd1")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 4], help="rows of the largest batch")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        way, name, steps, rows = asked.child
        print(json.dumps(measured(way, name, int(steps), int(rows))))
        return
    ways = [(way, 4) for way in SERIAL]
    ways += [(f"joint joint {form}", rows) for form in ("affine", "tables", "steps") for rows in asked.rows]
    ways += [("serial serial affine", asked.rows[0])]
    print(f"{asked.name}, {asked.steps} steps")
    print(f"{'forward, adjoint, form':24} rows  peak MB  ratio  seconds  sequential  calls  off")
    reference: dict[str, Any] = {}
    for way, rows in ways:
        found = fresh(way, asked.name, asked.steps, rows)
        reference = reference or found
        one, other = (torch.tensor(each["gradient"]).double() for each in (found, reference))
        print(
            f"{way:24} {rows:4}  {found['peak'] / 1e6:7.1f}  {found['peak'] / reference['peak']:5.2f}  "
            f"{found['seconds']:7.1f}  {found['sequential']:10}  {found['calls']:5}  "
            f"{float((one - other).norm() / other.norm()):.0e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
