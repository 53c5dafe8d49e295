"""Diffusion sampling as a joint fixed point: noise schedules, denoisers, samplers, inversion and a sampling task.

``sampling_problem``, for any scheduler, and ``ddim_problem`` make the problem that ``fixedpoint.solve`` solves;
``solution.z[:, -1]`` are the samples. ``invert`` finds the noise that leads to given images. Submodules are imported on
first use, so that listing plugins stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fixedpoint._lazy import exported

if TYPE_CHECKING:
    from fixedpoint_diffusion.denoisers.convert import as_denoiser as as_denoiser
    from fixedpoint_diffusion.denoisers.denoiser import Denoiser as Denoiser
    from fixedpoint_diffusion.denoisers.mixture import GaussianMixture as GaussianMixture
    from fixedpoint_diffusion.denoisers.network import NetworkDenoiser as NetworkDenoiser
    from fixedpoint_diffusion.fashion_mnist import DENOISER as DENOISER
    from fixedpoint_diffusion.fashion_mnist.classifier import Classifier as Classifier
    from fixedpoint_diffusion.fashion_mnist.classifier import frechet_distance as frechet_distance
    from fixedpoint_diffusion.fashion_mnist.classifier import load_classifier as load_classifier
    from fixedpoint_diffusion.fashion_mnist.classifier import reference as reference
    from fixedpoint_diffusion.fashion_mnist.images import held_out_images as held_out_images
    from fixedpoint_diffusion.fashion_mnist.pipeline import FashionMNISTPipeline as FashionMNISTPipeline
    from fixedpoint_diffusion.inversion.invert import invert as invert
    from fixedpoint_diffusion.inversion.invert import slerp as slerp
    from fixedpoint_diffusion.inversion.latent_gradients import Exact as Exact
    from fixedpoint_diffusion.inversion.latent_gradients import LatentGradient as LatentGradient
    from fixedpoint_diffusion.inversion.latent_gradients import LossAndGradient as LossAndGradient
    from fixedpoint_diffusion.inversion.latent_gradients import OneStep as OneStep
    from fixedpoint_diffusion.inversion.latent_gradients import Phantom as Phantom
    from fixedpoint_diffusion.inversion.latent_gradients import Serial as Serial
    from fixedpoint_diffusion.inversion.optimisation import OptimisedInversion as OptimisedInversion
    from fixedpoint_diffusion.inversion.optimisation_run import Optimisation as Optimisation
    from fixedpoint_diffusion.inversion.optimisation_run import OptimisedLatents as OptimisedLatents
    from fixedpoint_diffusion.models.choices import DiffusersModel as DiffusersModel
    from fixedpoint_diffusion.models.choices import FashionMNISTModel as FashionMNISTModel
    from fixedpoint_diffusion.models.choices import MixtureModel as MixtureModel
    from fixedpoint_diffusion.models.choices import Model as Model
    from fixedpoint_diffusion.models.choices import ShapesModel as ShapesModel
    from fixedpoint_diffusion.models.folder import FolderError as FolderError
    from fixedpoint_diffusion.models.folder import ModelFolder as ModelFolder
    from fixedpoint_diffusion.pipelines.folder import load_pipeline as load_pipeline
    from fixedpoint_diffusion.pipelines.inversion import PipelineInversion as PipelineInversion
    from fixedpoint_diffusion.pipelines.parallel import ParallelPipeline as ParallelPipeline
    from fixedpoint_diffusion.pipelines.parallel import parallel as parallel
    from fixedpoint_diffusion.samplers.chains import MultistepChain as MultistepChain
    from fixedpoint_diffusion.samplers.chains import SamplerChain as SamplerChain
    from fixedpoint_diffusion.samplers.ddim import DDIMChain as DDIMChain
    from fixedpoint_diffusion.samplers.levels import NoiseLevels as NoiseLevels
    from fixedpoint_diffusion.samplers.noise import draw_noise as draw_noise
    from fixedpoint_diffusion.samplers.noise import row_seeds as row_seeds
    from fixedpoint_diffusion.samplers.probe import sampler_tables as sampler_tables
    from fixedpoint_diffusion.samplers.problem import ddim_problem as ddim_problem
    from fixedpoint_diffusion.samplers.problem import sampling_problem as sampling_problem
    from fixedpoint_diffusion.samplers.recurrence import AffineRows as AffineRows
    from fixedpoint_diffusion.samplers.recurrence import LocalForm as LocalForm
    from fixedpoint_diffusion.samplers.recurrence import SamplerTables as SamplerTables
    from fixedpoint_diffusion.schedules.schedulers import DDIMSchedule as DDIMSchedule
    from fixedpoint_diffusion.schedules.timesteps import quadratic_timesteps as quadratic_timesteps

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "fixedpoint_diffusion.denoisers.convert": ("as_denoiser",),
        "fixedpoint_diffusion.samplers.chains": (
            "MultistepChain",
            "SamplerChain",
        ),
        "fixedpoint_diffusion.samplers.ddim": ("DDIMChain",),
        "fixedpoint_diffusion.denoisers.denoiser": ("Denoiser",),
        "fixedpoint_diffusion.fashion_mnist": ("DENOISER",),
        "fixedpoint_diffusion.fashion_mnist.classifier": (
            "Classifier",
            "frechet_distance",
            "load_classifier",
            "reference",
        ),
        "fixedpoint_diffusion.fashion_mnist.images": ("held_out_images",),
        "fixedpoint_diffusion.fashion_mnist.pipeline": ("FashionMNISTPipeline",),
        "fixedpoint_diffusion.models.folder": ("FolderError", "ModelFolder"),
        "fixedpoint_diffusion.inversion.invert": (
            "invert",
            "slerp",
        ),
        "fixedpoint_diffusion.inversion.latent_gradients": (
            "Exact",
            "LossAndGradient",
            "LatentGradient",
            "OneStep",
            "Phantom",
            "Serial",
        ),
        "fixedpoint_diffusion.denoisers.mixture": ("GaussianMixture",),
        "fixedpoint_diffusion.models.choices": (
            "DiffusersModel",
            "FashionMNISTModel",
            "MixtureModel",
            "Model",
            "ShapesModel",
        ),
        "fixedpoint_diffusion.denoisers.network": ("NetworkDenoiser",),
        "fixedpoint_diffusion.pipelines.folder": ("load_pipeline",),
        "fixedpoint_diffusion.pipelines.inversion": ("PipelineInversion",),
        "fixedpoint_diffusion.pipelines.parallel": (
            "ParallelPipeline",
            "parallel",
        ),
        "fixedpoint_diffusion.samplers.noise": (
            "draw_noise",
            "row_seeds",
        ),
        "fixedpoint_diffusion.inversion.optimisation": ("OptimisedInversion",),
        "fixedpoint_diffusion.inversion.optimisation_run": (
            "Optimisation",
            "OptimisedLatents",
        ),
        "fixedpoint_diffusion.samplers.levels": ("NoiseLevels",),
        "fixedpoint_diffusion.samplers.probe": ("sampler_tables",),
        "fixedpoint_diffusion.samplers.problem": (
            "ddim_problem",
            "sampling_problem",
        ),
        "fixedpoint_diffusion.samplers.recurrence": (
            "AffineRows",
            "LocalForm",
            "SamplerTables",
        ),
        "fixedpoint_diffusion.schedules.schedulers": ("DDIMSchedule",),
        "fixedpoint_diffusion.schedules.timesteps": ("quadratic_timesteps",),
    },
)
