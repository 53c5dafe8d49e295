"""Loops that are affine in the network's outputs: plain guidance and an affine scheduler, and nothing else.

Then no replay is needed in a round. The input of a network call is a known combination of an image's samples, the
scheduler's ``model_output`` one of the rows of the network's output, and the scheduler has tables. All of this is
decided on random numbers, in two passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint_diffusion.pipelines.calls import Call
from fixedpoint_diffusion.pipelines.loop import Loop
from fixedpoint_diffusion.pipelines.merged import MergedCalls
from fixedpoint_diffusion.pipelines.passes import Step
from fixedpoint_diffusion.pipelines.probe import Examined, arbitrary
from fixedpoint_diffusion.pipelines.trees import Path, first_of, mapped
from fixedpoint_diffusion.samplers.probe import tables_as_set
from fixedpoint_diffusion.samplers.recurrence import SamplerTables

__all__ = ["Mixed", "direct_calls", "tables_of"]

# What float32 may differ by, relative to the numbers that are added up.
_AGREES = 2e-4
# What a weight of 0 or 1 may be off by where it was fitted to float32.
_WHOLE = 1e-6


def tables_of(examined: Examined) -> SamplerTables | None:
    """Return the tables of the loop's scheduler; None where the samples do not follow from them.

    The pipeline must leave the samples between two steps alone. Evaluations are numbered: the ``timesteps`` of these
    tables are ``0 .. K - 1``.
    """
    loop = examined.loop
    first = loop.steps[0]
    if loop.bare is None or any(step.settings != first.settings for step in loop.steps):
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
    return replace(tables, timesteps=torch.arange(loop.length, device="cpu"))


def _follows(tables: SamplerTables, steps: Sequence[Step]) -> bool:
    """Whether the samples of a pass are those of the tables."""
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
        dtype = self.loop.dtypes[calls[0].network, self.path]
        self.calls = MergedCalls(calls, self.path, self.loop.layout.count, dtype)
        self.own = replace(calls[0])  # the loop forgets its arguments

    @property
    def each(self) -> int:
        """``R``, the number of rows of a call for an image."""
        return self.into.shape[1]

    def given(self, step: Step) -> set[object]:
        """Return what stands for the tensors that the pipeline gives to the network: tables, one for every group."""
        return {int(self.calls.group_of[step.number])}

    def predictions(
        self, u: Float[Tensor, "P *row"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *row"]:
        """Return the predictions for network inputs ``u``."""
        single = self.loop.layout.each == 1
        samples = u.unsqueeze(1) if single else u
        rows = _mixed(self.into.to(u)[index], samples)
        outputs = self.calls.outputs(rows, index, row)
        # Some networks also return a variance, in further channels.
        found = _mixed(self.out.to(u)[index], outputs[:, :, : samples.shape[2]].to(u.dtype))
        self.loop.latest.note(index, row, found[:, 0] if single else found)
        self.loop.latest.note_outputs(self.own.kind, index, row, outputs)
        if self.loop.first is not None:
            self._compare(rows, outputs, index, row)
        return found[:, 0] if single else found

    def _compare(self, rows: Tensor, outputs: Tensor, index: Tensor, row: Tensor) -> None:
        """Compare the outputs of the first step with what the pipeline's own first call returned."""
        places = {int(row[place]): place for place in torch.nonzero(index == 0).flatten().tolist()}
        if len(places) < self.loop.layout.count:
            return
        order = [places[image] for image in range(self.loop.layout.count)]
        own = self.own
        whole = rows[order].transpose(0, 1).flatten(0, 1).to(dict(own.leaves)[self.path])
        given = mapped(own.arguments, lambda path, leaf: whole if path == self.path else leaf)
        call = Call(own.network, own.module, 0, 0, given)
        self.loop.compare(call, {image: outputs[place] for image, place in places.items()})


def _mixed(weights: Float[Tensor, "P m n"], of: Float[Tensor, "P n *event"]) -> Float[Tensor, "P m *event"]:
    """Return combinations of rows, pair by pair; elementwise, so that a pair has the same bits in any batch."""
    parts = weights.view(*weights.shape, *[1] * (of.ndim - 2))
    total = parts[:, :, 0] * of[:, :1]
    for number in range(1, of.shape[1]):
        total = torch.addcmul(total, parts[:, :, number], of[:, number : number + 1])
    return total


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
    output = first_of(arbitrary(loop.template(call), call, seed)).double()
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
    weights = made @ torch.linalg.pinv(of.detach())
    if not weights.requires_grad:
        whole = weights.round()  # so that a copy is a copy, bit for bit
        weights = torch.where((weights - whole).abs() <= _WHOLE, whole, weights)
    off = (made - weights @ of).abs().amax()
    size = (weights.abs() @ of.abs()).amax()
    return weights if bool(off <= _AGREES * size) else None


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= 10 * _AGREES * one.abs().max().clamp(min=1.0))
