r"""Inversion by optimisation: finds the noise whose sample is closest to an image (Pokle, Geng & Kolter 2022).

    minimise ||x_0(x_T) - x*||^2 over x_T

Every image has its own optimiser, so that no row depends on another. Losses and gradients of all rows are computed
together (``fixedpoint_diffusion.inversion.latent_gradients``). As in the code of the authors, a row stops at a loss
below 0.5, Adam has its default moments, the latent with the smallest loss is the answer, and the noise of a stochastic
chain is either drawn once and part of the problem (their joint variant) or drawn again for every step (their sequential
variant).

There are two differences. We keep the latent with the smallest loss; the authors keep the latent one step later. Here a
joint solve starts from the trajectories of the steps before; theirs always starts from copies of the first latent.
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
    """Finds the noise whose sample is a given image, by gradient descent on the squared error."""

    def invert(
        self,
        chain: DDIMChain,
        images: Float[Tensor, "B *event"],
        start: Float[Tensor, "B *event"],
        *,
        max_batch: int | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> OptimisedLatents:
        """Run the inversion to its end.

        Parameters
        ----------
        chain, images, start, max_batch
            As for :meth:`begin`.
        on_step
            Called after every step.

        Raises
        ------
        TypeError, ValueError
            As for :meth:`begin`.
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
        """Begin an inversion that the caller runs step by step, and that can be saved and restored.

        Parameters
        ----------
        chain
            The chain, with its model, conditioning and noise.
        images
            The target images, shape ``(B, *event)``.
        start
            The initial noise, random or from another inversion, with the shape, dtype and device of ``images``.
        max_batch
            Largest number of states in one call of the denoiser. Default: the number that is fastest on the device.

        Raises
        ------
        TypeError
            If ``chain`` is not a :class:`~fixedpoint_diffusion.DDIMChain`.
        ValueError
            If ``start`` does not fit ``images``, if either is not finite, if the noise or the conditioning of the chain
            is for fewer rows than there are images, or if ``redraw`` is set for a chain without noise.
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
