"""Guidance: `null + scale (conditional - null)`, or a scale that the network was taught to take."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from nitrodistill.checks import check_finite, check_positive
from nitrodistill.prediction import Clamp, Clamped
from nitrodistill.types import Condition, Denoiser, NoiseSchedule, PredictionType, expand


class _Around:
    """What a guided network has of the network in it."""

    denoiser: Denoiser

    @property
    def module(self) -> nn.Module:
        """The guided network."""
        return self.denoiser.module

    @property
    def schedule(self) -> NoiseSchedule:
        """The network's schedule."""
        return self.denoiser.schedule

    @property
    def prediction_type(self) -> PredictionType:
        """What the network predicts, and so what this does."""
        return self.denoiser.prediction_type

    @property
    def clamp(self) -> Clamp | None:
        """How the network's sampler clamps x0, which is after guidance."""
        return self.denoiser.clamp if isinstance(self.denoiser, Clamped) else None


class Guided(_Around):
    """Classifier-free guidance around a denoiser: `null + scale (conditional - null)`.

    Ho & Salimans 2022 in diffusers' convention, where scale 1 is no guidance. Both predictions are
    made in one batch.

    Args:
        denoiser: the network.
        scale: guidance scale, at least 1.
        null: the unconditional Condition, of batch size one: the empty prompt, or a negative one.
        rescale: in [0, 1], how far the guided prediction's standard deviation is drawn back to the
            conditional one's (Lin et al. 2023, section 3.4, diffusers' `guidance_rescale`); 0 is off.
        interval: fractions `u` of the way from data to noise between which guidance acts
            (Kynkäänniemi et al. 2024); elsewhere the conditional prediction stands.

    Raises:
        ValueError: if the scale is below 1, `null` holds more than one sample, or `rescale` or `interval`
            leave [0, 1].
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float,
        null: Condition,
        *,
        rescale: float = 0.0,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        if check_finite("guidance scale", scale) < 1:
            raise ValueError(f"guidance scale is {scale}; it must be at least 1 (1: no guidance).")
        if len(null) != 1:
            raise ValueError(
                f"the null condition holds {len(null)} samples; it must hold one, "
                "the encoding of the empty prompt."
            )
        if not 0 <= check_finite("rescale", rescale) <= 1:
            raise ValueError(f"rescale is {rescale}; it must be in [0, 1] (0: off).")
        if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(
                f"interval is {interval}; give (low, high) with 0 <= low <= high <= 1."
            )
        self.denoiser: Denoiser = denoiser
        self.scale: float = scale
        self.null: Condition = null
        self.rescale: float = rescale
        self.interval: tuple[float, float] = interval

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The guided prediction; see `DiffusersDenoiser.__call__`."""
        if self.scale == 1:
            return self.denoiser(x_t, t, condition)
        both = Condition.cat([condition.null(self.null), condition])
        t = t.expand(len(x_t))
        null, conditional = self.denoiser(x_t.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
        guided = null + self.scale * (conditional - null)
        if self.rescale > 0:
            guided = self._rescaled(guided, conditional)
        if self.interval == (0.0, 1.0):
            return guided
        u = self.schedule.fraction(t)
        inside = (u >= self.interval[0]) & (u <= self.interval[1])
        return torch.where(expand(inside, guided), guided, conditional)

    def _rescaled(self, guided: Tensor, conditional: Tensor) -> Tensor:
        dims = tuple(range(1, guided.ndim))
        ratio = conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
        return guided * (self.rescale * ratio + (1 - self.rescale))


class EmbeddedGuidance(_Around):
    """A network that takes the scale of guidance as an input (Flux-dev), at one scale.

    Args:
        denoiser: the network; its Condition holds `guidance`.
        scale: what the Condition's `guidance` is replaced by.

    Raises:
        ValueError: if the scale is negative.
    """

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        self.denoiser: Denoiser = denoiser
        self.scale: float = check_positive("guidance scale", scale, zero=True)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The prediction at that scale, from one evaluation."""
        guidance = torch.full_like(condition["guidance"], self.scale)
        return self.denoiser(
            x_t, t, replace(condition, tensors={**condition.tensors, "guidance": guidance})
        )
