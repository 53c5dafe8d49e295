"""``Replay``: one call of a pipeline with its arguments, carried out again and again with other network outputs.

For the length of a replay the pipeline's networks, encoders and scheduler are replaced in its ``__dict__``:

- networks by objects that hand every call to a ``Script``, which records the inputs and returns an output it knows,
- encoders, whose results before the first step are the same in every replay, by objects that remember them,
- the decoder by one that, after the last step, ends the replay,
- the scheduler by a fresh copy, whose counters and history begin anew and whose ``step`` goes through the script.

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
from typing import Any, ClassVar, Literal, TypeAlias

import torch

from fixedpoint_diffusion.pipelines.randomness import RandomStates

__all__ = ["LoopEnded", "Replay", "Script", "Stage", "StepCall", "turn"]



class _Turns:
    """Replays of one pipeline in two threads take turns; one within another is refused."""

    _of: ClassVar[weakref.WeakKeyDictionary[Any, _Turns]] = weakref.WeakKeyDictionary()
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._turn, self._playing = threading.RLock(), False

    @classmethod
    def of(cls, pipe: Any) -> _Turns:
        with cls._lock:
            return cls._of.setdefault(pipe, cls())

    @contextlib.contextmanager
    def take(self, pipe: Any) -> Iterator[None]:
        with self._turn:
            if self._playing:
                raise RuntimeError(
                    f"{type(pipe).__name__} is in the middle of a joint call; a callback cannot sample it jointly again"
                )
            self._playing = True
            try:
                yield
            finally:
                self._playing = False


class LoopEnded(BaseException):
    """Ends a replay once it has told all it can. Not an ``Exception``, so that no pipeline catches it."""


def turn(pipe: Any) -> contextlib.AbstractContextManager[None]:
    """Wait until no replay of a pipeline is on in another thread, and keep others from beginning.

    Raises
    ------
    RuntimeError
        If one is on in this thread.
    """
    return _Turns.of(pipe).take(pipe)


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

    def __init__(self, scheduler: Any, real: Callable[..., Any], bound: inspect.BoundArguments) -> None:
        self.scheduler, self._real, self._bound = scheduler, real, bound

    @property
    def arguments(self) -> dict[str, Any]:
        return self._bound.arguments

    def take(self, **instead: Any) -> Any:
        """Take the step, with some of the arguments replaced."""
        self._bound.arguments.update(instead)
        return self._real(*self._bound.args, **self._bound.kwargs)


class Script(ABC):
    """What the networks and the steps of a replay return.

    Attributes
    ----------
    disturbed
        Whether another thread called the pipeline meanwhile.
    """

    disturbed = False

    @abstractmethod
    def stage(self, length: int | None) -> Stage:
        """Return where the replay is in its loop, of so many steps; None: their number is not known yet."""

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
    """

    def __init__(self, pipe: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.pipe, self.args, self.kwargs = pipe, args, dict(kwargs)
        # Without the decorator ``torch.no_grad``: whether autograd records is decided here.
        self.call = inspect.unwrap(type(pipe).__call__)
        with turn(pipe):
            self.random = RandomStates((args, self.kwargs))
        self.length: int | None = None
        self.remembered: dict[str, list[Any]] = {}
        # Networks that are called before the loop alone, such as adapters; known after the first replay.
        self.encoders: set[str] = set()

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
        with turn(pipe):
            own, before = dict(vars(pipe)), RandomStates((self.args, self.kwargs))
            self.random.restore()
            stands_in = self._stand_ins(script, deliver)
            vars(pipe).update(stands_in)
            result, keep = None, deliver
            try:
                result = self.call(pipe, *self.args, **{**self.kwargs, **instead})
            except LoopEnded:
                pass
            except BaseException:
                keep = True
                raise
            finally:
                if keep:
                    self._keep(own, stands_in)
                else:
                    for name in vars(pipe).keys() - own.keys():
                        del vars(pipe)[name]
                    vars(pipe).update(own)
                    before.restore()
            if script.disturbed:
                raise RuntimeError(
                    f"another thread called {type(pipe).__name__} in the middle of a joint call; a pipeline serves one "
                    "call at a time"
                )
            if deliver and stands_in["maybe_free_model_hooks"].called:
                pipe.maybe_free_model_hooks()
            return result

    def _stand_ins(self, script: Script, deliver: bool) -> dict[str, Any]:
        found: dict[str, Any] = {}
        place = _Place(script, self.length, deliver)
        for name, part in vars(self.pipe).items():
            if not isinstance(part, torch.nn.Module):
                continue
            if hasattr(part, "encode") and hasattr(part, "decode"):
                found[name] = _Autoencoder(part, place, self._memory(name))
            elif name in self.encoders or _is_of_transformers(part):
                found[name] = _Encoder(part, place, self._memory(name))
            else:
                found[name] = _Network(part, place, functools.partial(script.network, name, part))
        found["scheduler"] = _scheduler(self.pipe, script)
        found["_progress_bar_config"] = {"disable": True}  # the rounds have a bar of their own
        found["maybe_free_model_hooks"] = _Later()
        return found

    def _memory(self, name: str) -> _Memory:
        return _Memory(self.remembered.setdefault(name, []))

    def _keep(self, own: dict[str, Any], stands_in: dict[str, Any]) -> None:
        """Leave the pipeline as its own call would: new attributes stay, what stood in for its parts goes."""
        now = vars(self.pipe)
        scheduler = own["scheduler"]
        if now.get("scheduler") is stands_in["scheduler"]:
            ours = ("step", "set_timesteps")
            known = {name: value for name, value in vars(stands_in["scheduler"]).items() if name not in ours}
            for name in vars(scheduler).keys() - {*known, *ours}:
                del vars(scheduler)[name]
            vars(scheduler).update(known)
        for name, stand_in in stands_in.items():
            if now.get(name) is stand_in:
                if name in own:
                    now[name] = own[name]
                else:
                    del now[name]


def _is_of_transformers(part: torch.nn.Module) -> bool:
    """Whether a part is an encoder of text or images, or a class derived from one, such as a safety checker."""
    return any(base.__module__.partition(".")[0] == "transformers" for base in type(part).__mro__)


def _scheduler(pipe: Any, script: Script) -> Any:
    """Return a copy of a pipeline's scheduler whose ``step`` goes through the script."""
    made = copy.deepcopy(pipe.scheduler)
    real, begin, thread = made.step, made.set_timesteps, threading.get_ident()
    signature = inspect.signature(real)

    def check_thread() -> None:
        if threading.get_ident() != thread:
            script.disturbed = True
            raise RuntimeError(
                f"{type(pipe).__name__} is being sampled jointly in another thread; a pipeline serves one call at a time"
            )

    @functools.wraps(real)  # pipelines look at the signature
    def step(*args: Any, **kwargs: Any) -> Any:
        check_thread()
        return script.step(StepCall(made, real, signature.bind(*args, **kwargs)))

    @functools.wraps(begin)
    def set_timesteps(*args: Any, **kwargs: Any) -> Any:
        check_thread()
        return begin(*args, **kwargs)

    made.step, made.set_timesteps = step, set_timesteps
    return made


class _Later:
    """Notes that the pipeline wanted to move its parts: hooks would be put on what stands in for them."""

    called = False

    def __call__(self) -> None:
        self.called = True


class _Place:
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
        self._script, self._length, self._deliver = script, length, deliver

    @property
    def known(self) -> bool:
        """Whether the number of the loop's steps is known."""
        return self._length is not None

    def stage(self) -> Stage:
        """Return where it is. Raises ``LoopEnded`` after the last step if the result is not wanted."""
        stage = self._script.stage(self._length)
        if stage == "after" and not self._deliver:
            raise LoopEnded
        return stage


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


class _StandsIn:
    """Stands in for a part of a pipeline: of the same class by ``isinstance``, and with its attributes."""

    def __init__(self, part: torch.nn.Module, place: _Place) -> None:
        object.__setattr__(self, "_part", part)
        object.__setattr__(self, "_place", place)
        object.__setattr__(self, "_thread", threading.get_ident())

    @property  # type: ignore[misc]  # so that ``isinstance`` holds
    def __class__(self) -> type:
        return type(self._part)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_part"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._part, name, value)

    @property
    def _elsewhere(self) -> bool:
        """Whether another thread, which knows of no replay, uses the part."""
        return bool(threading.get_ident() != self._thread)


class _Network(_StandsIn):
    def __init__(
        self, part: torch.nn.Module, place: _Place, ask: Callable[[tuple[Any, ...], dict[str, Any]], Any]
    ) -> None:
        super().__init__(part, place)
        object.__setattr__(self, "_ask", ask)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # As long as the number of steps is not known, calls of networks tell how far the loop goes.
        own = self._elsewhere or (self._place.known and self._place.stage() == "after")
        return self._part(*args, **kwargs) if own else self._ask(args, kwargs)


class _Encoder(_StandsIn):
    def __init__(self, part: torch.nn.Module, place: _Place, memory: _Memory) -> None:
        super().__init__(part, place)
        object.__setattr__(self, "_memory", memory)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._remembered(functools.partial(self._part, *args, **kwargs))

    def _remembered(self, call: Callable[[], Any]) -> Any:
        # Later calls may be about the samples.
        return call() if self._elsewhere or self._place.stage() != "before" else self._memory.result(call)


class _Autoencoder(_Encoder):
    """Remembers what it encoded, and ends the replay where it would decode."""

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        return self._remembered(functools.partial(self._part.encode, *args, **kwargs))

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        if not self._elsewhere:
            self._place.stage()
        return self._part.decode(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._part(*args, **kwargs)
