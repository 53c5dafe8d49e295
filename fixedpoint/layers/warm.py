"""WarmStart: solves begin where those of the same samples have ended before.

From one epoch to the next the parameters move little, and so do the fixed points of a data set's samples: the last one
is a better start than zero, the better the smaller the steps of the optimiser (Bai, Geng, Savani & Kolter 2022, "Deep
equilibrium optical flow estimation", section 3.1, for consecutive frames). The start has no part in the gradient.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

__all__ = ["WarmStart"]


class WarmStart(nn.Module):
    """The last fixed point of every sample, on the device of the module.

    A solve that ended before it was one is gone on with; one that diverged begins anew.

    Memory: ``samples * size`` numbers. They are buffers, ``states`` and ``seen``, and with ``persistent`` part of the
    ``state_dict``, so that a training that goes on from a checkpoint goes on as it would have.

    Parameters
    ----------
    samples
        How many there are; a solve names its own by numbers from 0.
    size
        ``D``, the number of unknowns of one sample's state.
    dtype
        Of what is kept.
    persistent
        Whether a ``state_dict`` holds it.
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
        """Where the solves of these samples begin; those never seen where ``otherwise`` says.

        Parameters
        ----------
        samples
            Shape ``(B,)``, integers.
        otherwise
            Shape ``(B, D)``.
        """
        place = self._place(samples, otherwise)
        return torch.where(self.seen[place].unsqueeze(1), self.states[place].to(otherwise.dtype), otherwise)

    def keep(self, samples: Tensor, state: Float[Tensor, "B D"], good: Bool[Tensor, " B"]) -> None:
        """Keep these samples' states, of rows that are ``good``; the others begin anew next time."""
        place = self._place(samples, state)
        self.states[place] = torch.where(good.unsqueeze(1), state, 0.0).to(self.states.dtype)
        self.seen[place] = good

    def forget(self) -> None:
        """Begin everywhere anew."""
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
        if samples.device.type == "cpu":  # elsewhere the host would wait to know, and the device refuses by itself
            least, most = int(samples.min()), int(samples.max())
            if least < 0 or most >= len(self.states):
                raise ValueError(f"samples must be 0 to {len(self.states) - 1}, got {least if least < 0 else most}")
        return samples.to(self.states.device, torch.int64)

    def extra_repr(self) -> str:
        """Its sizes."""
        return f"samples={self.states.shape[0]}, size={self.states.shape[1]}"
