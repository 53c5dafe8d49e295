"""``LeafLoop``: the leaf blocks of a denoising loop, replayed like the call of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusers.modular_pipelines import BlockState
from torch import Tensor

from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.solver import Solver
from fixedpoint_diffusion.pipelines.parallel import ParallelPipeline
from fixedpoint_diffusion.pipelines.refusals import check_finite, check_parts
from fixedpoint_diffusion.pipelines.replay import Replay
from fixedpoint_diffusion.pipelines.trees import mapped

__all__ = ["LeafLoop"]


class LeafLoop(ParallelPipeline):
    """The loop over the leaf blocks, called with the values of a block state by name.

    It returns the block state at the end.

    Parameters
    ----------
    components
        The pipeline that has the networks, the scheduler and the guider.
    leaves
        The leaf blocks, each called as ``block(components, block_state, i=, t=)``.
    prepare
        What is done with the components before the first step.
    progress_bar
        Makes a progress bar of so many steps.
    rtol, solver, max_batch
        As for ``parallel``.
    """

    def __init__(
        self,
        components: Any,
        leaves: Sequence[Callable[..., Any]],
        prepare: Callable[[Any], None],
        progress_bar: Callable[..., Any],
        *,
        rtol: float,
        solver: str | Mapping[str, Any] | Solver,
        max_batch: int | None,
    ) -> None:
        super().__init__(components, rtol, solver, None, max_batch, None)
        self._leaves, self._prepare, self._own_bar = leaves, prepare, progress_bar

    def _replay(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Replay:
        check_parts(self.pipe)
        check_finite(args[0])
        return Replay(self.pipe, args, kwargs, self._run)

    def _progress_bar(self, problem: ChainProblem) -> Any:
        return self._own_bar(total=problem.length)

    def _run(self, components: Any, values: Mapping[str, Any], latents: Tensor | None = None) -> Any:
        # Anew for every replay: blocks write into the block state, and may write into its lists.
        block_state = BlockState(**mapped(values, lambda _path, leaf: leaf))
        if latents is not None:
            block_state.latents = latents
        self._prepare(components)
        for i, t in enumerate(block_state.timesteps):
            for block in self._leaves:
                components, block_state = block(components, block_state, i=i, t=t)
        return block_state
