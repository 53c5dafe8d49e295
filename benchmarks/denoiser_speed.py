"""The time of one evaluation of the bundled model by the number of images at once, and the time to load it.

python benchmarks/denoiser_speed.py
"""

from __future__ import annotations

import os
import time

import torch

BATCHES = (1, 4, 16, 64, 400)


def main() -> None:
    """Print the table: the best time of several calls, with two threads."""
    torch.set_num_threads(2)
    began = time.perf_counter()
    import diffusers

    imported = time.perf_counter()
    diffusers.DiTTransformer2DModel  # noqa: B018 -- diffusers imports what its models need when one is first named
    named = time.perf_counter()
    from fixedpoint_diffusion import FashionMNISTModel

    model = FashionMNISTModel()
    schedule = model.own_schedule
    assert schedule is not None
    model.denoiser(schedule)
    loaded = time.perf_counter()
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}, {os.cpu_count()} cores, 2 threads")
    print(f"import diffusers {imported - began:.2f} s, its model class {named - imported:.2f} s", end=", ")
    print(f"load the bundled model {loaded - named:.2f} s\n")
    print("| images at once | milliseconds an image |\n|--:|--:|")
    for batch in BATCHES:
        denoiser = model.denoiser(schedule, batch)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, *model.event_shape, generator=generator)
        timestep = torch.randint(0, 1000, (batch,), generator=generator)
        with torch.no_grad():
            seconds = min(once(lambda: denoiser.predict(x, timestep, torch.arange(batch))) for _ in range(20))  # noqa: B023
        print(f"| {batch} | {1e3 * seconds / batch:.2f} |", flush=True)


def once(call: object) -> float:
    """The seconds of one call."""
    began = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
