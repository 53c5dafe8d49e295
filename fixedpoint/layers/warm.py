"""WarmStart: lets the solves of a layer begin at the last fixed points of the same samples.

From one epoch to the next the parameters of a model change little, and so do the fixed points of the samples of a data
set. The last fixed point is therefore a better start than zero, the more so the smaller the steps of the optimiser
(Bai, Geng, Savani & Kolter 2022, "Deep equilibrium optical flow estimation", section 3.1, for consecutive frames). The
start has no part in the gradient.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

__all__ = ["WarmStart"]


class WarmStart(nn.Module):
    """Stores the last state of every sample, on the device of the module.

    If the last solve of a sample did not converge, the next one continues from where it ended. If it diverged, was not
    finite, or has the status ``mixed``, the next one begins at the ordinary start.

    The memory is ``samples * size`` numbers. They are held in the buffers ``states`` and ``seen``. With ``persistent``
    these are part of the ``state_dict``, so that training resumed from a checkpoint proceeds as without interruption.

    Parameters
    ----------
    samples
        Number of samples in the data set, at least 1. Each has an index from 0.
    size
        ``D``, the number of unknowns in the state of one sample, at least 1.
    dtype
        The dtype in which states are stored.
    persistent
        Whether the ``state_dict`` contains the buffers.

    Attributes
    ----------
    states
        Shape ``(samples, size)``: the last state of every sample.
    seen
        Shape ``(samples,)``, bool: whether ``states`` holds a state of the sample.

    Raises
    ------
    ValueError
        If ``samples`` or ``size`` is not an integer of at least 1.
    """

    states: Tensor
    seen: Tensor

    def __init__(
        self, samples: int, size: int, dtype: torch.dtype = torch.float32, *, persistent: bool = False
    ) -> None:
        super().__init__()
        for name, value in (("samples", samples), ("size", size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        self.register_buffer("states", torch.zeros(samples, size, dtype=dtype), persistent=persistent)
        self.register_buffer("seen", torch.zeros(samples, dtype=torch.bool), persistent=persistent)

    def start(self, samples: Tensor, otherwise: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return the start of a solve of these samples.

        Parameters
        ----------
        samples
            Shape ``(B,)``, int32 or int64: indices of the samples.
        otherwise
            Shape ``(B, D)``: the start of samples that have no stored state.

        Returns
        -------
        Tensor
            Shape ``(B, D)``, dtype of ``otherwise``.

        Raises
        ------
        ValueError
            If the samples or the state have another shape or dtype, or an index is out of range. (Indices on another
            device than the CPU are checked by that device.)
        """
        place = self._place(samples, otherwise)
        return torch.where(self.seen[place].unsqueeze(1), self.states[place].to(otherwise.dtype), otherwise)

    def keep(self, samples: Tensor, state: Float[Tensor, "B D"], good: Bool[Tensor, " B"]) -> None:
        """Store the states of these samples.

        Parameters
        ----------
        samples
            Shape ``(B,)``, int32 or int64: indices of the samples.
        state
            Shape ``(B, D)``.
        good
            Shape ``(B,)``, bool: the rows to store. The samples of other rows begin at the ordinary start next time.

        Raises
        ------
        ValueError
            As for :meth:`start`.
        """
        place = self._place(samples, state)
        # Zero, since a state that is lost may be NaN.
        self.states[place] = torch.where(good.unsqueeze(1), state, 0.0).to(self.states.dtype)
        self.seen[place] = good

    def forget(self) -> None:
        """Discard all stored states."""
        self.seen.zero_()

    def _place(self, samples: Tensor, state: Tensor) -> Int[Tensor, " B"]:
        size = self.states.shape[1]
        if samples.dtype not in (torch.int64, torch.int32) or samples.shape != state.shape[:1]:
            raise ValueError(
                f"samples must be {state.shape[0]} integers, one a row, got {samples.dtype} of shape "
                f"{tuple(samples.shape)}"
            )
        if state.shape[1] != size:
            raise ValueError(f"a state has {state.shape[1]} unknowns, and WarmStart room for {size}")
        if samples.device.type == "cpu":  # elsewhere the host would have to wait, and the device checks
            least, most = int(samples.min()), int(samples.max())
            if least < 0 or most >= len(self.states):
                raise ValueError(f"samples must be 0 to {len(self.states) - 1}, got {least if least < 0 else most}")
        return samples.to(self.states.device, torch.int64)

    def extra_repr(self) -> str:
        """The sizes, for ``repr``."""
        return f"samples={self.states.shape[0]}, size={self.states.shape[1]}"
