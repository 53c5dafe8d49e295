"""Accelerators: they propose the states of the next round of a joint solve.

A step solver accelerates the preconditioned map ``G(X) = X + M r`` of the window. If the window is shorter than the
chain, a solver that keeps columns of earlier rounds must be able to move them with the window
(``fixedpoint.core.loop.SupportsWindow``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, NoReturn, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fixedpoint.chains.joint.shift import Shift
from fixedpoint.chains.joint.window import Window
from fixedpoint.chains.recurrence.linear import Band, Derivatives, LinearPart
from fixedpoint.chains.recurrence.recurrence import Held
from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.layout import Layout
from fixedpoint.core.loop import StepSolver, SupportsWindow, stepped
from fixedpoint.core.problem import AbilityError, Problem

__all__ = ["Accelerator", "StepAccelerator", "View", "supports_window"]

S = TypeVar("S")


@dataclass(frozen=True, eq=False)
class View:
    """The ``p`` states of a window after a round, as an accelerator sees them.

    Attributes
    ----------
    window
        The window.
    known
        Shape ``(B, p)``: True for states that may change and have a finite value and defect.
    carried_change
        Shape ``(B, 1, d)``: what the changes not applied to final states pass on to the first state that may change.
    begins
        Shape ``(B,)``, int64: that state's place among the ``B p`` states of all windows.
    fresh
        Shape ``(B, p)``: True for predictions that were not in the window in the previous round; None if there are
        none.
    linear
        The preconditioner's linear part.
    implied
        Shape ``(B, p, d)``: the sweep of the defects, where ``linear`` is the reference by which the error is measured
        and the accelerator takes the plain round; else None. The accelerator may overwrite it.
    """

    window: Window
    known: Bool[Tensor, "B p"]
    carried_change: Float[Tensor, "B 1 d"]
    begins: Int[Tensor, " B"]
    fresh: Bool[Tensor, "B p"] | None
    linear: LinearPart | Band | Derivatives
    implied: Float[Tensor, "B p d"] | None

    @property
    def states(self) -> Float[Tensor, "B p d"]:
        """The states as they are."""
        return self.window.states

    @cached_property
    def held(self) -> Held:
        """The pairs of inputs and predictions in the window."""
        return self.window.held

    @property
    def values(self) -> Float[Tensor, "B p d"]:
        """The values that the recurrence gives to the states; arbitrary where ``known`` is False.

        For opaque steps these are the predictions themselves.
        """
        return self.window.values()

    @property
    def inputs(self) -> Float[Tensor, "B p d"]:
        """The inputs of the predictions."""
        return torch.cat([self.held.base[:, -1:], self.states[:, :-1]], dim=1)

    @property
    def defects(self) -> Float[Tensor, "B p d"]:
        """``values - states``, with ``carried_change`` added to the first state that may change."""
        defects = self.values - self.states
        if torch.is_grad_enabled():
            defects = torch.where(self.known.unsqueeze(2), defects, 0.0)
            flat = defects.flatten(0, 1).index_add(0, self.begins, self.carried_change.squeeze(1))
            return flat.view(defects.shape)
        defects.masked_fill_(~self.known.unsqueeze(2), 0.0)
        defects.view(-1, defects.shape[2]).index_add_(0, self.begins, self.carried_change.squeeze(1))
        return defects

    @cached_property
    def swept(self) -> Float[Tensor, "B p d"]:
        """``M r``, the change of every state."""
        if self.implied is not None:
            change = self.implied.to(self.states.dtype)  # the inspection has computed this sweep already
        else:
            change = self.linear.sweep(self.defects, self.held)
        unknown = ~self.known.unsqueeze(2)
        return change.masked_fill(unknown, 0.0) if torch.is_grad_enabled() else change.masked_fill_(unknown, 0.0)

    @cached_property
    def mapped(self) -> Float[Tensor, "B p d"]:
        """``X + M r``, the states after a plain round."""
        return self.states + self.swept


class Accelerator(ABC, Generic[S]):
    """Proposes the states of the next round.

    ``S`` is the type of its own state, whose tensors have the rows along their first dimension.

    Attributes
    ----------
    takes_plain_round
        Whether it needs the states after a plain round, ``view.mapped``.
    """

    takes_plain_round: ClassVar[bool] = True

    @abstractmethod
    def init(self, view: View) -> S:
        """Return the accelerator's state before the first proposal."""

    @abstractmethod
    def propose(self, view: View, state: S) -> tuple[Float[Tensor, "B p d"], S]:
        """Return the chain states of the next round and the accelerator's new state.

        Rows must not mix, and the host must not wait for the device.
        """

    @abstractmethod
    def reset(self, state: S, rows: Bool[Tensor, " B"]) -> S:
        """Forget the history of ``rows``."""

    @abstractmethod
    def slide(self, state: S, shift: Shift) -> S:
        """Move the history along with the view."""


def supports_window(solver: object) -> bool:
    """Return whether an accelerator works in a window that slides."""
    return isinstance(solver, (SupportsWindow, Accelerator))


class StepAccelerator(Accelerator[Any]):
    """Applies a step solver to the preconditioned map of the view.

    Parameters
    ----------
    solver
        The step solver.
    layout
        Layout of the window's states, one block per step.
    """

    def __init__(self, solver: StepSolver[Any], layout: Layout) -> None:
        self.solver = solver
        self.f = Evaluator(_Unevaluated(solver, layout))

    def init(self, view: View) -> Any:
        return self.solver.init(self.f, _point(view))

    def propose(self, view: View, state: Any) -> tuple[Float[Tensor, "B p d"], Any]:
        at = _point(view)
        if view.fresh is not None:
            assert isinstance(self.solver, SupportsWindow)  # checked at the start
            state = self.solver.renew(state, at, view.fresh)
        proposal, state = stepped(self.solver, self.f, at, state)
        assert isinstance(proposal, Tensor)  # _Unevaluated raises on evaluation
        return proposal.view(view.states.shape), state

    def reset(self, state: Any, rows: Bool[Tensor, " B"]) -> Any:
        return self.solver.reset(state, rows)

    def slide(self, state: Any, shift: Shift) -> Any:
        assert isinstance(self.solver, SupportsWindow)  # checked at the start
        return self.solver.slide(self.f, state, shift.of_state)


class _Unevaluated(Problem):
    """A problem with the layout of a window that raises when it is evaluated.

    An evaluation within the step of an accelerator would be a round that the engine does not count or guard.
    """

    def __init__(self, solver: StepSolver[Any], layout: Layout) -> None:
        self.solver = solver
        self.layout = layout

    def __call__(self, z: Float[Tensor, "B D"]) -> NoReturn:
        raise AbilityError(f"{type(self.solver).__name__} evaluates within its step and cannot accelerate a chain")

    def initial(self) -> NoReturn:
        raise TypeError("a window has no start of its own")


def _point(view: View) -> Evaluated:
    """Return the window as an evaluated point of the preconditioned map ``X + M r``."""
    # The engine judges rows itself, so the accelerator gets no error or scale.
    none = torch.zeros(len(view.states), 1, dtype=torch.float64, device=view.states.device)
    return Evaluated(
        z=view.states.flatten(1),
        fz=view.mapped.flatten(1),
        error=none,
        scale=none,
        residual=view.swept.flatten(1),
        plain=False,
    )
