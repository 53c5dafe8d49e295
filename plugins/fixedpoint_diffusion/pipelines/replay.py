"""``Replay``: one call of a pipeline with its arguments, carried out again and again with other network outputs.

For the length of a replay the pipeline's networks, encoders and scheduler are replaced in its ``__dict__``:

- networks by objects that hand every call to a ``Script``, which records the inputs and returns an output it knows,
- encoders, whose results are the same in every replay, by objects that remember them,
- the decoder by one that ends the replay,
- the scheduler by a fresh copy, whose counters and history begin anew and whose ``step`` goes through the script,
- guiders by fresh copies, which count steps and may keep what they were given.

Guidance, blends, callbacks and whatever else a pipeline does between two network calls is its own code. All random
generators are put back before each replay. Afterwards the pipeline is as it was, whatever was raised.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from fixedpoint_diffusion.pipelines.log import unheard
from fixedpoint_diffusion.pipelines.randomness import RandomStates
from fixedpoint_diffusion.pipelines.trees import leaves, mapped
from fixedpoint_diffusion.recognition import is_guider

__all__ = ["LoopEnded", "Replay", "Script", "StepCall"]

# One lock per pipeline: replays of two threads take turns.
_LOCKS: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


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
    """What the networks and the steps of a replay return."""

    @abstractmethod
    def network(self, name: str, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what a call of a network returns."""

    @abstractmethod
    def step(self, call: StepCall) -> Any:
        """Return what a step of the scheduler returns."""


class Replay:
    """A call of a pipeline that can be carried out again and again.

    Parameters
    ----------
    pipe
        The pipeline.
    args, kwargs
        The arguments of its ``__call__``.
    call
        What is carried out instead of ``__call__``: a function of the pipeline and these arguments, which finds the
        networks and the scheduler as the pipeline's attributes.
    """

    def __init__(
        self, pipe: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: Callable[..., Any] | None = None
    ) -> None:
        self.pipe, self.args, self.kwargs = pipe, args, dict(kwargs)
        # Without the decorator ``torch.no_grad``: whether autograd records is decided here.
        self.call = inspect.unwrap(type(pipe).__call__) if call is None else call
        self.random = RandomStates((args, self.kwargs))
        self._heard = False
        self.remembered: dict[str, list[Any]] = {}
        self._constants: dict[str, dict[str, Any]] = {}
        # Networks that are called before the loop alone, such as adapters; known after the first replay.
        self.encoders: set[str] = set()
        # What takes the steps in place of the pipeline's scheduler; None: that.
        self.scheduler: Any = None
        # How the last replay ended, if the pipeline did not end it.
        self.ended: LoopEnded | None = None

    def play(self, script: Script, *, deliver: bool = False, **instead: Any) -> Any:
        """Carry the call out; return its result, or None if it was ended.

        If the pipeline raises, its attributes and generators stay as they were at that moment, as after its own call.

        Parameters
        ----------
        script
            What networks and steps return.
        deliver
            Whether this is the replay whose result the user gets: the decoder runs, and the pipeline's attributes and
            generators stay as they are at the end.
        instead
            Arguments of the pipeline that replace those of the call.
        """
        pipe = self.pipe
        with _lock_of(pipe):
            own, before = dict(vars(pipe)), RandomStates((self.args, self.kwargs))
            dtypes = {part: _dtype(part) for part in own.values() if _is_autoencoder(part)}
            self.random.restore()
            self.ended = None
            stands_in = self._stand_ins(script, deliver)
            vars(pipe).update(stands_in)
            result, keep = None, deliver
            try:
                with unheard() if self._heard else contextlib.nullcontext():
                    result = self.call(pipe, *self.args, **{**self.kwargs, **instead})
            except LoopEnded as ended:
                self.ended = ended
            except BaseException:
                keep = True
                raise
            finally:
                self._heard = True
                if keep:
                    self._keep(own, stands_in)
                else:
                    vars(pipe).clear()
                    vars(pipe).update(own)
                    before.restore()
                    for part, dtype in dtypes.items():
                        # Some pipelines decode in float32, and this one was ended before it was done.
                        if _dtype(part) != dtype:
                            part.to(dtype)
            return result

    @contextlib.contextmanager
    def drawing(self, random: RandomStates) -> Iterator[None]:
        """Draw from these states within, and put all generators back at the end."""
        with _lock_of(self.pipe):
            before = RandomStates((self.args, self.kwargs))
            random.restore()
            try:
                yield
            finally:
                before.restore()

    def _stand_ins(self, script: Script, deliver: bool) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, part in vars(self.pipe).items():
            if is_guider(part):
                found[name] = copied(part)
            if not isinstance(part, torch.nn.Module):
                continue
            constants = self._constants.setdefault(name, {})
            if _is_autoencoder(part):
                found[name] = _Autoencoder(part, constants, self._memory(name), deliver)
            elif name in self.encoders or type(part).__module__.partition(".")[0] == "transformers":
                found[name] = _Encoder(part, constants, self._memory(name))
            else:
                found[name] = _Network(part, constants, functools.partial(script.network, name, part))
        found["scheduler"] = _scheduler(self.scheduler or self.pipe.scheduler, script)
        found["_progress_bar_config"] = {"disable": True}  # the rounds have a bar of their own
        return found

    def _memory(self, name: str) -> _Memory:
        return _Memory(self.remembered.setdefault(name, []))

    def _keep(self, own: dict[str, Any], stands_in: dict[str, Any]) -> None:
        """Leave the pipeline as its own call would: new attributes stay, what stood in for its parts goes."""
        now = vars(self.pipe)
        for name, stand_in in stands_in.items():
            if now.get(name) is stand_in:
                if name == "scheduler" or is_guider(stand_in):
                    _hand_on(stand_in, own[name])
                if name in own:
                    now[name] = own[name]
                else:
                    del now[name]


def _is_autoencoder(part: Any) -> bool:
    return isinstance(part, torch.nn.Module) and hasattr(part, "encode") and hasattr(part, "decode")


def _dtype(part: torch.nn.Module) -> torch.dtype | None:
    """The dtype of the first parameter: the attribute ``dtype`` of diffusers walks through all of them."""
    return next((each.dtype for each in part.parameters()), None)


def _hand_on(stand_in: Any, original: Any) -> None:
    """Give a scheduler or guider the counters and the history of the copy that stood in for it."""
    known = {name: _detached(value) for name, value in vars(stand_in).items() if name != "step"}
    for name in vars(original).keys() - known.keys():
        del vars(original)[name]
    vars(original).update(known)


def _lock_of(pipe: Any) -> threading.RLock:
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(pipe, threading.RLock())


def copied(part: Any) -> Any:
    """Return a copy of a scheduler or guider; what it remembers of an earlier run is copied without gradients."""
    remembered = [leaf for _, leaf in leaves(vars(part)) if _has_graph(leaf)]
    return copy.deepcopy(part, {id(each): each.detach().clone() for each in remembered})


def _has_graph(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.grad_fn is not None


def _detached(value: Any) -> Any:
    """Return what a scheduler remembers without its gradients: the next call does not use it, and it holds a graph."""
    if not any(_has_graph(leaf) for _, leaf in leaves(value)):
        return value
    return mapped(value, lambda _path, leaf: leaf.detach() if _has_graph(leaf) else leaf)


def _scheduler(original: Any, script: Script) -> Any:
    """Return a copy of a scheduler whose ``step`` goes through the script."""
    made = copied(original)
    real, thread = made.step, threading.get_ident()
    names = tuple(inspect.signature(real).parameters)

    @functools.wraps(real)  # pipelines look at the signature
    def step(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return real(*args, **kwargs)
        return script.step(StepCall(made, real, {**dict(zip(names, args, strict=False)), **kwargs}))

    made.step = step
    return made


class _Memory:
    """The results of an encoder's calls, in their order; a replay gets them in the same order."""

    def __init__(self, results: list[Any]) -> None:
        self.results, self._next = results, 0

    def result(self, call: Callable[[], Any]) -> Any:
        if self._next == len(self.results):
            with torch.no_grad():
                self.results.append(call())
        self._next += 1
        return self.results[self._next - 1]


# What is the same in every replay of a call, and takes a walk through all of a network to be told.
_CONSTANT = ("device", "dtype")


class _StandsIn:
    """Stands in for a part of a pipeline: of the same class by ``isinstance``, and with its attributes."""

    def __init__(self, part: torch.nn.Module, constants: dict[str, Any]) -> None:
        object.__setattr__(self, "_part", part)
        object.__setattr__(self, "_constants", constants)
        object.__setattr__(self, "_thread", threading.get_ident())

    @property  # type: ignore[misc]  # so that ``isinstance`` holds
    def __class__(self) -> type:
        return type(self._part)

    def __getattr__(self, name: str) -> Any:
        if name not in _CONSTANT:
            return getattr(object.__getattribute__(self, "_part"), name)
        if name not in self._constants:
            self._constants[name] = getattr(self._part, name)
        return self._constants[name]

    def modules(self) -> Iterator[torch.nn.Module]:
        """Those of the part, which pipelines walk through at every question for their device."""
        if "modules" not in self._constants:
            self._constants["modules"] = list(self._part.modules())
        return iter(self._constants["modules"])

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._part, name, value)

    @property
    def _elsewhere(self) -> bool:
        """Whether another thread, which knows of no replay, uses the pipeline."""
        return bool(threading.get_ident() != self._thread)


class _Network(_StandsIn):
    def __init__(
        self,
        part: torch.nn.Module,
        constants: dict[str, Any],
        ask: Callable[[tuple[Any, ...], dict[str, Any]], Any],
    ) -> None:
        super().__init__(part, constants)
        object.__setattr__(self, "_ask", ask)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._part(*args, **kwargs) if self._elsewhere else self._ask(args, kwargs)


class _Encoder(_StandsIn):
    def __init__(self, part: torch.nn.Module, constants: dict[str, Any], memory: _Memory) -> None:
        super().__init__(part, constants)
        object.__setattr__(self, "_memory", memory)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(self._part, *args, **kwargs)
        return call() if self._elsewhere else self._memory.result(call)


class _Autoencoder(_StandsIn):
    """Remembers what it encoded, and ends the replay where it would decode."""

    def __init__(self, part: torch.nn.Module, constants: dict[str, Any], memory: _Memory, deliver: bool) -> None:
        super().__init__(part, constants)
        object.__setattr__(self, "_memory", memory)
        object.__setattr__(self, "_deliver", deliver)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(self._part.encode, *args, **kwargs)
        return call() if self._elsewhere else self._memory.result(call)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        if self._deliver or self._elsewhere:
            return self._part.decode(*args, **kwargs)
        raise LoopEnded(self._part, next(iter((*args, *kwargs.values())), None))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._part(*args, **kwargs)
