"""How networks are called: arguments by their names, nested conditioning row by row, what is shared whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import Tensor, nn

import fixedpoint
from fixedpoint_diffusion import NetworkDenoiser, as_denoiser, ddim_problem

STEPS, SCALE = 4, 3.0
ROWS = 3


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def sdxl() -> UNet2DConditionModel:
    """Of the shape of Stable Diffusion XL: text tokens, pooled texts and sizes."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=6 * 2 + 4,
    ).eval()


def texts(rows: int, seed: int) -> dict[str, Any]:
    return {
        "encoder_hidden_states": drawn(rows, ROWS, 8, seed=seed),  # as many tokens as rows
        "added_cond_kwargs": {"text_embeds": drawn(rows, 4, seed=seed + 1), "time_ids": drawn(rows, 6, seed=seed + 2)},
    }


def of_row(values: dict[str, Any], row: int) -> dict[str, Any]:
    return {k: of_row(v, row) if isinstance(v, dict) else v[row : row + 1] for k, v in values.items()}


def looped(predict: Callable[[Tensor, Tensor, int], Tensor], x: Tensor) -> Tensor:
    """Row by row, each alone: a loop over scheduler.step."""
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)
    found = []
    for row in range(len(x)):
        state = x[row : row + 1]
        with torch.no_grad():
            for t in scheduler.timesteps:
                state = scheduler.step(predict(state, t, row), int(t), state).prev_sample
        found.append(state)
    return torch.cat(found)


@pytest.mark.parametrize("solver", ["serial", "picard"])
@pytest.mark.parametrize("guided", [False, True])
def test_nested_conditioning_goes_in_row_by_row(sdxl: UNet2DConditionModel, solver: str, guided: bool) -> None:
    given, free = texts(ROWS, 1), texts(1, 11)
    guidance = {"unconditional": free, "guidance_scale": SCALE} if guided else {}
    denoiser = NetworkDenoiser(sdxl, conditioning=given, **guidance)
    x = drawn(ROWS, 2, 8, 8, seed=7)

    def predict(state: Tensor, t: Tensor, row: int) -> Tensor:
        conditional = sdxl(state, t, **of_row(given, row)).sample
        if not guided:
            return conditional
        plain = sdxl(state, t, **free).sample
        return plain + SCALE * (conditional - plain)

    problem = ddim_problem(denoiser, DDIMScheduler(clip_sample=False), x, num_inference_steps=STEPS)
    with torch.no_grad():
        ours = fixedpoint.solve(problem, solver=solver, rtol=1e-6).z[:, -1]
    torch.testing.assert_close(ours, looped(predict, x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tokens", [1, ROWS, 2 * ROWS, STEPS * ROWS])
@pytest.mark.parametrize("guided", [False, True])
def test_what_is_shared_is_handed_on_whole_whatever_its_size(tokens: int, guided: bool) -> None:
    memory, labels = drawn(tokens, 2, seed=3), torch.tensor([0.1, 0.2, 0.3])
    free = torch.tensor([0.7])

    class Remembering(nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor, extra: dict[str, Tensor]) -> Tensor:
            shift = extra["memory"].square().mean() + extra["own"]
            return torch.tanh(
                x * label[:, None, None, None] + shift[:, None, None, None] + t[:, None, None, None] / 1e3
            )

    guidance: dict[str, Any] = {"guidance_scale": SCALE} if guided else {}
    if guided:
        guidance["unconditional"] = {"label": free, "extra": {"own": free}}
    network = Remembering().eval()
    denoiser = NetworkDenoiser(
        network,
        conditioning={"label": labels, "extra": {"own": labels}},
        shared={"extra": {"memory": memory}},
        **guidance,
    )
    x = drawn(ROWS, 1, 2, 2, seed=4)

    def predict(state: Tensor, t: Tensor, row: int) -> Tensor:
        def alone(label: Tensor) -> Tensor:
            return network(state, t.view(1), label, {"memory": memory, "own": label})

        conditional = alone(labels[row : row + 1])
        return alone(free) + SCALE * (conditional - alone(free)) if guided else conditional

    problem = ddim_problem(denoiser, DDIMScheduler(clip_sample=False), x, num_inference_steps=STEPS)
    ours = fixedpoint.solve(problem, solver="picard", rtol=1e-6).z[:, -1]
    torch.testing.assert_close(ours, looped(predict, x), rtol=1e-4, atol=1e-4)


def test_tuples_of_tensors_and_none() -> None:
    class Residual(nn.Module):
        def forward(self, x: Tensor, t: Tensor, parts: list[Tensor], nothing: Any) -> Tensor:
            assert nothing is None
            return x * 0 + (parts[0] + 10 * parts[1]).view(-1, 1)

    one, other = torch.arange(3.0), torch.arange(3.0) + 5
    denoiser = NetworkDenoiser(Residual().eval(), conditioning={"parts": (one, other), "nothing": None})
    found = denoiser.predict(torch.zeros(4, 1), torch.zeros(4), torch.tensor([2, 0, 0, 1]))
    assert found[:, 0].tolist() == [72.0, 50.0, 50.0, 61.0]


def test_named_tuples_of_tensors() -> None:
    class Pair(NamedTuple):
        one: Tensor
        other: Tensor

    class Paired(nn.Module):
        def forward(self, x: Tensor, t: Tensor, pair: Pair) -> Tensor:
            return x * 0 + (pair.one + 10 * pair.other).view(-1, 1)

    pair = Pair(torch.arange(3.0), torch.arange(3.0) + 5)
    denoiser = NetworkDenoiser(Paired().eval(), conditioning={"pair": pair})
    found = denoiser.predict(torch.zeros(2, 1), torch.zeros(2), torch.tensor([2, 0]))
    assert found[:, 0].tolist() == [72.0, 50.0]


def test_of_unconditional_values_some_may_be_one_for_all(sdxl: UNet2DConditionModel) -> None:
    given, free = texts(ROWS, 1), texts(ROWS, 11)
    one = {**free, "encoder_hidden_states": free["encoder_hidden_states"][:1]}
    full = {**free, "encoder_hidden_states": one["encoder_hidden_states"].expand(ROWS, -1, -1)}
    at = (drawn(ROWS, 2, 8, 8), torch.full((ROWS,), 5), torch.arange(ROWS))
    with torch.no_grad():
        found, wanted = (
            NetworkDenoiser(sdxl, conditioning=given, unconditional=each, guidance_scale=SCALE).predict(*at)
            for each in (one, full)
        )
    assert torch.equal(found, wanted)


class First(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + t


class ByPosition(nn.Module):
    def forward(self, x: Tensor, t: Tensor, /) -> Tensor:
        return x + t


class Swapped(nn.Module):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return x + t


class Later(nn.Module):
    def forward(self, hidden: Tensor, text: Tensor | None = None, timesteps: Tensor | None = None) -> Tensor:
        assert text is None
        return hidden + timesteps


class KeywordOnly(nn.Module):
    def forward(self, x: Tensor, *, timestep: Tensor) -> Tensor:
        return x + timestep


class AllKeywords(nn.Module):
    def forward(self, *, sample: Tensor, timestep: Tensor) -> Tensor:
        return sample + timestep


class Unnamed(nn.Module):
    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        return x + noise_level


class Anything(nn.Module):
    def forward(self, *arguments: Tensor) -> Tensor:
        return arguments[0] + arguments[1]


class Around(nn.Module):
    """Somebody's own wrapper, whose part has a name of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.denoising = network

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.denoising(*arguments, **named)


KINDS = [First, ByPosition, Swapped, Later, KeywordOnly, AllKeywords, Unnamed, Anything]


def compiled(network: nn.Module) -> Any:
    return torch.compile(network, backend="eager")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "wrap"),
    [
        *((kind, lambda network: network) for kind in KINDS),
        *((kind, nn.DataParallel) for kind in KINDS),
        (Later, compiled),
        (Swapped, compiled),
        *((kind, Around) for kind in KINDS),
    ],
)
def test_the_timestep_goes_where_the_signature_has_it(kind: type[nn.Module], wrap: Any) -> None:
    denoiser = NetworkDenoiser(wrap(kind().eval()).eval())
    found = denoiser.predict(torch.zeros(2, 1), torch.tensor([[3.0], [4.0]]), torch.tensor([0, 1]))
    assert found.tolist() == [[3.0], [4.0]]


def test_networks_whose_second_argument_is_the_text() -> None:
    """SD3 and PixArt: called by position, the timestep would be taken for the text."""
    torch.manual_seed(0)
    common = {"sample_size": 8, "in_channels": 4, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}
    sd3 = SD3Transformer2DModel(
        **common, joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4
    ).eval()
    pixart = PixArtTransformer2DModel(
        **common, out_channels=8, cross_attention_dim=16, caption_channels=8, use_additional_conditions=False
    ).eval()
    x, text = drawn(2, 4, 8, 8), drawn(2, 2, 8, seed=1)
    pooled = {"pooled_projections": drawn(2, 8, seed=2)}
    plain = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    t = torch.tensor([500, 20])
    for network, rows, shared in ((sd3, pooled, {}), (pixart, {}, plain)):
        given = {"encoder_hidden_states": text, **rows}
        with torch.no_grad():
            found = NetworkDenoiser(network, conditioning=given, shared=shared).predict(x, t, torch.arange(2))
            expected = network(hidden_states=x, timestep=t, **given, **shared).sample[:, :4]
        assert torch.equal(found, expected)
        with pytest.raises(ValueError, match="is conditioned on encoder_hidden_states; give it as NetworkDenoiser"):
            as_denoiser(network)


def class_conditional() -> UNet2DModel:
    return UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        num_class_embeds=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()


class Wanting(nn.Module):
    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return x


class Timeless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Unclear(nn.Module):
    def forward(self, x: Tensor, class_labels: Tensor, level: Tensor) -> Tensor:
        return x


LABELS = {"class_labels": torch.tensor([0, 1])}


def of_one(x: Tensor) -> Tensor:
    return x


def guided(scale: Any) -> NetworkDenoiser:
    return NetworkDenoiser(class_conditional(), conditioning=LABELS, unconditional=LABELS, guidance_scale=scale)


def of_three(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return x * y * z


def of_time_first(t: Tensor, x: Tensor) -> Tensor:
    return x * t


def of_texts(x: Tensor, text: Tensor | None = None, timestep: Tensor | None = None) -> Tensor:
    assert text is None
    return x if timestep is None else x * timestep


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: as_denoiser(Wanting().eval()), "Wanting is conditioned on text"),
        (lambda: as_denoiser(nn.DataParallel(Wanting()).eval()), "Wanting is conditioned on text"),
        (lambda: as_denoiser(Timeless().eval()), "Timeless takes no timestep: its arguments are x"),
        (lambda: as_denoiser(Unclear().eval()), "does not say which of its arguments is the timestep"),
        (lambda: as_denoiser(class_conditional()), "UNet2DModel is conditioned on class_labels"),
        (lambda: as_denoiser(compiled(class_conditional())), "UNet2DModel is conditioned on class_labels"),
        (
            lambda: NetworkDenoiser(class_conditional(), conditioning={"class_label": torch.zeros(2)}),
            'takes no class_label; did you mean "class_labels"',
        ),
        (lambda: as_denoiser(UNet2DModel), "got the class UNet2DModel itself; pass an instance"),
        (lambda: as_denoiser(class_conditional().config), "which is a configuration"),
        (lambda: as_denoiser(of_one), r"a function g\(x, timestep\), got one of \(x\)"),
        (lambda: as_denoiser(of_three), r"got one of \(x, y, z\)"),
        (lambda: as_denoiser(of_texts), "whose timestep comes elsewhere"),
        (lambda: as_denoiser(of_time_first), r"got one of \(t, x\), whose t comes elsewhere"),
        (lambda: as_denoiser(AutoencoderKL().eval()), "AutoencoderKL takes no timestep"),
        (
            lambda: as_denoiser(DDIMPipeline(class_conditional(), DDIMScheduler()).__call__),
            "got a whole DDIMPipeline; pass its parts",
        ),
        (
            lambda: NetworkDenoiser(class_conditional(), conditioning={**LABELS, "sample": torch.zeros(2)}),
            "UNet2DModel is given its sample by the chain; leave it out",
        ),
        (lambda: NetworkDenoiser(class_conditional(), conditioning=[1]), "conditioning must be a mapping .* got list"),
        (lambda: NetworkDenoiser(class_conditional(), shared=torch.zeros(2)), "shared must be a mapping .* got Tensor"),
        (lambda: NetworkDenoiser(class_conditional(), shared={1: 2}), "shared must have names .* got 1"),
        (lambda: guided("2"), "guidance_scale must be a number or a tensor .* got str"),
        (lambda: guided(torch.ones(2)), r"a tensor of shape \(\), got a tensor of shape \(2,\)"),
        (lambda: guided(float("nan")), "guidance_scale must be finite, got nan"),
        (lambda: as_denoiser(DDIMScheduler()), "got DDIMScheduler"),
        (
            lambda: NetworkDenoiser(class_conditional(), conditioning=LABELS, shared=LABELS),
            "'class_labels' is both in conditioning and in shared",
        ),
        (
            lambda: NetworkDenoiser(Wanting().eval(), conditioning={"text": {"a": 1.0}}),
            "conditioning 'text.a' must be a tensor .* got float; what is the same for all rows goes in shared",
        ),
        (
            lambda: NetworkDenoiser(
                Wanting().eval(), conditioning={"text": {"a": torch.zeros(2, 3), "b": torch.zeros(3, 3)}}
            ),
            r"got lengths \{'text.a': 2, 'text.b': 3\}",
        ),
        (
            lambda: NetworkDenoiser(
                Wanting().eval(),
                conditioning={"text": {"a": torch.zeros(2, 3)}},
                unconditional={"text": {"a": torch.zeros(1, 4)}},
                guidance_scale=2.0,
            ),
            r"unconditional 'text.a' must have shape \(2, 3\), or one entry for all, .* got \(1, 4\)",
        ),
        (
            lambda: NetworkDenoiser(
                Wanting().eval(),
                conditioning={"text": {"a": torch.zeros(2, 3)}},
                unconditional={"text": torch.zeros(1, 3)},
                guidance_scale=2.0,
            ),
            "guidance_scale = 2 requires unconditional values for text.a, got text",
        ),
        (
            lambda: ddim_problem(
                NetworkDenoiser(class_conditional(), conditioning={"class_labels": torch.arange(4)}),
                DDIMScheduler(),
                torch.zeros(2, 3, 8, 8),
            ),
            "conditioned for 4 rows, x_T has 2",
        ),
    ],
)
def test_what_cannot_be_called_is_a_sentence_before_it_is(act: Callable[[], Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        act()
