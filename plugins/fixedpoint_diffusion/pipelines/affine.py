"""Loops that are affine in the network's outputs: plain guidance and an affine scheduler, and nothing else.

Then no replay is needed in a round. The input of a network call is a known combination of an image's samples, the
scheduler's ``model_output`` one of the rows of the network's output, and the scheduler has tables. All of this is
decided on random numbers, in two passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint_diffusion.pipelines.calls import Call, evaluated, merged_groups
from fixedpoint_diffusion.pipelines.loop import Loop
from fixedpoint_diffusion.pipelines.passes import Step
from fixedpoint_diffusion.pipelines.probe import Examined, arbitrary
from fixedpoint_diffusion.pipelines.trees import Path, leaves, mapped
from fixedpoint_diffusion.samplers.probe import tables_as_set
from fixedpoint_diffusion.samplers.recurrence import SamplerTables

__all__ = ["Mixed", "direct_calls", "tables_of"]

# What float32 may differ by, relative to the numbers that are added up.
_AGREES = 2e-4


def tables_of(examined: Examined) -> SamplerTables | None:
    """Return the tables of the loop's scheduler; None where the samples do not follow from them.

    The pipeline must leave the samples between two steps alone. Evaluations are numbered: the ``timesteps`` of these
    tables are ``0 .. K - 1``.
    """
    loop = examined.loop
    first = loop.steps[0]
    if any(step.settings != first.settings for step in loop.steps):
        return None
    try:
        tables = tables_as_set(examined.scheduler, [step.timestep for step in loop.steps], first.settings)
    except (TypeError, ValueError):
        return None
    if tables.state_factors is None or not all(_follows(tables, steps) for steps in (loop.steps, examined.other)):
        return None
    parts = [part for step in loop.steps for part in (step.sample, step.prediction, *step.noise)]
    if any(step.next is None or not made_of(step.next, *parts) for step in loop.steps):
        return None  # a setting of the scheduler is to have a gradient
    return replace(tables, timesteps=torch.arange(loop.length))


def _follows(tables: SamplerTables, steps: Sequence[Step]) -> bool:
    """Whether the samples of a pass are those of the tables, and what a step returns is what the next one is given."""
    for one, two in itertools.pairwise(steps):
        if one.next is None or not torch.equal(one.next, two.sample):
            return False
    if any(step.prediction.shape != step.sample.shape for step in steps):
        return False
    drawn = [each for step in steps for each in step.noise]
    noise = list(torch.cat(drawn).split(len(steps[0].sample))) if drawn else []
    if len(noise) != len(tables.draws):
        return False
    start = steps[0].sample / tables.init_noise_sigma
    images = torch.stack([each.double().flatten().cpu() for each in (start, *(s.prediction for s in steps), *noise)])
    found = torch.stack([step.next.double().flatten().cpu() for step in steps if step.next is not None])
    rows = tables.states.joined
    size = (rows.abs() @ images.abs()).amax(dim=1)
    off = (found - rows @ images).abs().amax(dim=1)
    return bool((off <= _AGREES * size).all())


@dataclass(eq=False)
class Mixed:
    """The network calls of a loop without its code: how their inputs and outputs are mixed.

    Attributes
    ----------
    loop
        The loop.
    path
        Where a call has the sample among its arguments.
    into
        Shape ``(K, R, k)``: how the ``R`` rows of a call are made of the ``k`` samples of an image.
    out
        Shape ``(K, k, R)``: how the predictions of an image are made of the rows of the output. They may require a
        gradient, by the guidance scale.
    """

    loop: Loop
    path: Path
    into: Float[Tensor, "K R k"]
    out: Float[Tensor, "K k R"]

    def __post_init__(self) -> None:
        calls = [step.calls[0] for step in self.loop.steps]
        self.groups = {number: group for group in merged_groups(calls) for number in group}

    @property
    def each(self) -> int:
        """``R``, the number of rows of a call for an image."""
        return self.into.shape[1]

    def given(self, step: Step) -> set[Any]:
        """Return the identities of the tensors with gradients that the pipeline gives to the network before a step."""
        passed = [leaf for path, leaf in step.calls[0].leaves if path != self.path and isinstance(leaf, Tensor)]
        return {(leaf.grad_fn or id(leaf), leaf.output_nr) for leaf in passed if leaf.requires_grad}

    def predictions(self, u: Tensor, index: Tensor, row: Tensor) -> Tensor:
        """Return the predictions for network inputs ``u``, shape ``(P, *row)``."""
        loop, layout = self.loop, self.loop.layout
        u = u.unsqueeze(1) if layout.each == 1 else u
        pairs = list(zip(index.tolist(), row.tolist(), strict=True))
        found: list[Tensor | None] = [None] * len(pairs)
        left = list(range(len(pairs)))
        while left:
            taken: dict[tuple[int, int], int] = {}
            for number in left:
                taken.setdefault(pairs[number], number)
            left = sorted(set(left) - set(taken.values()))
            for group in {id(self.groups[step]): self.groups[step] for step, _ in taken}.values():
                steps = [step for step in group if any(step == each for each, _ in taken)]
                images = [[image for each, image in taken if each == step] for step in steps]
                calls = [self._call(u, step, some, taken) for step, some in zip(steps, images, strict=True)]
                outputs_of = evaluated(calls, images, layout.count, loop.most)
                for step, some, outputs in zip(steps, images, outputs_of, strict=True):
                    for image in some:
                        value = self._prediction(outputs[image], step, u)
                        loop.note(step, image, value)
                        found[taken[step, image]] = value
                if 0 in steps:
                    loop.compare(calls[steps.index(0)], outputs_of[steps.index(0)])
        return torch.stack([each for each in found if each is not None])

    def _call(self, u: Tensor, step: int, images: Sequence[int], taken: dict[tuple[int, int], int]) -> Call:
        """Return the call of a step with the inputs of some images; rows of the others are not used."""
        own, count = self.loop.steps[step].calls[0], self.loop.layout.count
        places = torch.tensor([taken[step, image] for image in images], device=u.device)
        samples = u[places]  # (n, k, *event)
        weights = self.into[step].to(u)
        rows = sum(
            weights[:, p].view(-1, 1, *[1] * (samples.ndim - 2)) * samples[:, p].unsqueeze(0)
            for p in range(samples.shape[1])
        )
        assert isinstance(rows, Tensor)
        dtype = self.loop.dtypes[own.network, self.path]
        whole = rows.new_zeros(rows.shape[0], count, *rows.shape[2:])
        whole = whole.index_copy(1, torch.tensor(images, device=u.device), rows).flatten(0, 1).to(dtype)
        return Call(own.network, own.module, step, 0, mapped(own.arguments, self._put(whole)))

    def _put(self, sample: Tensor) -> Any:
        return lambda path, leaf: sample if path == self.path else leaf

    def _prediction(self, output: Any, step: int, like: Tensor) -> Tensor:
        rows = first_tensor(output).to(like.dtype)[:, : like.shape[2]]
        weights = self.out[step].to(like)
        mixed = [
            sum(weights[p, q] * rows[q] for q in range(len(rows)))  # elementwise: the same bits in any batch
            for p in range(weights.shape[0])
        ]
        parts = [each for each in mixed if isinstance(each, Tensor)]
        return parts[0] if self.loop.layout.each == 1 else torch.stack(parts)


def first_tensor(output: Any) -> Tensor:
    """Return the prediction in the output of a network."""
    return next(leaf for _, leaf in leaves(output) if isinstance(leaf, Tensor))


def made_of(value: Tensor, *parts: Tensor) -> bool:
    """Return whether everything that autograd knows a value to depend on is among some tensors, or behind them."""
    known = {id(part) for part in parts}, {part.grad_fn for part in parts}
    nodes, seen = [value.grad_fn], set()
    if value.requires_grad and value.grad_fn is None:
        return id(value) in known[0]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen or node in known[1]:
            continue
        seen.add(node)
        if hasattr(node, "variable") and id(node.variable) not in known[0]:
            return False
        nodes.extend(each for each, _ in node.next_functions)
    return True


def direct_calls(examined: Examined, tables: SamplerTables) -> Mixed | None:
    """Return how inputs and outputs of the loop's network calls are mixed; None where its own code is needed.

    Every step must have one call, whose arguments other than the sample are the same whatever the outputs were.
    """
    loop, passes = examined.loop, (loop_steps := examined.loop.steps, examined.other)
    if any(len(step.calls) != 1 for steps in passes for step in steps):
        return None
    path = _sample_path(loop_steps, examined.other)
    if path is None:
        return None
    factors = input_factors(tables)
    into, out = [], []
    for number, pair in enumerate(zip(*passes, strict=True)):
        mixes = [_mix(loop, step, path, float(factors[number]), seed) for step, seed in zip(pair, (1, 2), strict=True)]
        if any(mix is None for mix in mixes):
            return None
        (ins, outs), (_, its) = (mix for mix in mixes if mix is not None)
        if not _close(outs, its):
            return None
        into.append(ins)
        out.append(outs)
    return Mixed(loop, path, torch.stack(into), torch.stack(out)) if len({each.shape for each in into}) == 1 else None


def input_factors(tables: SamplerTables) -> Float[Tensor, " K"]:
    """Return the numbers by which the network inputs ``u_0 .. u_{K-1}`` have to be multiplied to give the samples."""
    assert tables.state_factors is not None
    first = tables.init_noise_sigma / tables.starts[:1]
    return torch.cat([first, tables.state_factors[:-1]])


def _sample_path(steps: Sequence[Step], other: Sequence[Step]) -> Path | None:
    """Return where the calls have the sample: the only argument that the outputs before it change."""
    found: set[Path] = set()
    for one, two in zip(steps, other, strict=True):
        for (path, mine), (_, theirs) in zip(one.calls[0].leaves, two.calls[0].leaves, strict=True):
            same = torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine is theirs or mine == theirs
            if not same:
                found.add(path)
    return found.pop() if len(found) == 1 else None


def _mix(loop: Loop, step: Step, path: Path, factor: float, seed: int) -> tuple[Tensor, Tensor] | None:
    call, layout = step.calls[0], loop.layout
    given = dict(call.leaves)[path]
    samples = step.sample.double() / factor
    if not isinstance(given, Tensor) or given.shape[1:] != samples.shape[1:] or not made_of(given, step.sample):
        return None
    output = first_tensor(arbitrary(loop.template(call), call, seed)).double()
    if output.ndim != samples.ndim or output.shape[2:] != samples.shape[2:] or output.shape[1] < samples.shape[1]:
        return None
    output = output[:, : samples.shape[1]]
    count = layout.count
    inside, outside = (part.unflatten(0, (-1, count)).flatten(1) for part in (samples, output))
    # Without gradients: what the weights multiply has that by the samples already.
    into = _combination(inside.detach(), given.detach().double().unflatten(0, (-1, count)).flatten(1))
    out = _combination(outside, step.prediction.double().unflatten(0, (-1, count)).flatten(1))
    return None if into is None or out is None else (into, out)


def _combination(of: Float[Tensor, "n e"], made: Float[Tensor, "m e"]) -> Float[Tensor, "m n"] | None:
    """Return the weights by which rows are combinations of other rows; None if they are not."""
    weights = made @ torch.linalg.pinv(of)
    off = (made - weights @ of).abs().amax()
    size = (weights.abs() @ of.abs()).amax()
    return weights if bool(off <= _AGREES * size) else None


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= 10 * _AGREES * one.abs().max().clamp(min=1.0))
