"""Networks as denoisers: conditioning, guidance, precision, micro-batches, what they may return."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fixedpoint
from fixedpoint_diffusion import DDIMSchedule, ddim_problem, draw_noise
from fixedpoint_diffusion.denoisers.convert import as_denoiser
from fixedpoint_diffusion.denoisers.network import NetworkDenoiser

SCHEDULE = DDIMSchedule(clip_sample=False)


class Linear(nn.Module):
    """``x`` times a weight of its class, plus a share of the timestep; remembers how it was called."""

    def __init__(self, wrap: Any = lambda value: value) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.1, 1.0, 5))
        self.wrap = wrap
        self.sizes: list[int] = []
        self.dtypes: list[torch.dtype] = []
        self.eval()

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Any:
        self.sizes.append(len(x))
        self.dtypes.append(x.dtype)
        labels = torch.zeros_like(timestep) if class_labels is None else class_labels
        column = (self.weight[labels] + timestep.to(x.dtype) / 1000).view(-1, *[1] * (x.ndim - 1))
        return self.wrap(x * column)


def predicted(denoiser: NetworkDenoiser, x: Tensor, rows: list[int]) -> Tensor:
    timestep = torch.arange(len(x)) * 10
    return denoiser.predict(x, timestep, torch.tensor(rows))


def drawn(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(rows=st.lists(st.integers(0, 2), min_size=1, max_size=9), scale=st.floats(0.0, 8.0), seed=st.integers(0, 10**6))
def test_guidance_is_the_published_combination(rows: list[int], scale: float, seed: int) -> None:
    network, labels = Linear(), torch.tensor([1, 3, 2])
    x = drawn(len(rows), seed)
    free = predicted(NetworkDenoiser(network, conditioning={"class_labels": torch.full((3,), 4)}), x, rows)
    guided = predicted(NetworkDenoiser(network, conditioning={"class_labels": labels}), x, rows)
    both = NetworkDenoiser(
        network,
        conditioning={"class_labels": labels},
        unconditional={"class_labels": torch.tensor([4])},
        guidance_scale=scale,
    )
    torch.testing.assert_close(predicted(both, x, rows), free + scale * (guided - free), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
@pytest.mark.parametrize("states", [torch.float32, torch.float64])
def test_the_gradient_by_the_guidance_scale_is_the_difference(scale: float, states: torch.dtype) -> None:
    """At a scale of 1 as well, where nothing is added."""
    network, labels = Linear(), {"class_labels": torch.tensor([1, 3, 2])}
    none = {"class_labels": torch.tensor([4])}
    leaf = torch.tensor(scale, requires_grad=True)
    x, rows = drawn(3, 8, states), [0, 1, 2]
    both = NetworkDenoiser(network, conditioning=labels, unconditional=none, guidance_scale=leaf)
    (found,) = torch.autograd.grad(predicted(both, x, rows).sum(), leaf)
    guided = predicted(NetworkDenoiser(network, conditioning=labels), x, rows)
    free = predicted(NetworkDenoiser(network, conditioning={"class_labels": torch.full((3,), 4)}), x, rows)
    torch.testing.assert_close(found, (guided - free).sum().float())


def test_every_row_has_its_own_conditioning() -> None:
    network, labels = Linear(), torch.tensor([1, 3, 2])
    x = drawn(4, 0)
    together = predicted(NetworkDenoiser(network, conditioning={"class_labels": labels}), x, [2, 0, 1, 0])
    for place, row in enumerate([2, 0, 1, 0]):
        weight = network.weight[labels[row]] + place * 10 / 1000
        torch.testing.assert_close(together[place], x[place] * weight)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda value: value,
        lambda value: (value, None),
        lambda value: SimpleNamespace(sample=value),
        lambda value: SimpleNamespace(sample=torch.cat([value, value * 7], dim=1)),
    ],
    ids=["tensor", "tuple", "sample", "learned variance"],
)
def test_what_a_network_may_return(wrap: Any) -> None:
    x = drawn(3, 1)
    expected = predicted(NetworkDenoiser(Linear()), x, [0, 1, 2])
    assert torch.equal(predicted(NetworkDenoiser(Linear(wrap)), x, [0, 1, 2]), expected)


@pytest.mark.parametrize("states", [torch.float32, torch.float64])
def test_the_network_computes_in_its_own_dtype_and_states_keep_theirs(states: torch.dtype) -> None:
    network = Linear().to(torch.bfloat16)
    value = predicted(NetworkDenoiser(network), drawn(3, 2, states), [0, 1, 2])
    assert network.dtypes == [torch.bfloat16]
    assert value.dtype == states


@pytest.mark.parametrize(("guidance", "most"), [(1.0, 16), (3.0, 16)])
def test_a_cpu_evaluates_sixteen_images_at_once(guidance: float, most: int) -> None:
    network = Linear()
    denoiser = NetworkDenoiser(
        network,
        conditioning={"class_labels": torch.tensor([0, 1])},
        unconditional={"class_labels": torch.tensor([2])},
        guidance_scale=guidance,
    )
    x_T, _ = draw_noise([0, 1], (1, 2, 2))
    problem = ddim_problem(denoiser, SCHEDULE, x_T, num_inference_steps=20)
    solution = fixedpoint.solve(problem, solver="anderson", rtol=1e-5)
    assert max(network.sizes) == most
    assert solution.counts.calls == len(network.sizes)


LABELS = {"class_labels": torch.tensor([0, 1])}


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: NetworkDenoiser(max), "network must be a torch.nn.Module, got builtin_function_or_method"),
        (lambda: NetworkDenoiser(Linear().train()), "in training mode"),
        (lambda: as_denoiser(Linear().train()), "call network.eval"),
        (lambda: NetworkDenoiser(Linear(), conditioning={"class_labels": [0, 1]}), "must be a tensor .* got list"),
        (
            lambda: NetworkDenoiser(Linear(), conditioning={"class_labels": torch.tensor(1)}),
            "one entry per row of the batch, got Tensor of no dimension",
        ),
        (
            lambda: NetworkDenoiser(Linear(), conditioning={"a": torch.zeros(2), "b": torch.zeros(3)}),
            r"one entry per row in every argument, got lengths \{'a': 2, 'b': 3\}",
        ),
        (lambda: NetworkDenoiser(Linear(), guidance_scale=2.0), "guidance_scale = 2 requires conditioning"),
        (
            lambda: NetworkDenoiser(
                Linear(), conditioning=LABELS, guidance_scale=torch.tensor(1.0, requires_grad=True)
            ),
            "guidance_scale = 1 requires unconditional values for class_labels, got none",
        ),
        (
            lambda: NetworkDenoiser(Linear(), conditioning=LABELS, guidance_scale=2.0),
            "requires unconditional values for class_labels, got none",
        ),
        (
            lambda: ddim_problem(NetworkDenoiser(Linear(), conditioning=LABELS), SCHEDULE, torch.zeros(3, 1, 2, 2)),
            "conditioned for 2 rows, x_T has 3",
        ),
        (
            lambda: predicted(NetworkDenoiser(Linear(lambda value: {"x": value})), drawn(1, 0), [0]),
            "a network must return a tensor, or an object with a sample, got dict",
        ),
    ],
)
def test_bad_input_is_a_sentence(act: Any, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        act()
