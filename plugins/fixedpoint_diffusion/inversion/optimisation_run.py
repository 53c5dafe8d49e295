"""An inversion by optimisation under way: steps, checkpoints that go on to the bit, the answer.

All that is drawn is a function of the seed, the row and the step, so that a checkpoint holds latents, the optimisers'
state, what the next solves start from, and the records so far.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.problem import ChainProblem
from fixedpoint.config.checkpoint import load_checkpoint, save_checkpoint
from fixedpoint.core.options import OptionError, Options, option
from fixedpoint_diffusion.inversion.descent import Descent, Stop
from fixedpoint_diffusion.inversion.latent_gradients import AnyLatentGradient, Exact
from fixedpoint_diffusion.inversion.secant import at_rest
from fixedpoint_diffusion.samplers.ddim import DDIMChain
from fixedpoint_diffusion.samplers.noise import draw_noise, row_seeds

__all__ = ["Optimisation", "OptimisedLatents", "Settings", "Step"]


@dataclass(frozen=True)
class Settings(Options):
    """How an inversion goes: the options of ``OptimisedInversion``."""

    gradient: AnyLatentGradient = option(factory=Exact, help="how gradients are found")
    optimiser: Literal["adam", "lbfgs"] = option("adam", help="lbfgs: with a strong Wolfe line search, row by row")
    learning_rate: float | None = option(
        None, gt=0.0, help="of adam, default 0.01; of lbfgs the first length it tries, default 1"
    )
    steps: int = option(200, ge=1, help="updates")
    enough: float = option(0.5, ge=0.0, help="a row stops at a loss below this")
    memory: int = option(10, ge=1, help="lbfgs: pairs of differences it keeps")
    searches: int = option(20, ge=1, help="lbfgs: evaluations of a line search, at most")
    redraw: bool = option(False, help="eta > 0: draw the noise of the steps anew for every update")
    seed: int = option(0, ge=0, help="of noise that is drawn anew")

    def check(self) -> None:
        if self.redraw and self.optimiser == "lbfgs":
            raise OptionError(
                "OptimisedInversion", "redraw", "requires adam: lbfgs compares losses of one and the same function"
            )

    def optimiser_of(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """The optimiser of a row."""
        if self.optimiser == "adam":
            return torch.optim.Adam(parameters, lr=self.learning_rate or 0.01)
        return torch.optim.LBFGS(
            parameters,
            lr=self.learning_rate or 1.0,
            max_iter=1,
            max_eval=1 + self.searches,
            history_size=self.memory,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )


@dataclass(frozen=True)
class Step:
    """What a step has come to.

    Attributes
    ----------
    number
        How many updates were made before its losses were found, from 0.
    losses
        Shape ``(B,)``, float64; NaN where a row had stopped.
    calls
        Of the network, one after another, in all: those of the row that took most.
    seconds
        In all.
    solved
        Shape ``(B,)``: whether the solves of a row came within their tolerance.
    """

    number: int
    losses: NDArray[np.float64]
    calls: int
    seconds: float
    solved: NDArray[np.bool_]


@dataclass(frozen=True)
class OptimisedLatents:
    """The answer of an inversion.

    Attributes
    ----------
    latents
        Shape ``(B, *event)``: the noise of the smallest loss of every row.
    loss
        Shape ``(B,)``, float64: that loss, a squared error summed over the image.
    losses
        Shape ``(n + 1, B)``, float64: at the start and after every update; NaN where a row had stopped.
    calls, seconds
        Shape ``(n + 1,)``: calls of the network that waited for one another, and time, until these were known.
    solved
        Shape ``(n + 1, B)``: whether the solves of a row came within their tolerance.
    evaluations, products
        Shape ``(B,)``: forward and backward passes of single steps.
    stopped
        Why each row stopped: its loss was ``"enough"``, its ``"steps"`` were used up, it was ``"stationary"`` (the
        optimiser left it where it was), or its loss was ``"not finite"``.
    """

    latents: Float[Tensor, "B *event"]
    loss: NDArray[np.float64]
    losses: NDArray[np.float64]
    calls: NDArray[np.int64]
    seconds: NDArray[np.float64]
    solved: NDArray[np.bool_]
    evaluations: NDArray[np.int64]
    products: NDArray[np.int64]
    stopped: tuple[Stop, ...]


class Optimisation:
    """An inversion that is gone on with step by step; made by ``OptimisedInversion.begin``.

    Parameters
    ----------
    options
        How.
    chain, images, start, max_batch
        As for ``OptimisedInversion.begin``, checked there.
    """

    def __init__(
        self,
        options: Settings,
        chain: DDIMChain,
        images: Float[Tensor, "B *event"],
        start: Float[Tensor, "B *event"],
        max_batch: int | None,
    ) -> None:
        self.options, self.chain, self.images, self.max_batch = options, chain, images, max_batch
        self.rows = [Descent(latent, options.optimiser_of) for latent in start]
        self.taken: list[Step] = []
        self.setting = _setting(options, chain, images, start)
        self._solved = np.ones(len(images), dtype=np.bool_)

    @property
    def goes_on(self) -> bool:
        """Whether any row has a step to take."""
        return len(self.taken) <= self.options.steps and any(row.stopped is None for row in self.rows)

    def step(self) -> Step:
        """An update of every row that goes on, if it is not the first step, and the losses it leads to."""
        began, number = time.perf_counter(), len(self.taken)
        going = [place for place, row in enumerate(self.rows) if row.stopped is None]
        self._solved = np.ones(len(self.rows), dtype=np.bool_)
        for place in going if number else []:
            self.rows[place].step(partial(self._evaluate, [place]))
        self._evaluate([place for place in going if self.rows[place].known() is None])
        losses = np.full(len(self.rows), np.nan)
        for place in going:
            known = self.rows[place].known()
            assert known is not None  # evaluated above
            losses[place] = known[0]
            self.rows[place].judge(known[0], self.options.enough)
        calls = max(row.calls for row in self.rows)
        seconds = (self.taken[-1].seconds if self.taken else 0.0) + time.perf_counter() - began
        self.taken.append(Step(number, losses, calls, seconds, self._solved))
        return self.taken[-1]

    def result(self) -> OptimisedLatents:
        """What has been found so far."""
        rows, taken = self.rows, self.taken
        return OptimisedLatents(
            latents=torch.stack([row.best for row in rows]),
            loss=np.array([row.best_loss for row in rows]),
            losses=np.array([step.losses for step in taken]).reshape(-1, len(rows)),
            calls=np.array([step.calls for step in taken], dtype=np.int64),
            seconds=np.array([step.seconds for step in taken]),
            solved=np.array([step.solved for step in taken], dtype=np.bool_).reshape(-1, len(rows)),
            evaluations=np.array([row.evaluations for row in rows]),
            products=np.array([row.products for row in rows]),
            stopped=tuple(row.stopped or "steps" for row in rows),
        )

    def save(self, path: Path) -> None:
        """Write a checkpoint, all of it or nothing."""
        taken = [[s.number, s.losses.tolist(), s.calls, s.seconds, s.solved.tolist()] for s in self.taken]
        rows = [row.state() for row in self.rows]
        save_checkpoint(path, self.setting, {"taken": taken, "rows": rows})

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint; of as many steps as are asked for here.

        Raises
        ------
        ValueError
            For a file that is no checkpoint, or that of other options, another chain, images or start. The weights of
            a network are not looked at.
        """
        state = load_checkpoint(path, self.setting, of="inversion")
        for row, its in zip(self.rows, state["rows"], strict=True):
            row.restore(its)
        self.taken = [
            Step(number, np.array(losses), calls, seconds, np.array(solved))
            for number, losses, calls, seconds, solved in state["taken"]
        ]

    @torch.no_grad()
    def _evaluate(self, places: list[int]) -> None:
        """Loss and gradient of some rows at their latents as they are."""
        if not places:
            return
        rows = [self.rows[place] for place in places]
        index = torch.tensor(places, device=self.images.device)
        x_T = torch.stack([row.latent for row in rows])
        problem = ChainProblem(self._chain(), x_T, max_batch=self.max_batch, rows=index)
        kept = {name: torch.stack([row.kept[name] for row in rows]) for name in rows[0].kept}
        kept = at_rest(kept) if self.options.redraw else kept
        found = self.options.gradient.find(problem, self.images[index], kept)
        self._solved[places] &= found.solved
        for place, (row, loss) in enumerate(zip(rows, found.loss.tolist(), strict=True)):
            row.learn(loss, found.gradient[place])
            row.kept = {name: value[place] for name, value in found.kept.items()}
            row.calls += found.calls
            row.evaluations += int(found.evaluations[place])
            row.products += int(found.products[place])

    def _chain(self) -> DDIMChain:
        """The chain, with the noise of this step where it is drawn anew."""
        if not self.options.redraw:
            return self.chain
        seed = np.random.SeedSequence((self.options.seed, len(self.taken))).generate_state(1, np.uint32)[0]
        images = self.images
        noise = draw_noise(
            row_seeds(int(seed), len(images)),
            images.shape[1:],
            self.chain.length,
            dtype=images.dtype,
            device=images.device,
        )[1]
        chain = copy.copy(self.chain)
        chain.noise, chain._extensions = noise, {}
        return chain


def _setting(options: Settings, chain: DDIMChain, images: Tensor, start: Tensor) -> dict[str, str]:
    """What makes an inversion what it is, by name; the number of steps is not part of it."""
    fields = [field.name for field in dataclasses.fields(options) if field.name != "steps"]
    setting = {name: repr(getattr(options, name)) for name in fields}
    setting |= {"length": str(chain.length), "eta": str(chain.eta), "schedule": repr(chain.schedule)}
    given = {"noise": chain.noise, "images": images, "start": start}
    return setting | {name: _digest(tensor) for name, tensor in given.items() if tensor is not None}


def _digest(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
    return f"{tuple(tensor.shape)} {hashlib.sha256(raw).hexdigest()[:16]}"
