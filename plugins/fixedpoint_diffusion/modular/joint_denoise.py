"""``JointDenoise``: a block of Modular Diffusers that solves a denoising loop as one joint fixed point.

blocks = JointDenoise.of(StableDiffusionXLAutoBlocks())     every loop in them is replaced
pipe = blocks.init_pipeline("my/folder")
pipe.load_components()
found = pipe(prompt="a cat", num_inference_steps=50, rtol=1e-3, output=["images", "solution"])
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import ModularPipelineBlocks
from diffusers.modular_pipelines import InputParam, LoopSequentialPipelineBlocks, OutputParam

from fixedpoint import __version__
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.registry import registry
from fixedpoint_diffusion.modular.families import preparation_of
from fixedpoint_diffusion.modular.loop import LeafLoop
from fixedpoint_diffusion.pipelines.refusals import check_options
from fixedpoint_diffusion.recognition import is_pipeline

__all__ = ["JointDenoise"]


class JointDenoise(LoopSequentialPipelineBlocks):  # type: ignore[misc]  # diffusers has no types
    """A block that takes the place of a denoising loop: all of its steps are solved as one joint fixed point.

    It is made of the leaf blocks of the loop (scaling the input, denoiser with guidance, the scheduler's step), which
    run as they are; blocks may be added to ``sub_blocks``. It has the inputs, outputs and components of the loop. More
    inputs are ``rtol``, ``solver`` and ``max_batch``; one more output is ``solution``: a status for every image,
    rounds, counts and plan. Scheduler, guider and random generators are left as the loop would leave them.

    Known are the loops of Flux, Stable Diffusion 3 and Stable Diffusion XL.

    Parameters
    ----------
    loop
        The loop, such as ``StableDiffusionXLDenoiseStep()``.
    rtol
        The default of the input ``rtol``: the largest relative error of any state, in ``(0, 1)``.
    solver
        The default of the input ``solver``, as for ``fixedpoint.solve``. ``"auto"`` solves jointly or step by step,
        whichever it expects to be faster on this machine; ``"serial"`` runs step by step, with the bits of the loop.
    max_batch
        The default of the input ``max_batch``: the largest number of rows in one batch of a network, at least 1. None:
        what is fastest on a CPU, and what half of the free memory of a GPU holds.

    Raises
    ------
    TypeError, ValueError
        If the loop is not known, or if an option is not as described. When the block runs, also if the loop cannot be
        solved jointly; the message names what is in the way.

    Warns
    -----
    UserWarning
        When the block runs, if an image was not solved to the tolerance.
    """

    def __init__(
        self,
        loop: Any,
        *,
        rtol: float = 1e-3,
        solver: str | Mapping[str, Any] | Solver = "auto",
        max_batch: int | None = None,
    ) -> None:
        _check_is_loop(loop)
        _check(rtol, solver, max_batch)
        super().__init__()
        self._prepare, self._loop = preparation_of(loop), loop
        self.sub_blocks = copy.copy(loop.sub_blocks)
        self.block_names = list(self.sub_blocks)
        self.block_classes = [type(block) for block in self.sub_blocks.values()]
        self.model_name = loop.model_name
        self._rtol, self._solver, self._most = rtol, solver, max_batch
        self.set_progress_bar_config(**getattr(loop, "_progress_bar_config", {}))

    @classmethod
    def of(
        cls,
        blocks: Any,
        *,
        rtol: float = 1e-3,
        solver: str | Mapping[str, Any] | Solver = "auto",
        max_batch: int | None = None,
    ) -> Any:
        """Return blocks in which every denoising loop is replaced. The given ones are not changed.

        Parameters
        ----------
        blocks
            Blocks of a pipeline, such as ``FluxAutoBlocks()``, with loops at any depth; or a loop.
        rtol, solver, max_batch
            As for the class.

        Raises
        ------
        TypeError
            If these are no blocks, if there is no loop in them, or if one of the loops is not known.
        ValueError
            If an option is not as described.
        """
        _check_is_blocks(blocks)
        _check(rtol, solver, max_batch)

        def joint(loop: Any) -> Any:
            return JointDenoise(loop, rtol=rtol, solver=solver, max_batch=max_batch)

        made = copy.deepcopy(blocks)
        if _is_loop(made):
            return joint(made)
        places = [(parent, name) for parent, name, block in _within(made) if _is_loop(block)]
        if not places:
            raise TypeError(f"{type(blocks).__name__} contains no denoising loop that could be replaced")
        for parent, name in places:
            parent.sub_blocks[name] = joint(parent.sub_blocks[name])
        return made

    @property
    def description(self) -> str:
        """What the block does."""
        return f"Solves the steps of {type(self._loop).__name__} as one joint fixed point, in parallel rounds."

    @property
    def loop_expected_components(self) -> list[Any]:
        """Those of the loop."""
        return list(self._loop.loop_expected_components)

    @property
    def loop_expected_configs(self) -> list[Any]:
        """Those of the loop."""
        return list(self._loop.loop_expected_configs)

    @property
    def loop_inputs(self) -> list[Any]:
        """Those of the loop, and the options."""
        return [
            *self._loop.loop_inputs,
            InputParam("rtol", type_hint=float, default=self._rtol, description=_INPUTS["rtol"]),
            InputParam("solver", type_hint=str, default=self._solver, description=_INPUTS["solver"]),
            InputParam("max_batch", type_hint=int, default=self._most, description=_INPUTS["max_batch"]),
        ]

    @property
    def loop_intermediate_outputs(self) -> list[Any]:
        """Those of the loop, and the solution."""
        return [*self._loop.loop_intermediate_outputs, _SOLUTION]

    @property
    def outputs(self) -> list[Any]:
        """Those of the loop, and the solution."""
        return [*super().outputs, _SOLUTION]

    @property
    def _requirements(self) -> dict[str, Any]:
        return {**super()._requirements, "fixedpoint-solvers": f">={__version__}"}

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Solve the loop, and write what the loop would write into the state of the pipeline, with the solution."""
        values = self.get_block_state(state).as_dict()
        options = {name: values.pop(name) for name in _INPUTS}
        _check(**options)
        leaves = list(self.sub_blocks.values())
        loop = LeafLoop(components, leaves, self._prepare, self.progress_bar, **options)
        block_state = loop(values)
        block_state.solution = loop.solution
        self.set_block_state(state, block_state)
        return components, state


_INPUTS = {
    "rtol": "The largest relative error of any latents, between 0 and 1.",
    "solver": "How the steps are solved: auto, serial, or a solver of fixedpoint.",
    "max_batch": "The largest number of rows in one batch of a network.",
}
_SOLUTION = OutputParam(
    "solution", type_hint=Solution, description="A status for every image, rounds, counts and plan."
)


def _check(rtol: float, solver: Any, max_batch: int | None) -> None:
    check_options(rtol, max_batch)
    registry.create("solver", solver)


def _is_loop(block: Any) -> bool:
    return isinstance(block, LoopSequentialPipelineBlocks) and not isinstance(block, JointDenoise)


def _within(blocks: Any) -> Iterator[tuple[Any, str, Any]]:
    """Yield all blocks in others, at any depth, each with the one that contains it and its name there."""
    for name, block in blocks.sub_blocks.items():
        yield blocks, name, block
        yield from _within(block)


def _check_is_loop(given: Any) -> None:
    _check_is_blocks(given)
    if not _is_loop(given):
        raise TypeError(
            f"JointDenoise requires a denoising loop, got {type(given).__name__}; "
            "JointDenoise.of replaces the loops in other blocks"
        )


def _check_is_blocks(given: Any) -> None:
    name = given.__name__ if isinstance(given, type) else type(given).__name__
    if isinstance(given, type) and issubclass(given, ModularPipelineBlocks):
        raise TypeError(f"JointDenoise requires blocks, got the class {name} itself; pass {name}()")
    if is_pipeline(given) and hasattr(given, "blocks"):
        raise TypeError(f"JointDenoise requires blocks, got the pipeline {name}; pass its attribute blocks")
    if is_pipeline(given):
        raise TypeError(f"JointDenoise requires blocks, got the pipeline {name}; parallel takes pipelines")
    if not isinstance(given, ModularPipelineBlocks):
        raise TypeError(f"JointDenoise requires blocks of Modular Diffusers, got {name}")
