"""Determines, from the signature of a network and before any call, by which arguments it takes images and timesteps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fixedpoint.core.options import nearest
from fixedpoint_diffusion.recognition import is_of_diffusers

__all__ = ["NetworkCall", "check_function", "network_call"]

# Names of the timestep argument, the least specific last.
_TIMES = ("timestep", "timesteps", "time_step", "time_steps", "t", "time")
# Attributes under which compiled, parallel and adapted modules hold the module that they pass all arguments on to.
_WRAPPED = ("_orig_mod", "module", "base_model", "model")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class NetworkCall:
    """A network and the arguments by which it takes images and timesteps.

    Attributes
    ----------
    network
        The network.
    time
        Keyword of the timesteps. None: they are passed by position, second, or first if ``swapped``.
    swapped
        Whether timesteps come before images, as in the right-hand sides of differential equations.
    image
        Keyword of the images, for networks that take no positional arguments; None: they are passed by position.
    """

    network: torch.nn.Module
    time: str | None = None
    swapped: bool = False
    image: str | None = None

    def __call__(self, x: Tensor, timestep: Tensor, given: Mapping[str, Any]) -> Any:
        if self.image is not None and self.time is not None:
            return self.network(**{self.image: x, self.time: timestep}, **given)
        if self.time is not None:
            return self.network(x, **{self.time: timestep}, **given)
        return self.network(timestep, x, **given) if self.swapped else self.network(x, timestep, **given)


def network_call(network: torch.nn.Module, names: Iterable[str]) -> NetworkCall:
    """How to call a network with images, timesteps and further arguments of the given names.

    Raises
    ------
    ValueError
        If the network requires an argument that is not among ``names``, if it has no argument of one of the names, or
        if its signature does not show which argument is the timestep.
    """
    names = tuple(names)
    inner, parameters = _signature(network)
    kind = type(inner).__name__
    if not parameters:
        return NetworkCall(network)
    taken = {name: parameter for name, parameter in parameters.items() if parameter.kind not in _VARIADIC}
    kinds = {parameter.kind for parameter in parameters.values()}
    places = [name for name, parameter in taken.items() if parameter.kind in _BY_POSITION]
    time = next((name for name in _TIMES if name in taken and name not in names), None)
    if time is None and len(places) > 1:
        time = places[1]
        if time in names or time in _CONDITIONS:
            raise ValueError(f"{kind} does not say which of its arguments is the timestep: {', '.join(taken)}")
    if time not in _TIMES and is_of_diffusers(type(inner)):  # every denoiser of diffusers has an argument of that name
        raise ValueError(f"{kind} takes no timestep: its arguments are {', '.join(taken) or 'none'}")
    if time is None:
        if _VARIADIC[0] not in kinds:
            raise ValueError(f"{kind} takes no timestep: its arguments are {', '.join(taken) or 'none'}")
        call, used = NetworkCall(network), places[:1]
    elif not places and _VARIADIC[0] not in kinds:
        image = next((name for name in taken if name not in (time, *names)), None)
        if image is None:
            raise ValueError(f"{kind} takes no images: its arguments are {', '.join(taken)}")
        call, used = NetworkCall(network, time, image=image), [time, image]
    else:
        first = places[0] if places else None
        call = NetworkCall(network, None if time in places[:2] else time, swapped=time == first)
        used = [time, *places[: 2 if time == first else 1]]
    twice = [name for name in names if name in used]
    if twice:
        raise ValueError(f"{kind} is given its {twice[0]} by the chain; leave it out of the conditioning")
    unknown = [name for name in names if name not in taken]
    if unknown and _VARIADIC[1] not in kinds:
        known = [name for name in taken if name not in used]
        raise ValueError(f"{kind} takes no {unknown[0]}; {nearest(unknown[0], known)}")
    _check_wants(inner, [name for name in taken if name not in used], taken, names)
    return call


# Names of conditioning: a second argument of one of these names is not the timestep.
_CONDITIONS = ("encoder_hidden_states", "class_labels", "added_cond_kwargs", "attention_mask", "pooled_projections")


def _check_wants(
    network: torch.nn.Module, others: list[str], taken: Mapping[str, inspect.Parameter], names: tuple[str, ...]
) -> None:
    """Raise a ``ValueError`` if the network requires an argument that is not among ``names``."""
    wanted = [name for name in others if taken[name].default is inspect.Parameter.empty]
    if is_of_diffusers(type(network)):
        wanted += _wanted_all_the_same(network)
    lacking = [name for name in dict.fromkeys(wanted) if name in others and name not in names]
    if lacking:
        given = ", ".join(f'"{name}": ...' for name in lacking)
        raise ValueError(
            f"{type(network).__name__} is conditioned on {' and '.join(lacking)}; give it as "
            f"NetworkDenoiser(network, conditioning={{{given}}}), None for none"
        )


def _wanted_all_the_same(network: torch.nn.Module) -> list[str]:
    """Arguments that a network of diffusers requires although its signature has a default for them."""
    config = getattr(network, "config", {})
    wanted = ["encoder_hidden_states"]
    if config.get("addition_embed_type") not in (None, "text"):
        wanted.append("added_cond_kwargs")
    labelled = getattr(network, "class_embedding", None) is not None
    if labelled or type(network).__name__ == "DiTTransformer2DModel":
        wanted.append("class_labels")
    return wanted


def check_function(function: Callable[..., Any]) -> None:
    """Check that a function can be called as ``g(x, timestep)``.

    Raises
    ------
    TypeError
        If it cannot, or if its timestep is not the second argument. The message lists its arguments.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return
    names = list(signature.parameters)
    said = f"a denoiser must be a function g(x, timestep), got one of ({', '.join(names)})"
    try:
        signature.bind(None, None)
    except TypeError:
        raise TypeError(f"{said}; wrap it: lambda x, t: ...") from None
    # A long name of the timestep is refused anywhere but in the second place. The short names ("t", "time", ...) are
    # refused only in the first place, that of the image: further back they may mean something else.
    elsewhere = [name for name in _TIMES[:2] if name in names and names.index(name) != 1]
    elsewhere += [names[0]] if names[0] in _TIMES[2:] else []
    if elsewhere and signature.parameters[names[0]].kind is not inspect.Parameter.VAR_POSITIONAL:
        raise TypeError(f"{said}, whose {elsewhere[0]} comes elsewhere; wrap it: lambda x, t: ...")


def _names_time(module: torch.nn.Module) -> bool:
    """Whether a module has an argument with one of the names of the timestep."""
    return any(name in _TIMES for name in _signature(module)[1])


def _signature(network: torch.nn.Module) -> tuple[torch.nn.Module, Mapping[str, inspect.Parameter]]:
    """The network, or the module that it wraps, with named arguments, and these; no arguments if no such module exists.

    A module whose ``forward`` is only ``(*args, **kwargs)`` is taken for a wrapper, and the module inside is examined.
    """
    module = network
    while True:
        try:
            parameters = inspect.signature(module.forward).parameters
        except (TypeError, ValueError):
            return network, {}
        if any(parameter.kind not in _VARIADIC for parameter in parameters.values()):
            return module, parameters
        inside = [getattr(module, name, None) for name in _WRAPPED]
        found = next((each for each in inside if isinstance(each, torch.nn.Module)), None)
        if found is None:
            children = list(module.children())
            if len(children) != 1 or not _names_time(children[0]):
                return network, {}
            found = children[0]
        module = found
