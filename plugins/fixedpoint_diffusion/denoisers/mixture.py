r"""The exact denoiser of a Gaussian mixture, with which chains can be tested against closed forms.

For data ``x0 ~ sum_k w_k N(mu_k, v_k I)`` the marginal of ``x = a x0 + b n``, with unit noise ``n``, is ``x ~ sum_k w_k
N(a mu_k, s_k I)`` with ``s_k = a^2 v_k + b^2``. With the posterior weights ``r_k`` of the components given ``x``,

    E[n | x]    = b sum_k r_k (x - a mu_k) / s_k              epsilon
    E[x0 | x]   = sum_k r_k (b^2 mu_k + a v_k x) / s_k        sample
    E[v | x]    = a E[n | x] - b E[x0 | x]                    v_prediction, where a^2 + b^2 = 1
    E[n - x0 | x]                                             flow_prediction, where a + b = 1

Conditioned on a class, only its components count. All operations are elementwise or sum along one row, one component
after another. The result for a state is therefore the same bit for bit whatever batch the state is evaluated in.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from fixedpoint.core.reduce import row_dots
from fixedpoint_diffusion.denoisers.denoiser import Denoiser
from fixedpoint_diffusion.denoisers.guidance import GuidanceScale, check_scale, combined, guides
from fixedpoint_diffusion.schedules.schedulers import DDIMSchedule

__all__ = ["GaussianMixture"]


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
Predicted = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]

# Where the last training step has no signal at all, diffusers takes this share of signal instead (EulerDiscrete).
_LEAST_SIGNAL = 2.0**-24


class _Tables(NamedTuple):
    """Share and log ratio of signal of all timesteps, and means, variances and log weights of the components; float64.

    ``labels`` are the classes of the components.
    """

    signal: Float[Tensor, " T"]
    log_snr: Float[Tensor, " T"]
    means: Float[Tensor, "K d"]
    variances: Float[Tensor, " K"]
    logs: Float[Tensor, " K"]
    labels: Int[Tensor, " K"] | None


class GaussianMixture(Denoiser):
    """The exact denoiser of a mixture of isotropic Gaussians.

    Timesteps may be integers or floats. Between two training timesteps the logarithm of the signal-to-noise ratio is
    interpolated linearly, which is what samplers with Karras sigmas assume; beyond the first and the last one the noise
    level is theirs. Flow predictions have the levels ``a = 1 - t / T`` and ``b = t / T`` instead, with ``T`` the
    schedule's ``num_train_timesteps``, as samplers of flow matching have.

    Parameters
    ----------
    means
        Means of the components, shape ``(K, *event)``.
    variances
        Variances of the components, shape ``(K,)``, positive.
    weights
        Weights of the components, shape ``(K,)``, positive. They are normalised to sum 1.
    schedule
        The noise schedule.
    classes
        The class of each component, shape ``(K,)``, of an integer dtype, at least 0; required by :meth:`conditioned`.
        Default: no classes.
    prediction_type
        What is predicted: ``"epsilon"``, ``"sample"``, ``"v_prediction"`` or ``"flow_prediction"``. Default: the
        ``prediction_type`` of the schedule.

    Raises
    ------
    TypeError
        If ``classes`` is not a tensor of integers.
    ValueError
        If ``variances``, ``weights`` or ``classes`` have another shape or contain other values, or if
        ``prediction_type`` is none of the four.
    """

    def __init__(
        self,
        means: Float[Tensor, "K *event"],
        variances: Float[Tensor, " K"],
        weights: Float[Tensor, " K"],
        schedule: DDIMSchedule,
        *,
        classes: Int[Tensor, " K"] | None = None,
        prediction_type: Predicted | None = None,
    ) -> None:
        count = means.shape[0]
        for name, values in (("variances", variances), ("weights", weights)):
            if tuple(values.shape) != (count,) or not bool((values > 0).all()):
                raise ValueError(f"{name} must be {count} positive numbers, got {values.tolist()}")
        if classes is not None:
            _check_labels("classes", classes)
            if len(classes) != count or bool((classes < 0).any()):
                raise ValueError(f"classes must be {count} labels of at least 0, got {classes.tolist()}")
        predicted = schedule.prediction_type if prediction_type is None else prediction_type
        if predicted not in get_args(Predicted):
            raise ValueError(f"prediction_type must be one of {', '.join(get_args(Predicted))}, got {predicted!r}")
        self.means = means.double()
        self.variances = variances.double()
        self.weights = weights.double() / weights.double().sum()
        self.schedule = schedule
        self.classes = classes
        self.prediction_type: Predicted = predicted
        self._placed: dict[torch.device, _Tables] = {}

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.means.shape[1:])

    def conditioned(self, labels: Int[Tensor, " B"], guidance_scale: GuidanceScale = 1.0) -> Denoiser:
        """The denoiser of one class per row, with classifier-free guidance.

        With guidance scale ``s`` the prediction is ``u + s (c - u)``, with the prediction ``c`` of the components of
        the row's class, and ``u`` of all components (Ho & Salimans 2022, eq. 6, where ``s = 1 + w``).

        Parameters
        ----------
        labels
            The class of each row of the batch, shape ``(B,)``, of an integer dtype. The result has ``rows = B``.
        guidance_scale
            ``s``, a finite number or tensor of no dimension, the same for all rows; 1 means no guidance. If it requires
            a gradient, the prediction has one with respect to it.

        Raises
        ------
        TypeError
            If ``labels`` is not a tensor of integers, or ``guidance_scale`` is not a number.
        ValueError
            If the mixture has no classes, if a label is the class of no component, or if ``guidance_scale`` is not
            finite.
        """
        if self.classes is None:
            raise ValueError("a mixture without classes has nothing to be conditioned on; make it with classes=")
        _check_labels("labels", labels)
        known = sorted(set(self.classes.tolist()))
        if wrong := [label for label in labels.tolist() if label not in known]:
            raise ValueError(f"labels must be classes of the mixture, which are {known}, got {wrong[0]}")
        check_scale(guidance_scale)
        return _ClassMixture(self, labels, guidance_scale)

    def predict(
        self, x: Float[Tensor, "P *event"], timestep: Shaped[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        return self.predict_class(x, timestep, None)

    def predict_class(
        self, x: Float[Tensor, "P *event"], timestep: Shaped[Tensor, " P"], labels: Int[Tensor, " P"] | None
    ) -> Float[Tensor, "P *event"]:
        """The prediction for noisy images, each conditioned on its own class; None: on nothing."""
        kind = self.prediction_type
        tables = self._on(x.device)
        (signal, noise), variances = self._levels(timestep, tables), tables.variances
        states, means = x.flatten(1), tables.means.to(x.dtype)
        spread = signal * variances + noise
        allowed = None if labels is None or tables.labels is None else torch.eq(labels.unsqueeze(1), tables.labels)
        share = self._posterior(states, signal, spread, means, allowed) / spread
        # Every prediction is a combination of the state and of sum_k r_k / s_k mu_k, with weights that are sums of
        # scalars.
        centre = _combination(share, means)
        a, b = signal.sqrt(), noise.sqrt()
        eps = b.to(x) * (share.sum(1, keepdim=True).to(x) * states - a.to(x) * centre)
        if kind == "epsilon":
            return eps.reshape(x.shape)
        gain = (a * (share * variances).sum(1, keepdim=True)).to(x)
        image = noise.to(x) * centre + gain * states
        if kind == "sample":
            return image.reshape(x.shape)
        if kind == "flow_prediction":
            return (eps - image).reshape(x.shape)
        return (a.to(x) * eps - b.to(x) * image).reshape(x.shape)

    def quick_batch(self, device: torch.device) -> int | None:
        """On a CPU 1024 images, so that they stay in the cache; elsewhere no limit."""
        return 1024 if device.type == "cpu" else None

    def _on(self, device: torch.device) -> _Tables:
        """The tables on a device, copied there once."""
        if device not in self._placed:
            signal = self.schedule.alphas_cumprod
            bounded = signal.clamp(min=_LEAST_SIGNAL)
            self._placed[device] = _Tables(
                signal=signal.to(device),
                log_snr=(bounded.log() - (-bounded).log1p()).to(device),
                means=self.means.flatten(1).to(device),
                variances=self.variances.to(device),
                logs=self.weights.log().to(device),
                labels=None if self.classes is None else self.classes.to(device),
            )
        return self._placed[device]

    def _levels(
        self, timestep: Shaped[Tensor, " P"], tables: _Tables
    ) -> tuple[Float[Tensor, "P 1"], Float[Tensor, "P 1"]]:
        """``a^2`` and ``b^2`` at the timesteps."""
        if self.prediction_type == "flow_prediction":
            time = timestep.double().unsqueeze(1) / self.schedule.num_train_timesteps
            return (1 - time) ** 2, time**2
        if timestep.is_floating_point():
            signal = _between(timestep.double(), tables).unsqueeze(1)
        else:
            signal = tables.signal[timestep].unsqueeze(1)
        return signal, 1 - signal

    def _posterior(
        self, states: Tensor, signal: Tensor, spread: Tensor, means: Tensor, allowed: Bool[Tensor, "P K"] | None
    ) -> Float[Tensor, "P K"]:
        """The posterior weights ``r_k`` of the components given each state, float64; 0 where not allowed."""
        root = signal.sqrt().to(states)
        distances = []
        # One component at a time, by ``row_dots``, so that the sums do not depend on the batch.
        for mean in means:
            offset = states - root * mean
            distances.append(row_dots(offset.unsqueeze(1), offset))
        squares = torch.cat(distances, dim=1)
        size = states.shape[1]
        logits = self._on(states.device).logs - 0.5 * size * spread.log() - 0.5 * squares / spread
        if allowed is not None:
            logits = torch.where(allowed, logits, -torch.inf)
        # Subtracting the largest logit avoids overflow of the exponential.
        shifted = (logits - logits.amax(1, keepdim=True)).exp()
        return shifted / shifted.sum(1, keepdim=True)


class _ClassMixture(Denoiser):
    """A mixture conditioned on one class per row, with guidance."""

    def __init__(self, mixture: GaussianMixture, labels: Int[Tensor, " B"], guidance_scale: GuidanceScale) -> None:
        self.mixture, self.labels, self.guidance_scale = mixture, labels, guidance_scale
        self.rows = len(labels)
        self.guided = guides(guidance_scale)

    def predict(
        self, x: Float[Tensor, "P *event"], timestep: Shaped[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        self.labels = self.labels.to(x.device)  # copied once
        own = self.mixture.predict_class(x, timestep, self.labels[row])
        if not self.guided:
            return own
        return combined(self.mixture.predict(x, timestep, row), own, self.guidance_scale)

    def quick_batch(self, device: torch.device) -> int | None:
        """As many images as the mixture takes."""
        return self.mixture.quick_batch(device)

    def cost_key(self) -> tuple[object, Hashable]:
        """The mixture, and whether guidance evaluates every image twice."""
        return self.mixture, self.guided


def _check_labels(name: str, values: Any) -> None:
    if not isinstance(values, Tensor) or values.ndim != 1 or values.dtype not in _INTEGERS:
        got = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name} must be a tensor of integers with one dimension, got {got}")


def _between(timestep: Float[Tensor, " P"], tables: _Tables) -> Float[Tensor, " P"]:
    """The share of signal at float timesteps; at whole ones that of the table, bit for bit."""
    last = len(tables.signal) - 1
    inside = timestep.clamp(0, last)
    below = inside.floor().long()
    above = (below + 1).clamp(max=last)
    part = inside - below
    ratio = torch.lerp(tables.log_snr[below], tables.log_snr[above], part)
    # Not by ``sigmoid``, whose last bits depend on the place in a batch.
    return torch.where(part == 0, tables.signal[below], 1 / (1 + (-ratio).exp()))


def _combination(weights: Float[Tensor, "P K"], means: Float[Tensor, "K d"]) -> Float[Tensor, "P d"]:
    """``weights @ means``, summed in a fixed order: the rounding of a matrix product may depend on the batch."""
    weights = weights.to(means.dtype)
    total = weights[:, :1] * means[0]
    for k in range(1, len(means)):
        total = torch.addcmul(total, weights[:, k : k + 1], means[k])
    return total
