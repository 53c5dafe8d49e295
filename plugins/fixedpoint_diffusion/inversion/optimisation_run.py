"""Runs an inversion by optimisation step by step, with checkpoints from which it continues bit for bit.

Random numbers are a function of seed, row and step. A checkpoint therefore needs to hold only the latents, the states
of the optimisers, the tensors from which the next solves start, and the records so far.
"""

from __future__ import annotations

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
    """The options of ``OptimisedInversion``."""

    gradient: AnyLatentGradient = option(factory=Exact, help="how gradients are found")
    optimiser: Literal["adam", "lbfgs"] = option("adam", help="lbfgs: with a strong Wolfe line search, row by row")
    learning_rate: float | None = option(
        None, gt=0.0, help="adam: default 0.01; lbfgs: first length of the line search, default 1"
    )
    steps: int = option(200, ge=1, help="number of updates")
    enough: float = option(0.5, ge=0.0, help="a row stops at a loss below this")
    memory: int = option(10, ge=1, help="lbfgs: number of pairs of differences kept")
    searches: int = option(20, ge=1, help="lbfgs: largest number of evaluations per line search")
    redraw: bool = option(False, help="eta > 0: draw new noise of the steps for every update")
    seed: int = option(0, ge=0, help="seed of the noise that redraw draws")

    def check(self) -> None:
        if self.redraw and self.optimiser == "lbfgs":
            raise OptionError(
                "OptimisedInversion", "redraw", "requires adam: lbfgs compares losses of one and the same function"
            )

    def optimiser_of(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Make the optimiser of a row."""
        if self.optimiser == "adam":
            return torch.optim.Adam(parameters, lr=self.learning_rate or 0.01)
        return torch.optim.LBFGS(
            parameters,
            lr=self.learning_rate or 1.0,
            max_iter=1,  # one iteration per step; the tolerances are zero because ``Descent`` decides when a row stops
            max_eval=1 + self.searches,
            history_size=self.memory,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )


@dataclass(frozen=True)
class Step:
    """The record of one step.

    Attributes
    ----------
    number
        Number of updates before the losses were evaluated; 0 for the first step, which evaluates the start.
    losses
        Shape ``(B,)``, float64; NaN for rows that had stopped.
    calls
        Sequential calls of the network since the beginning, of the row that has made most.
    seconds
        Time since the beginning.
    solved
        Whether all solves of a row in this step reached their tolerance, shape ``(B,)``.
    """

    number: int
    losses: NDArray[np.float64]
    calls: int
    seconds: float
    solved: NDArray[np.bool_]


@dataclass(frozen=True)
class OptimisedLatents:
    """The result of an inversion by optimisation, after ``n`` updates.

    Attributes
    ----------
    latents
        The noise with the smallest loss of every row, shape ``(B, *event)``.
    loss
        That loss, a squared error summed over the image, shape ``(B,)``, float64.
    losses
        Losses at the start and after every update, shape ``(n + 1, B)``, float64; NaN for rows that had stopped.
    calls, seconds
        Sequential calls of the network, and time, until these losses were known, shape ``(n + 1,)``.
    solved
        Whether all solves of a row in a step reached their tolerance, shape ``(n + 1, B)``.
    evaluations, products
        Forward and backward passes of single steps, shape ``(B,)``, int64.
    stopped
        Why each row stopped: ``"enough"`` (the loss is below that option), ``"steps"`` (all updates were made),
        ``"stationary"`` (the optimiser left the latent unchanged) or ``"not finite"`` (the loss is NaN or infinite).
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
    """An inversion that the caller runs step by step; made by ``OptimisedInversion.begin``.

    Parameters
    ----------
    options
        The options of the inversion.
    chain, images, start, max_batch
        As for ``OptimisedInversion.begin``, which checks them.

    Attributes
    ----------
    rows
        One :class:`Descent` per image.
    taken
        The records of the steps so far.
    setting
        Everything that a checkpoint must agree with, by name.
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
        """Whether steps are left and any row has not stopped."""
        # The first step makes no update, so there is one more step than updates.
        return len(self.taken) <= self.options.steps and any(row.stopped is None for row in self.rows)

    def step(self) -> Step:
        """Take one step: update every row that has not stopped (not in the first step), and evaluate the losses."""
        began, number = time.perf_counter(), len(self.taken)
        going = [place for place, row in enumerate(self.rows) if row.stopped is None]
        self._solved = np.ones(len(self.rows), dtype=np.bool_)
        for place in going if number else []:
            self.rows[place].step(partial(self._evaluate, [place]))
        # Adam leaves the new latents unevaluated; L-BFGS has usually evaluated them in its line search.
        self._evaluate([place for place in going if self.rows[place].known() is None])
        losses = np.full(len(self.rows), np.nan)
        for place in going:
            known = self.rows[place].known()
            assert known is not None  # evaluated above
            losses[place] = known[0]
            self.rows[place].judge(known[0], self.options.enough)
        calls = max(row.calls for row in self.rows)  # rows are evaluated together, so their calls do not add up
        seconds = (self.taken[-1].seconds if self.taken else 0.0) + time.perf_counter() - began
        self.taken.append(Step(number, losses, calls, seconds, self._solved))
        return self.taken[-1]

    def result(self) -> OptimisedLatents:
        """The result so far."""
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
        """Write a checkpoint atomically."""
        taken = [[s.number, s.losses.tolist(), s.calls, s.seconds, s.solved.tolist()] for s in self.taken]
        rows = [row.state() for row in self.rows]
        save_checkpoint(path, self.setting, {"taken": taken, "rows": rows})

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint; its number of ``steps`` may differ from that of this inversion.

        Raises
        ------
        ValueError
            If the file is not a checkpoint, or is one of other options, or of another chain, images or start. The
            weights of the network are not compared.
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
        """Evaluate loss and gradient of some rows at their current latents."""
        if not places:
            return
        rows = [self.rows[place] for place in places]
        index = torch.tensor(places, device=self.images.device)
        x_T = torch.stack([row.latent for row in rows])
        problem = ChainProblem(self._chain(), x_T, max_batch=self.max_batch, rows=index)
        kept = {name: torch.stack([row.kept[name] for row in rows]) for name in rows[0].kept}
        # With new noise the solutions move for another reason than the latents, so they are not extrapolated.
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
        """The chain; with ``redraw``, a copy of it with new noise for this step."""
        if not self.options.redraw:
            return self.chain
        # A function of seed and step, so that an inversion continued from a checkpoint draws the same noise.
        seed = np.random.SeedSequence((self.options.seed, len(self.taken))).generate_state(1, np.uint32)[0]
        images = self.images
        noise = draw_noise(
            row_seeds(int(seed), len(images)),
            images.shape[1:],
            self.chain.length,
            dtype=images.dtype,
            device=images.device,
        )[1]
        assert noise is not None  # a chain has at least one step
        return self.chain.with_noise(noise)


def _setting(options: Settings, chain: DDIMChain, images: Tensor, start: Tensor) -> dict[str, str]:
    """Everything by which inversions differ, by name; the number of steps is not part of it."""
    fields = [field.name for field in dataclasses.fields(options) if field.name != "steps"]
    setting = {name: repr(getattr(options, name)) for name in fields}
    setting |= {"length": str(chain.length), "eta": str(chain.eta), "schedule": repr(chain.schedule)}
    given = {"noise": chain.noise, "images": images, "start": start}
    return setting | {name: _digest(tensor) for name, tensor in given.items() if tensor is not None}


def _digest(tensor: Tensor) -> str:
    """Shape and shortened SHA-256 digest of a tensor's bytes."""
    raw = tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
    return f"{tuple(tensor.shape)} {hashlib.sha256(raw).hexdigest()[:16]}"
