"""Measures the states of a window after a round, judges the rows, and transfers the result to the host once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.joint.buffers import Buffers
from fixedpoint.chains.joint.shift import Shift
from fixedpoint.chains.measure import finite_states, relative, state_norms
from fixedpoint.chains.scan import running_sums
from fixedpoint.core.evaluator import Evaluated
from fixedpoint.core.termination import Judge, Termination
from fixedpoint.core.transfer import to_device

__all__ = ["HostMask", "RoundInspector", "RoundReport", "moved"]

HostMask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class RoundReport:
    """The result of a round: the status of every row and the condition of every step in the window.

    Attributes
    ----------
    status
        Shape ``(B,)``, int8: the status code of every row, judged by its window alone. A row whose window has not
        reached the end of the chain is not done even if this says converged.
    errors
        Shape ``(B, p)``: the change implied at every state, relative to the state's norm.
    quiet
        Shape ``(B, p)``: True where that change is within the slack, so that the state may keep its value.
    finite_value
        Shape ``(B, p)``: True where the value of the step is finite.
    finite_defect
        Shape ``(B, p)``: True where the value of the step and its defect are finite, and for final states.
    changes
        Shape ``(B, p, d)``, on the device: the change implied at every state.
    """

    status: NDArray[np.int8]
    errors: NDArray[np.float64]
    quiet: HostMask
    finite_value: HostMask
    finite_defect: HostMask
    changes: Float[Tensor, "B p d"]

    def slid(self, shift: Shift, by: NDArray[np.int64]) -> RoundReport:
        """Return the report for the window after it has slid; the masks are False for steps that enter."""
        quiet, done, sound = (moved(mask, by) for mask in (self.quiet, self.finite_value, self.finite_defect))
        return RoundReport(self.status, self.errors, quiet, done, sound, shift.of_blocks(self.changes))


class RoundInspector:
    """Compares the states of a window with the values of their steps, and judges the rows.

    Parameters
    ----------
    termination
        The stopping rule.
    dtype
        The dtype of the states.
    slack
        The share of the tolerance within which a state may keep its value.
    """

    def __init__(self, termination: Termination, dtype: torch.dtype, slack: float) -> None:
        self.judge = Judge(termination, dtype, has_fixed_length=True)
        self.slack = slack

    def inspect(
        self, buffers: Buffers, exact: NDArray[np.int64], final_error: NDArray[np.float64]
    ) -> tuple[RoundReport, Evaluated]:
        """Return the report of the round and the point that was judged.

        Parameters
        ----------
        buffers
            The states, and the values of the steps.
        exact
            Shape ``(B,)``: how many states of each row are final.
        final_error
            Shape ``(B,)``: the largest relative change that was implied at final states and not applied.
        """
        width = buffers.width
        final = buffers.mask(buffers.numbers < exact[:, None])
        sizes, done = state_norms(buffers.states), finite_states(buffers.values)
        defects = buffers.values - buffers.states
        sound = (finite_states(defects) & done) | final  # huge finite values can have an infinite difference
        changes = running_sums(_without(defects, ~sound | final))
        errors = torch.where(sound.cumprod(dim=1).bool(), relative(changes, sizes), torch.inf)
        at = self._measured(buffers, exact, final_error, done, errors, sizes)
        status, _ = self.judge(at)
        # As the row is judged, or a quiet state could keep it from converging. Without a norm, nothing is quiet.
        allowed = torch.where(at.scale > 0, self.judge.tolerance(at) / at.scale, 0.0)
        quiet = errors <= self.slack * allowed
        # All in one float64 tensor, so that the host waits for the device once.
        told = torch.cat([status.double().unsqueeze(1), errors, quiet, done, sound], dim=1).cpu().numpy()
        ended, near, *masks = np.split(told, 1 + width * np.arange(4), axis=1)
        quiet_now, done_now, sound_now = (mask > 0 for mask in masks)
        return RoundReport(ended[:, 0].astype(np.int8), near, quiet_now, done_now, sound_now, changes), at

    def _measured(
        self,
        buffers: Buffers,
        exact: NDArray[np.int64],
        final_error: NDArray[np.float64],
        done: Bool[Tensor, "B p"],
        errors: Float[Tensor, "B p"],
        sizes: Float[Tensor, "B p"],
    ) -> Evaluated:
        """Return the point with each row's error, the largest of any state.

        A row is nonfinite if the step from its last final state is not finite.
        """
        size = torch.where(sizes[:, -1:].isfinite(), sizes[:, -1:], 0.0)
        worst = torch.maximum(errors.amax(dim=1), to_device(final_error, errors.device)).unsqueeze(1)
        # An infinite change times a norm of 0 would be NaN.
        error = torch.where(worst > 0, worst * size, 0.0).masked_fill(~worst.isfinite(), torch.inf)
        first = exact - buffers.offset
        slot = buffers.place(np.minimum(first, buffers.width - 1)).unsqueeze(1)
        finite = done.gather(1, slot).squeeze(1) | buffers.mask(first == buffers.width)
        states = buffers.states.flatten(1)
        return Evaluated(states, buffers.values.flatten(1), error, size, finite, residual=states)


def moved(mask: HostMask, by: NDArray[np.int64]) -> HostMask:
    """Shift a mask of the window's slots along with the window; False for slots that enter."""
    places = np.arange(mask.shape[1])[None, :] + by[:, None]
    inside = places < mask.shape[1]
    found: HostMask = np.take_along_axis(mask, np.minimum(places, mask.shape[1] - 1), axis=1) & inside
    return found


def _without(states: Float[Tensor, "B p d"], mask: Bool[Tensor, "B p"]) -> Float[Tensor, "B p d"]:
    column = mask.unsqueeze(2)
    return states.masked_fill(column, 0.0) if torch.is_grad_enabled() else states.masked_fill_(column, 0.0)
