r"""Inversion by optimisation: the noise whose sample comes nearest to an image (Pokle, Geng & Kolter 2022).

    minimise ||x_0(x_T) - x*||^2 over x_T

with an optimiser for every image, so that no row depends on another; losses and gradients of all rows are found
together (``fixedpoint_diffusion.inversion.latent_gradients``). As in the authors' code a row stops at a loss below 0.5,
Adam has its usual moments, the latent of the smallest loss is the answer, and the noise of a stochastic chain is drawn
once and belongs to the problem (their joint variant) or is drawn anew for every step (their sequential one).

Where we differ: the latent that is kept is the one whose loss was the smallest, theirs the one a step later. A joint
solve begins with the trajectory of the step before; theirs begins with copies of the very first latent every time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fixedpoint_diffusion.inversion.optimisation_run import Optimisation, OptimisedLatents, Settings, Step
from fixedpoint_diffusion.samplers.ddim import DDIMChain

__all__ = ["OptimisedInversion"]


@dataclass(frozen=True)
class OptimisedInversion(Settings):
    """Finds the noise whose sample is an image, by gradients of the squared error."""

    def invert(
        self,
        chain: DDIMChain,
        images: Float[Tensor, "B *event"],
        start: Float[Tensor, "B *event"],
        *,
        max_batch: int | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> OptimisedLatents:
        """Go all the way; see :meth:`begin`.

        Parameters
        ----------
        on_step
            Told of every step.
        """
        run = self.begin(chain, images, start, max_batch=max_batch)
        while run.goes_on:
            step = run.step()
            if on_step is not None:
                on_step(step)
        return run.result()

    def begin(
        self,
        chain: DDIMChain,
        images: Float[Tensor, "B *event"],
        start: Float[Tensor, "B *event"],
        *,
        max_batch: int | None = None,
    ) -> Optimisation:
        """An inversion to go on with step by step, to be stopped and taken up again.

        Parameters
        ----------
        chain
            The chain, with its model, conditioning and noise.
        images
            What samples are to be.
        start
            The first noise: random, or of another inversion; of the images' shape and dtype.
        max_batch
            Evaluate the denoiser at most at this many states at once; default: what is quickest on the device.

        Raises
        ------
        TypeError, ValueError
            For anything that is not as described, naming it.
        """
        if not isinstance(chain, DDIMChain):
            raise TypeError(f"chain must be a DDIMChain, got {type(chain).__name__}")
        if start.shape != images.shape or start.dtype != images.dtype or start.device != images.device:
            raise ValueError(
                f"start must have shape {tuple(images.shape)}, {images.dtype} on {images.device}, to go with the "
                f"images, got {tuple(start.shape)}, {start.dtype} on {start.device}"
            )
        for name, given in (("images", images), ("start", start)):
            if not bool(given.isfinite().all()):
                raise ValueError(f"{name} must be finite, got {int((~given.isfinite()).sum())} entries that are not")
        held = [("noise", None if chain.noise is None else len(chain.noise)), ("denoiser", chain.denoiser.rows)]
        for name, rows in held:
            if rows is not None and rows < len(images):
                raise ValueError(f"the {name} of the chain is for {rows} rows, and there are {len(images)} images")
        if self.redraw and chain.noise is None:
            raise ValueError("redraw=True requires a stochastic chain (eta > 0)")
        return Optimisation(self, chain, images, start, max_batch or chain.denoiser.quick_batch(images.device))
