"""``Replay``: one call of a pipeline with its arguments, carried out again and again with other network outputs.

For the length of a replay the pipeline's networks, encoders and scheduler are replaced in its ``__dict__``:

- networks by objects that hand every call to a ``Script``, which records the inputs and returns an output it knows,
- encoders, whose results before the first step are the same in every replay, by objects that remember them,
- the decoder by one that, after the last step, ends the replay,
- the scheduler by a fresh copy, whose counters and history begin anew and whose ``step`` goes through the script,
- guiders by fresh copies, which count steps and may keep what they were given.

Guidance, blends, callbacks and whatever else a pipeline does between two network calls is its own code. All random
generators are put back before each replay. Afterwards the pipeline is as it was, whatever was raised.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch

from fixedpoint_diffusion.pipelines.log import unheard
from fixedpoint_diffusion.pipelines.randomness import RandomStates
from fixedpoint_diffusion.pipelines.stand_ins import (
    REPLACED,
    Known,
    Later,
    LoopEnded,
    Place,
    Script,
    copied,
    detached,
    is_autoencoder,
    prompt_encoder,
    scheduler_copy,
    stand_in,
)
from fixedpoint_diffusion.recognition import is_guider

__all__ = ["Replay", "turn"]


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


def turn(pipe: Any) -> contextlib.AbstractContextManager[None]:
    """Wait until no replay of a pipeline is on in another thread, and keep others from beginning.

    Raises
    ------
    RuntimeError
        If one is on in this thread.
    """
    return _Turns.of(pipe).take(pipe)


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
        with turn(pipe):
            self.random = RandomStates((args, self.kwargs))
        # Where the generators are when the pipeline is given its latents, and so draws none.
        self.given = self.random
        self.length: int | None = None
        # Whether the pipeline changes in place what its networks and its scheduler were given or returned.
        self.copies = False
        self._heard = False
        self._known: dict[str, Known] = {}
        # Networks that are called before the loop alone, such as adapters; known after the first replay.
        self.encoders: set[str] = set()
        # What takes the steps in place of the pipeline's scheduler; None: that.
        self.scheduler: Any = None
        # Whether the pipeline asked for a progress bar.
        self.shows = False
        self._names: dict[type, tuple[str, ...]] = {}
        # How the last replay ended, if the pipeline did not end it.
        self.ended: LoopEnded | None = None

    def play(self, script: Script, *, deliver: bool = False, bar: bool = False, **instead: Any) -> Any:
        """Carry the call out; return its result, or None if it was ended.

        If the pipeline raises, its attributes and generators stay as they were at that moment, as after its own call.

        Parameters
        ----------
        script
            What networks and steps return.
        deliver
            Whether this is the replay whose result the user gets: the decoder runs, and the pipeline's attributes and
            generators stay as they are at the end.
        bar
            Whether the pipeline shows its own progress bar: rounds have one of their own.
        instead
            Arguments of the pipeline that replace those of the call.
        """
        pipe = self.pipe
        with turn(pipe):
            own, before = dict(vars(pipe)), RandomStates((self.args, self.kwargs))
            dtypes = {part: _dtype(part) for part in own.values() if is_autoencoder(part)}
            given = "latents" in instead and self.kwargs.get("latents") is None
            (self.given if given else self.random).restore()
            self.ended, script.copies = None, self.copies
            place = Place(script, self.length, deliver)
            stands_in = self._stand_ins(place, bar)
            result, keep = None, deliver
            try:
                vars(pipe).update(stands_in)
                with unheard() if self._heard else contextlib.nullcontext():
                    result = self.call(pipe, *self.args, **{**self.kwargs, **instead})
            except LoopEnded as ended:
                self.ended = ended.with_traceback(None)  # whose frames hold all that the replay made
            except BaseException:
                keep = True
                raise
            finally:
                self._heard = True
                place.end()
                if keep:
                    self._keep(own, stands_in)
                else:
                    for name in vars(pipe).keys() - own.keys():
                        del vars(pipe)[name]
                    vars(pipe).update(own)
                    before.restore()
                    for part, dtype in dtypes.items():
                        # Some pipelines decode in float32, and this one was ended before it was done.
                        if _dtype(part) != dtype:
                            part.to(dtype)
            if script.disturbed:
                raise RuntimeError(
                    f"another thread called {type(pipe).__name__} in the middle of a joint call; a pipeline serves one "
                    "call at a time"
                )
            if deliver and stands_in["maybe_free_model_hooks"].called:
                pipe.maybe_free_model_hooks()
            return result

    @contextlib.contextmanager
    def drawing(self, random: RandomStates) -> Iterator[None]:
        """Draw from these states within, and put all generators back at the end."""
        with turn(self.pipe):
            before = RandomStates((self.args, self.kwargs))
            random.restore()
            try:
                yield
            finally:
                before.restore()

    def _stand_ins(self, place: Place, bar: bool) -> dict[str, Any]:
        own = self.scheduler or self.pipe.scheduler
        if type(own) not in self._names:
            self._names[type(own)] = tuple(inspect.signature(own.step).parameters)
        scheduler = scheduler_copy(self.pipe, own, self._names[type(own)], place)
        found: dict[str, Any] = {"scheduler": scheduler}
        for name, part in vars(self.pipe).items():
            if part is self.pipe.scheduler:
                found[name] = scheduler  # under another name, too
            if is_guider(part):
                found[name] = copied(part)
            if isinstance(part, torch.nn.Module):
                found[name] = stand_in(name, part, place, self._known.setdefault(name, Known()), name in self.encoders)
        if callable(getattr(self.pipe, "encode_prompt", None)):
            known = self._known.setdefault("encode_prompt", Known())
            found["encode_prompt"] = prompt_encoder(self.pipe.encode_prompt, place, known)
        if callable(getattr(self.pipe, "progress_bar", None)):
            found["progress_bar"] = self._asked_for_bar
        if not bar:
            found["_progress_bar_config"] = {"disable": True}
        found["maybe_free_model_hooks"] = Later()
        return found

    def _asked_for_bar(self, *args: Any, **kwargs: Any) -> Any:
        self.shows = True
        return type(self.pipe).progress_bar(self.pipe, *args, **kwargs)

    def _keep(self, own: dict[str, Any], stands_in: dict[str, Any]) -> None:
        """Leave the pipeline as its own call would: new attributes stay, what stood in for its parts goes."""
        now, parts = vars(self.pipe), {id(ours): own[name] for name, ours in stands_in.items() if name in own}
        for name, value in now.items():
            if name not in stands_in and id(value) in parts:
                now[name] = parts[id(value)]  # the pipeline keeps a part under a new name
        for name, ours in stands_in.items():
            if now.get(name) is ours:
                if name == "scheduler" or is_guider(ours):
                    _hand_on(ours, own[name])
                if name in own:
                    now[name] = own[name]
                else:
                    del now[name]


def _dtype(part: torch.nn.Module) -> torch.dtype | None:
    """The dtype of the first parameter: the attribute ``dtype`` of diffusers walks through all of them."""
    return next((each.dtype for each in part.parameters()), None)


def _hand_on(made: Any, original: Any) -> None:
    """Give a scheduler or guider the counters and the history of the copy that stood in for it."""
    known = {name: detached(value) for name, value in vars(made).items() if name not in REPLACED}
    for name in vars(original).keys() - {*known, *REPLACED}:
        del vars(original)[name]
    vars(original).update(known)
