"""Operations that a joint solve dispatches in one round, besides those of the network.

    python benchmarks/chain_operations.py [--sampler ddim --sampler 2m] [--steps 50 --steps 1000]

The solver is the joint one that ``auto`` plans with. An operation is one call of a kernel through torch's dispatcher,
as ``torch.utils._python_dispatch`` sees it. Not counted are views of tensors, questions without tensors such as
``promote_types``, and everything inside the denoiser. The count of one round is the difference of two solves that end
after different numbers of rounds, divided by the number of rounds in between. The first rounds, in which a history is
filled, are cheaper, and are printed by themselves. The denoiser is a function that costs next to nothing and does not
let the solve converge. Batch 4, images of 1 x 8 x 8, float32. The counts do not depend on the machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fixedpoint
from fixedpoint.chains import ChainProblem
from fixedpoint.chains.joint.solver import joint
from fixedpoint_diffusion import DDIMSchedule, ddim_problem

LENGTHS = (50, 1000)
SHAPE = (4, 1, 8, 8)
# Far below what is reached in these rounds, so that no state is left alone.
RTOL = 1e-6


class Operations(TorchDispatchMode):
    """Counts what is dispatched while ``paused`` is false."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.paused and _works_on_tensors(func) and not _is_view(func):
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def _works_on_tensors(func: Any) -> bool:
    """Whether an operation takes or returns a tensor."""
    schema = func._schema
    return any("Tensor" in str(each.type) for each in (*schema.arguments, *schema.returns))


def _is_view(func: Any) -> bool:
    """Whether an operation returns its argument's memory and writes nothing."""
    returned = [each.alias_info for each in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returned)


class Free:
    """A denoiser of v-prediction that is not counted."""

    def __init__(self) -> None:
        self.counter: Operations | None = None

    def __call__(self, x: Tensor, timestep: Tensor) -> Tensor:
        if self.counter is None:
            return torch.sin(3.0 * x)
        self.counter.paused = True
        value = torch.sin(3.0 * x)
        self.counter.paused = False
        return value


def ddim(denoiser: Free, steps: int) -> ChainProblem:
    """A DDIM chain without clipping."""
    schedule = DDIMSchedule(prediction_type="v_prediction", clip_sample=False)
    return ddim_problem(denoiser, schedule, _start(), num_inference_steps=steps)


def multistep(denoiser: Free, steps: int) -> ChainProblem:
    """DPM-Solver++ 2M, with the one spacing that has 1000 different timesteps for 1000 steps."""
    import diffusers

    from fixedpoint_diffusion import sampling_problem

    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="v_prediction", solver_order=2, timestep_spacing="trailing"
    )
    return sampling_problem(denoiser, scheduler, _start(), num_inference_steps=steps)


def _start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


SAMPLERS: dict[str, Callable[[Free, int], ChainProblem]] = {"ddim": ddim, "2m": multistep}


def counted(problem: ChainProblem, denoiser: Free, solver: fixedpoint.Solver, rounds: int) -> Counter[str]:
    """The operations of a solve that is ended after a number of rounds."""
    with torch.no_grad(), Operations() as found:
        denoiser.counter = found
        solution = fixedpoint.solve(problem, solver=solver, rtol=RTOL, max_rounds=rounds)
        denoiser.counter = None
    assert solution.counts.rounds == rounds, "the solve ended by itself"
    return found.counts


def main(
    sampler: Annotated[list[str] | None, typer.Option(help="ddim or 2m, repeat for several; default: both.")] = None,
    steps: Annotated[list[int] | None, typer.Option(help="N, repeat for several; default: 50 1000.")] = None,
    first: Annotated[int, typer.Option(help="The first rounds, and all of the shorter solve.")] = 5,
    rounds: Annotated[int, typer.Option(help="Rounds between the two.")] = 5,
    window: Annotated[int | None, typer.Option(help="p; default: the whole chain.")] = None,
    most: Annotated[int, typer.Option(help="So many of the most frequent operations are named.")] = 0,
) -> None:
    """Print the table."""
    names = sampler or list(SAMPLERS)
    if unknown := [name for name in names if name not in SAMPLERS]:
        raise typer.BadParameter(f"no sampler {', '.join(unknown)}; there are {', '.join(SAMPLERS)}")
    print("| sampler | N | window | operations a round | in the first rounds together |\n|:--|--:|--:|--:|--:|")
    told = []
    for name in names:
        for length in steps or LENGTHS:
            denoiser = Free()
            problem = SAMPLERS[name](denoiser, length)
            solver = joint(problem) if window is None else joint(problem, window)
            counted(problem, denoiser, solver, first)  # what is made once for a problem
            short, long = (counted(problem, denoiser, solver, count) for count in (first, first + rounds))
            each = (long.total() - short.total()) / rounds
            width = problem.length if window is None else window
            print(f"| {name} | {length} | {width} | {each:.1f} | {short.total()} |", flush=True)
            per_round = {key: (long[key] - short[key]) / rounds for key in long}
            frequent = sorted(per_round.items(), key=lambda item: -item[1])[:most]
            told += [f"{name}, N = {length}: " + ", ".join(f"{key} {value:.1f}" for key, value in frequent)]
    print("\n" + "\n".join(told) if most else "", end="\n" if most else "")


if __name__ == "__main__":
    typer.run(main)
