"""What stands in for the parts of a pipeline in a replay, and the script that tells what these return."""

from __future__ import annotations

import copy
import functools
import itertools
import threading
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from fixedpoint_diffusion.pipelines.trees import leaves, mapped

__all__ = [
    "REPLACED",
    "Known",
    "Later",
    "LoopEnded",
    "Place",
    "Script",
    "Stage",
    "StepCall",
    "cloned",
    "copied",
    "detached",
    "is_autoencoder",
    "prompt_encoder",
    "scheduler_copy",
    "stand_in",
]


# What is replaced in the copy of a scheduler.
REPLACED = ("step", "set_timesteps")


class LoopEnded(BaseException):
    """Ends a replay once it has told all it can. Not an ``Exception``, so that no pipeline catches it.

    Attributes
    ----------
    decoder, decoded
        The autoencoder that was about to decode, and what it was given; None if the replay ended in the loop.
    """

    def __init__(self, decoder: torch.nn.Module | None = None, decoded: Any = None) -> None:
        super().__init__()
        self.decoder, self.decoded = decoder, decoded


Stage: TypeAlias = Literal["before", "within", "after"]


class StepCall:
    """One call of a scheduler's ``step``.

    Attributes
    ----------
    scheduler
        The copy of the scheduler that takes the step.
    arguments
        The arguments by name.
    """

    def __init__(self, scheduler: Any, real: Callable[..., Any], arguments: dict[str, Any]) -> None:
        self.scheduler, self._real, self.arguments = scheduler, real, arguments

    def take(self, prediction: Any) -> Any:
        """Take the step with another ``model_output``."""
        return self._real(**{**self.arguments, "model_output": prediction})


class Script(ABC):
    """What the networks and the steps of a replay return.

    Attributes
    ----------
    disturbed
        Whether another thread called the pipeline meanwhile.
    copies
        Whether what the pipeline gives and gets is copied, since it changes some of it in place.
    """

    disturbed = False
    copies = False

    @abstractmethod
    def stage(self, length: int | None) -> Stage:
        """Return where the replay is in its loop, of so many steps; None: their number is not known yet."""

    @abstractmethod
    def network(self, name: str, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what a call of a network returns."""

    @abstractmethod
    def step(self, call: StepCall) -> Any:
        """Return what a step of the scheduler returns."""


def _is_of_transformers(part: torch.nn.Module) -> bool:
    """Whether a part is an encoder of text or images, or a class derived from one, such as a safety checker."""
    return any(base.__module__.partition(".")[0] == "transformers" for base in type(part).__mro__)


def is_autoencoder(part: Any) -> bool:
    """Whether a part encodes and decodes."""
    return isinstance(part, torch.nn.Module) and hasattr(part, "encode") and hasattr(part, "decode")


def copied(part: Any) -> Any:
    """Return a copy of a scheduler or guider; what it remembers of an earlier run is copied without gradients."""
    remembered = [leaf for _, leaf in leaves(vars(part)) if _has_graph(leaf)]
    known: dict[int, Any] = {id(each): each.detach().clone() for each in remembered}
    config = vars(part).get("_internal_dict")
    if config is not None:
        known[id(config)] = config  # cannot be changed
    return copy.deepcopy(part, known)


def detached(value: Any) -> Any:
    """Return what a scheduler remembers without its gradients: the next call does not use it, and it holds a graph."""
    if not any(_has_graph(leaf) for _, leaf in leaves(value)):
        return value
    return mapped(value, lambda _path, leaf: leaf.detach() if _has_graph(leaf) else leaf)


def cloned(value: Any) -> Any:
    """Return a value with copies of its tensors."""
    return mapped(value, lambda _path, leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)


def _has_graph(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.grad_fn is not None


def scheduler_copy(pipe: Any, own: Any, names: tuple[str, ...], place: Place) -> Any:
    """Return a copy of a scheduler whose ``step``, with parameters of these names, goes through the script."""
    made, thread = copied(own), threading.get_ident()

    def check_thread() -> None:
        if threading.get_ident() != thread:
            place.script.disturbed = True
            raise RuntimeError(
                f"{type(pipe).__name__} is being sampled jointly in another thread; a pipeline serves one call at a "
                "time"
            )

    def step(owner: Any, real: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        check_thread()
        return place.script.step(StepCall(owner, real, {**dict(zip(names, args, strict=False)), **kwargs}))

    def begin(_owner: Any, real: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        check_thread()
        return real(*args, **kwargs)

    _replace(made, "step", step)
    _replace(made, "set_timesteps", begin)
    return made


def _replace(made: Any, name: str, instead: Callable[..., Any]) -> None:
    """Replace a method of a scheduler, so that the one of a deep copy of it belongs to the copy."""
    real = getattr(made, name)
    if getattr(real, "__self__", None) is not made:
        setattr(made, name, functools.wraps(real)(lambda *args, **kwargs: instead(made, real, args, kwargs)))
        return
    own = real.__func__
    method = functools.wraps(own)(lambda self, *args, **kwargs: instead(self, own.__get__(self), args, kwargs))
    setattr(made, name, types.MethodType(method, made))


class Later:
    """Notes that the pipeline wanted to move its parts: hooks would be put on what stands in for them."""

    called = False

    def __call__(self) -> None:
        self.called = True


class Place:
    """Where a replay is.

    Parameters
    ----------
    script
        Of the replay.
    length
        The number of the loop's steps; None if it is not known yet.
    deliver
        Whether its result is wanted.
    """

    def __init__(self, script: Script, length: int | None, deliver: bool) -> None:
        self.script, self._length, self._deliver = script, length, deliver

    def end(self) -> None:
        """Let go of the script: the copy of the scheduler refers to itself, and so would keep what a replay made."""
        del self.script

    @property
    def known(self) -> bool:
        """Whether the number of the loop's steps is known."""
        return self._length is not None

    def stage(self, decoder: torch.nn.Module | None = None, decoded: Any = None) -> Stage:
        """Return where it is. Raises ``LoopEnded`` after the last step if the result is not wanted."""
        stage = self.script.stage(self._length)
        if stage == "after" and not self._deliver:
            raise LoopEnded(decoder, decoded)
        return stage


class Known:
    """What is the same in every replay of a call: constants of a part, and its results before the first step."""

    def __init__(self) -> None:
        self.constants: dict[str, Any] = {}
        self._results: list[Any] = []

    def result(self, number: int, call: Callable[[], Any]) -> Any:
        """Return the result of a call, the first of which has number 0."""
        if number == len(self._results):
            with torch.no_grad():
                self._results.append(call())
        # A copy: some pipelines change what an encoder has returned in place.
        return cloned(self._results[number])


# What is the same in every replay of a call, and takes a walk through all of a network to be told.
_CONSTANT = ("device", "dtype")


class _StandsIn:
    """Stands in for a part of a pipeline: of the same class by ``isinstance``, and with its attributes."""

    def __init__(self, part: torch.nn.Module, place: Place, known: Known) -> None:
        object.__setattr__(self, "_part", part)
        object.__setattr__(self, "_place", place)
        object.__setattr__(self, "_known", known)
        object.__setattr__(self, "_thread", threading.get_ident())

    @property  # type: ignore[misc]  # so that ``isinstance`` holds
    def __class__(self) -> type:
        return type(self._part)

    def __getattr__(self, name: str) -> Any:
        if name not in _CONSTANT:
            return getattr(object.__getattribute__(self, "_part"), name)
        if name not in self._known.constants:
            self._known.constants[name] = getattr(self._part, name)
        return self._known.constants[name]

    def modules(self) -> Iterator[torch.nn.Module]:
        """Those of the part, which pipelines walk through at every question for their device."""
        if "modules" not in self._known.constants:
            self._known.constants["modules"] = list(self._part.modules())
        return iter(self._known.constants["modules"])

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._part, name, value)

    @property
    def _elsewhere(self) -> bool:
        """Whether another thread, which knows of no replay, uses the part."""
        return bool(threading.get_ident() != self._thread)


class _Network(_StandsIn):
    def __init__(self, name: str, part: torch.nn.Module, place: Place, known: Known) -> None:
        super().__init__(part, place, known)
        object.__setattr__(self, "_name", name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # As long as the number of steps is not known, calls of networks tell how far the loop goes.
        own = self._elsewhere or (self._place.known and self._place.stage() == "after")
        return self._part(*args, **kwargs) if own else self._place.script.network(self._name, self._part, args, kwargs)


class _Encoder(_StandsIn):
    def __init__(self, part: torch.nn.Module, place: Place, known: Known) -> None:
        super().__init__(part, place, known)
        object.__setattr__(self, "_results", itertools.count())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._remembered(functools.partial(self._part, *args, **kwargs))

    def _remembered(self, call: Callable[[], Any]) -> Any:
        # Later calls may be about the samples.
        own = self._elsewhere or self._place.stage() != "before"
        return call() if own else self._known.result(next(self._results), call)


class _Autoencoder(_Encoder):
    """Remembers what it encoded, and ends the replay where it would decode."""

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        return self._remembered(functools.partial(self._part.encode, *args, **kwargs))

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        if not self._elsewhere:
            self._place.stage(self._part, next(iter((*args, *kwargs.values())), None))
        return self._part.decode(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._part(*args, **kwargs)


def prompt_encoder(encode: Callable[..., Any], place: Place, known: Known) -> Callable[..., Any]:
    """Return what stands in for ``encode_prompt``, tokenizers included, which takes as long as many a replay.

    With gradients the prompt's embeddings are made anew in each replay: several backward passes would go through them.
    """
    results, thread = itertools.count(), threading.get_ident()

    @functools.wraps(encode)
    def remembered(*args: Any, **kwargs: Any) -> Any:
        call = functools.partial(encode, *args, **kwargs)
        own = threading.get_ident() != thread or torch.is_grad_enabled() or place.stage() != "before"
        return call() if own else known.result(next(results), call)

    return remembered


def stand_in(name: str, part: torch.nn.Module, place: Place, known: Known, encodes: bool) -> Any:
    """Return what stands in for a part of a pipeline.

    Parameters
    ----------
    name
        Its name in the pipeline.
    part
        The part.
    place
        Where the replay is.
    known
        What other replays of the call have found out about the part.
    encodes
        Whether it is known to be called before the first step alone.
    """
    if is_autoencoder(part):
        return _Autoencoder(part, place, known)
    if encodes or _is_of_transformers(part):
        return _Encoder(part, place, known)
    return _Network(name, part, place, known)
