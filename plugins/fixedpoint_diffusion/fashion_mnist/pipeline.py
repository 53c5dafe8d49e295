"""The bundled denoiser as a pipeline of diffusers, with any scheduler: small enough to try things out on a CPU."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DiTTransformer2DModel, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fixedpoint_diffusion.fashion_mnist import CLASSES, DENOISER

__all__ = ["FashionMNISTPipeline"]


class FashionMNISTPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers has no types
    """Samples images of clothes, 32 x 32 pixels, one channel; there is no autoencoder.

    Parameters
    ----------
    transformer
        The denoiser: a ``DiTTransformer2DModel`` of ten classes and one for none, which predicts v.
    scheduler
        Any scheduler of diffusers.
    """

    _callback_tensor_inputs = ("latents",)

    def __init__(self, transformer: DiTTransformer2DModel, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @classmethod
    def bundled(cls, scheduler: Any = None, **settings: Any) -> FashionMNISTPipeline:
        """The pipeline of the bundled denoiser.

        Parameters
        ----------
        scheduler
            A class of diffusers, made from the noise levels of the training; default: ``DDIMScheduler``.
        **settings
            Settings of the scheduler, such as ``use_karras_sigmas=True``.
        """
        made = DiTTransformer2DModel.from_pretrained(DENOISER, local_files_only=True).eval()
        config = DDIMScheduler.load_config(DENOISER, local_files_only=True)
        return cls(made, (scheduler or DDIMScheduler).from_config(config, **settings))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | int | Sequence[str | int],
        *,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Sample images.

        Parameters
        ----------
        prompt
            A class by its name or number, or one for every image.
        guidance_scale
            Classifier-free guidance; 1 is none.
        num_inference_steps
            The number of steps.
        eta
            For schedulers whose step takes it.
        generator
            Draws the noise: one generator, or one for every image.
        latents
            Unit noise to begin with, shape ``(B, 1, 32, 32)``.
        output_type
            ``"pil"``, ``"np"`` or ``"pt"`` for images with pixels in ``[0, 1]``, ``"latent"`` for pixels in [-1, 1].
        return_dict
            Whether to return an ``ImagePipelineOutput``, not a tuple.
        callback_on_step_end
            As for the pipelines of diffusers.
        """
        labels = self._labels(prompt)
        shape = (len(labels), 1, 32, 32)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self.device, dtype=self.transformer.dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        latents = latents.to(self.device) * self.scheduler.init_noise_sigma
        taken = inspect.signature(self.scheduler.step).parameters
        given = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in taken}
        guided = guidance_scale != 1
        classes = torch.cat([torch.full_like(labels, len(CLASSES)), labels]) if guided else labels
        with self.progress_bar(total=len(self.scheduler.timesteps)) as bar:
            for number, t in enumerate(self.scheduler.timesteps):
                inputs = self.scheduler.scale_model_input(torch.cat([latents, latents]) if guided else latents, t)
                output = self.transformer(inputs, timestep=t.expand(len(inputs)), class_labels=classes).sample
                if guided:
                    free, conditional = output.chunk(2)
                    output = free + guidance_scale * (conditional - free)
                latents = self.scheduler.step(output, t, latents, **given).prev_sample
                if callback_on_step_end is not None:
                    latents = callback_on_step_end(self, number, t, {"latents": latents}).pop("latents", latents)
                bar.update()
        images: Any = latents
        if output_type != "latent":
            images = (latents / 2 + 0.5).clamp(0, 1)
        if output_type in ("np", "pil"):
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels(self, prompt: str | int | Sequence[str | int]) -> Tensor:
        asked = [prompt] if isinstance(prompt, (str, int)) else list(prompt)
        unknown = [one for one in asked if one not in CLASSES and one not in range(len(CLASSES))]
        if unknown:
            raise ValueError(f"prompt must be among {', '.join(CLASSES)} or 0 to 9, got {unknown[0]!r}")
        return torch.tensor([CLASSES.index(one) if isinstance(one, str) else one for one in asked], device=self.device)
