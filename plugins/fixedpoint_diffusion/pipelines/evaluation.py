"""The predictions or the steps of a loop at given states, by replays and merged network calls.

A first replay records what the networks are asked, and ends after the last step that is wanted. All of that is
evaluated in merged batches. A second replay gives the pipeline the outputs and records what it makes of them. Calls
that require the outputs of other calls of their step take one replay more.

Of a replay only what is used later is kept: the arguments of the calls that are to be evaluated, each until its batch
is made, and in the end the values that were asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint_diffusion.pipelines.calls import Call, evaluated, merged_groups
from fixedpoint_diffusion.pipelines.loop import Loop
from fixedpoint_diffusion.pipelines.passes import Pass, Step
from fixedpoint_diffusion.pipelines.trees import Path, first_of, leaf_at, mapped

__all__ = ["nexts", "predictions"]


def predictions(
    loop: Loop, x: Float[Tensor, "P *row"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
) -> Float[Tensor, "P *row"]:
    """Return what the pipeline gives to step ``index`` as ``model_output``, if the step before it returns ``x``."""
    return _at(loop, x, index, row, lambda step: step.prediction, real=False)


def nexts(
    loop: Loop, x: Float[Tensor, "P *row"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
) -> Float[Tensor, "P *row"]:
    """Return what step ``index`` returns, if the step before it returns ``x``."""
    return _at(loop, x, index, row, lambda step: step.next, real=True)


def _at(
    loop: Loop,
    x: Tensor,
    index: Tensor,
    row: Tensor,
    take: Callable[[Step], Tensor | None],
    real: bool,
) -> Tensor:
    pairs = list(zip(index.tolist(), row.tolist(), strict=True))
    found: list[Tensor | None] = [None] * len(pairs)
    left = list(range(len(pairs)))
    while left:
        # A replay has one state for each step and row.
        taken: dict[tuple[int, int], int] = {}
        for number in left:
            taken.setdefault(pairs[number], number)
        left = sorted(set(left) - set(taken.values()))
        for part in _parts(loop, taken, apart=x.requires_grad and loop.keeps_latents):
            for number, value in _Evaluation(loop, x, part).carry_out(take, real):
                found[number] = value
    return torch.stack([each for each in found if each is not None]).to(x.dtype)


def _parts(loop: Loop, taken: dict[tuple[int, int], int], apart: bool) -> list[dict[tuple[int, int], int]]:
    """Return the pairs of each replay: all, or as many as one batch has.

    Where networks wait for others, what those return (the residuals of a ControlNet) is larger than the states, and
    is held for one batch of pairs at a time. With ``apart``, the first step is alone: it is given its state as
    ``latents``, and other steps that use these must see the user's own ones.
    """
    if apart:
        first = {pair: number for pair, number in taken.items() if pair[0] == 0}
        others = {pair: number for pair, number in taken.items() if pair[0] > 0}
        return [part for pairs in (first, others) if pairs for part in _parts(loop, pairs, apart=False)]
    if not loop.levels or loop.most is None:
        return [taken]
    rows = max(call.rows for step in loop.steps for call in step.calls) // loop.layout.count
    ordered, size = sorted(taken), max(loop.most // rows, 1)
    return [{pair: taken[pair] for pair in ordered[at : at + size]} for at in range(0, len(ordered), size)]


class _Evaluation:
    """An evaluation of a loop.

    Parameters
    ----------
    loop
        The loop.
    x
        States.
    taken
        For every pair of a step and a row that is wanted, the number of the state before the step.
    """

    def __init__(self, loop: Loop, x: Float[Tensor, "P *row"], taken: dict[tuple[int, int], int]) -> None:
        self.loop, self.x, self.taken = loop, x, taken
        self.wanted: dict[int, list[int]] = {}
        for step, row in taken:
            self.wanted.setdefault(step, []).append(row)
        self.outputs: dict[tuple[int, int], dict[int, Any]] = {}

    def carry_out(self, take: Callable[[Step], Tensor | None], real: bool) -> list[tuple[int, Float[Tensor, "*row"]]]:
        """Return the number of every state with what was asked for.

        Parameters
        ----------
        take
            What is asked for of a step.
        real
            Whether the scheduler's steps have to be taken for it.
        """
        loop = self.loop
        for level in range(1 + max(loop.levels.values(), default=0)):
            self._evaluate(self._asked(level))
        script = self._played(real, lambda step: self._values(step, take))
        if any((step, place) not in self.outputs for step in self.wanted for place in range(script.counts[step])):
            raise loop.changed()
        steps, rows = (torch.tensor(part, device=self.x.device) for part in zip(*self.taken, strict=True))
        loop.latest.note(steps, rows, torch.stack([script.kept[step][1][row] for step, row in self.taken]))
        self._note_outputs()
        return [(number, script.kept[step][0][row]) for (step, row), number in self.taken.items()]

    def _note_outputs(self) -> None:
        seen: dict[Any, list[tuple[int, int, Tensor]]] = {}
        for at, rows in self.outputs.items():
            if at in self.loop.outlets:
                found = seen.setdefault(self.loop.outlets[at], [])
                found.extend((at[0], row, first_of(output)) for row, output in rows.items())
        for kind, found in seen.items():
            steps, numbers, outputs = zip(*found, strict=True)
            index, row = (torch.tensor(part, device=self.x.device) for part in (steps, numbers))
            self.loop.latest.note_outputs(kind, index, row, torch.stack(outputs))

    def _values(self, step: Step, take: Callable[[Step], Tensor | None]) -> tuple[Tensor, Tensor] | None:
        if step.number not in self.wanted:
            return None
        value, rows = take(step), self.loop.layout.rows
        assert value is not None
        return rows(value), rows(step.prediction)

    def _asked(self, level: int) -> list[Call]:
        """Return the calls that wait for so many others."""

        def asked(step: Step) -> list[Call]:
            levels = self.loop.levels
            return [call for call in step.calls if levels.get((step.number, call.place), 0) == level]

        kept = self._played(False, asked).kept
        return [call for step in sorted(self.wanted) for call in kept[step]]

    def _played(self, real: bool, keeps: Callable[[Step], Any]) -> Pass:
        loop, last = self.loop, max(self.wanted)

        def answer(call: Call) -> Any:
            return self._joined(call, self.outputs.get((call.step, call.place)))

        def told(step: Step) -> Tensor | None:
            # What the step returns is kept by the pass; the pipeline goes on from the state that is known.
            return loop.layout.samples(self._state(step.number + 1)) if step.number + 1 < loop.length else None

        known = loop.steps if loop.skips and not real else None
        script = Pass(answer, told=told, noise=loop.told_noise, known=known, last=last, keeps=keeps)
        loop.replay.play(script, **(self._started() if 0 in self.wanted else {}))
        loop.check_counts(script.counts, last + 1)
        return script

    def _state(self, step: int) -> Float[Tensor, "d *row"]:
        """Return the state before a step; rows that are not asked for are at the start."""
        numbers = [self.taken.get((step, row)) for row in range(self.loop.layout.count)]
        start = self.loop.start.detach()
        rows = [start[row].to(self.x.dtype) if n is None else self.x[n] for row, n in enumerate(numbers)]
        return torch.stack(rows)

    def _started(self) -> dict[str, Any]:
        """Return the argument with which the pipeline begins at a state; nothing if it does so by itself."""
        loop, start = self.loop, self._state(0)
        same = torch.allclose(start, loop.start, rtol=1e-5, atol=1e-6)
        if same and (loop.scale is None or not start.requires_grad):
            return {}
        if loop.scale is None:
            name = type(loop.replay.pipe).__name__
            raise ValueError(f"{name} takes no latents to begin with: its start is neither changed nor differentiated")
        return {"latents": loop.layout.samples(start) / loop.scale}

    def _evaluate(self, calls: Sequence[Call]) -> None:
        for call in calls:
            self._restore_dtypes(call)
        for group in merged_groups(calls):
            some = [calls[number] for number in group]
            found = evaluated(some, [self.wanted[call.step] for call in some], self.loop.layout.count, self.loop.most)
            for call, rows in zip(some, found, strict=True):
                self.outputs[call.step, call.place] = rows
                self.loop.compare(call, {image: first_of(output) for image, output in rows.items()})

    def _restore_dtypes(self, call: Call) -> None:
        """Give a network its tensors in the pipeline's dtypes: states are held in a wider one."""
        dtypes = self.loop.dtypes

        def change(path: Path, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                return leaf
            dtype = dtypes.get((call.network, path))
            return leaf if dtype is None or dtype == leaf.dtype else leaf.to(dtype)

        call.change(change)

    def _joined(self, call: Call, rows: dict[int, Any] | None) -> Any:
        """Return the output of a whole call from those of its images; the template's for images that are not known."""
        known = self.loop.known_outputs[call.step]
        if call.place >= len(known):
            raise self.loop.changed()
        template = known[call.place]
        if not rows:
            return template
        # As before, since asking the call itself takes a walk through its arguments.
        total, count = self.loop.steps[call.step].calls[call.place].rows, self.loop.layout.count

        def change(path: Path, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != total:
                return leaf
            parts = [leaf_at(rows[image], path) if image in rows else leaf[image::count] for image in range(count)]
            if count == 1:
                return parts[0].to(leaf.dtype).contiguous()
            joined = torch.stack([part.to(leaf.dtype) for part in parts], dim=1)
            return joined.flatten(0, 1)

        return mapped(template, change)
