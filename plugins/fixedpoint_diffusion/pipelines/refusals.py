"""Checks before any work: what cannot be replayed is refused with a sentence that names it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fixedpoint_diffusion.pipelines.trees import leaves
from fixedpoint_diffusion.recognition import is_guider, is_pipeline

__all__ = [
    "check_arguments",
    "check_finite",
    "check_is_pipeline",
    "check_keeps_nothing",
    "check_one_shape",
    "check_options",
    "check_output",
    "check_parts",
]

_STEP = ("model_output", "timestep", "sample")
_PLAIN = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def check_is_pipeline(given: Any) -> None:
    """Check that something is a pipeline of diffusers, or of a class derived from one.

    Raises
    ------
    TypeError
        If it is not; the message says what to pass.
    """
    name = type(given).__name__
    if isinstance(given, type):
        raise TypeError(f"parallel requires a pipeline, got the class {given.__name__} itself; pass an instance")
    if isinstance(given, str) or hasattr(given, "__fspath__"):
        raise TypeError(
            f"parallel requires a pipeline, got {name} {str(given)!r}; load it by DiffusionPipeline.from_pretrained"
        )
    if isinstance(given, torch.nn.Module):
        raise TypeError(f"parallel requires a whole pipeline, got {name}; a network goes to sampling_problem")
    if not is_pipeline(given):
        raise TypeError(f"parallel requires a pipeline of diffusers, got {name}")
    if any(base.__name__ == "ModularPipeline" for base in type(given).__mro__):
        raise TypeError(f"{name} is made of blocks, and has no loop of its own to replay; parallel takes pipelines")


def check_options(rtol: float, max_batch: int | None) -> None:
    """Check the tolerance and the size of batches.

    Raises
    ------
    ValueError
        If one of them is not as ``parallel`` describes it.
    """
    if isinstance(rtol, bool) or not isinstance(rtol, (int, float)) or not 0 < rtol < 1:
        raise ValueError(f"rtol must be between 0 and 1, got {rtol!r}")
    if max_batch is not None and (isinstance(max_batch, bool) or not isinstance(max_batch, int) or max_batch < 1):
        raise ValueError(f"max_batch must be an integer of at least 1, got {max_batch!r}")


def check_parts(pipe: Any) -> None:
    """Check that a pipeline's networks and scheduler can be called in any order.

    Raises
    ------
    ValueError
        If they cannot; the message names the part.
    """
    name = type(pipe).__name__
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None or not callable(getattr(scheduler, "step", None)):
        raise ValueError(f"{name} has no scheduler with a step, so that its loop cannot be told from other code")
    if "scheduler" not in vars(pipe):
        raise ValueError(f"{name}.scheduler is a property; register the scheduler under this name")
    own = vars(scheduler).get("step")
    if own is not None and not inspect.ismethod(own):
        raise ValueError(
            f"the step of {name}'s {type(scheduler).__name__} has been replaced by {getattr(own, '__name__', own)!r}, "
            "which would go on with this scheduler where a copy of it takes the step; derive a class instead"
        )
    given = inspect.signature(scheduler.step).parameters
    lacking = [each for each in _STEP if each not in given]
    if lacking:
        raise ValueError(f"the step of {name}'s {type(scheduler).__name__} takes no {lacking[0]}")
    more = [
        key for key, each in given.items() if each.default is each.empty and key not in _STEP and each.kind in _PLAIN
    ]
    if more:
        raise ValueError(
            f"the step of {name}'s {type(scheduler).__name__} requires {' and '.join(more)}, too; a step that can be "
            f"replayed requires {', '.join(_STEP[:-1])} and {_STEP[-1]} alone"
        )
    for part, module in vars(pipe).items():
        if isinstance(module, torch.nn.Module):
            _check_network(f"{name}.{part}", module)
        elif is_guider(module):
            _check_guider(f"{name}.{part}", module)


def _check_guider(name: str, guider: Any) -> None:
    base = next(each for each in type(guider).__mro__ if each.__name__ == "BaseGuidance")
    if any(getattr(type(guider), each) is not getattr(base, each) for each in ("prepare_models", "cleanup_models")):
        raise ValueError(
            f"{name} is a {type(guider).__name__}, which changes layers of the network between its calls, so that they "
            "cannot be evaluated together; take a guider that only combines outputs, such as ClassifierFreeGuidance"
        )


def _check_network(name: str, module: torch.nn.Module) -> None:
    if any(each.training and (getattr(each, "p", 0) > 0 or isinstance(each, _BatchNorm)) for each in _random(module)):
        raise ValueError(
            f"{name} is in training mode, where dropout and batch norm make every evaluation another function; call "
            "eval() first"
        )
    for inner in module.modules():
        hooks = getattr(getattr(inner, "_diffusers_hook", None), "hooks", {})
        for hook in hooks.values():
            if getattr(hook, "_is_stateful", False):
                raise ValueError(
                    f"{name} has a {type(hook).__name__}, which keeps what earlier steps computed, so that its output "
                    "depends on the order of the calls; disable the cache first"
                )


def _random(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the layers that are no functions of a row in training mode."""
    return (each for each in module.modules() if isinstance(each, (_DropoutNd, _BatchNorm)))


def check_keeps_nothing(name: str, module: torch.nn.Module) -> None:
    """Check that a network's attention leaves nothing behind for the pipeline, which would be of a merged batch.

    Raises
    ------
    ValueError
        If it does; the message names it.
    """
    for processor in getattr(module, "attn_processors", {}).values():
        kept = [key for key, value in vars(processor).items() if isinstance(value, torch.Tensor)]
        if kept and not isinstance(processor, torch.nn.Module):
            raise ValueError(
                f"the {type(processor).__name__} in {name} keeps {kept[0]} for the pipeline to read after the call; "
                "calls of several steps are evaluated in one batch, so this pipeline cannot be replayed"
            )


def check_arguments(call: Any, pipe: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Check that arguments go with the pipeline's own signature.

    Raises
    ------
    TypeError
        As the pipeline would raise it.
    """
    inspect.signature(call).bind(pipe, *args, **kwargs)
    check_finite(kwargs)


def check_output(call: Any, pipe: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Check that the pipeline is to return tensors, through which a gradient can go.

    Raises
    ------
    ValueError
        If it is to return anything else.
    """
    bound = inspect.signature(call).bind(pipe, *args, **kwargs)
    bound.apply_defaults()
    kind = bound.arguments.get("output_type", "pt")
    if kind not in ("pt", "latent"):
        raise ValueError(f"a gradient goes through tensors alone: pass output_type='pt' or 'latent', got {kind!r}")


def check_one_shape(name: str, samples: Iterable[torch.Tensor]) -> None:
    """Check that all samples of a loop have one shape.

    Raises
    ------
    ValueError
        If they have not; the message names two of the shapes.
    """
    found = list(dict.fromkeys(tuple(each.shape) for each in samples))
    if len(found) > 1:
        raise ValueError(
            f"{name} gives samples of shape {found[0]} to its scheduler, and later of {found[1]}; the states of one "
            "fixed point have one shape, so call the pipeline itself"
        )


def check_finite(given: Mapping[str, Any]) -> None:
    """Check that the tensors in some arguments are finite.

    Raises
    ------
    ValueError
        If one is not; the message names it.
    """
    for path, leaf in leaves(given):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and not bool(leaf.isfinite().all()):
            raise ValueError(
                f"{path[0]} must be finite, got {int((~leaf.isfinite()).sum())} entries that are NaN or Inf"
            )
