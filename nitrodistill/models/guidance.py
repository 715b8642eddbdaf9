"""Guidance: `null + scale (conditional - null)`, or a scale that the network was taught to take.

Here as in diffusers scale 1 is no guidance. Elsewhere the number may be scale - 1: the w of Meng et al. 2023
(`(1 + w) conditional - w null`), and a factor on what is *added* to the conditional prediction (AnyFlow's
`real_guidance_scale`; CDM's factor on the guidance term of decoupled distribution matching).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nitrodistill.checks import check_choice, check_finite, check_positive
from nitrodistill.prediction import Clamp, Clamped
from nitrodistill.types import Condition, Denoiser, NoiseSchedule, PredictionType, expand

RescaleBy = Literal["deviation", "norm"]
"""What of a guided prediction is drawn back to the conditional one's."""


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
        rescale_by: "deviation", or "norm": the root of the sum of squares (Qwen-Image's pipeline takes it a token,
            here it is that of a sample).
        interval: fractions `u` of the way from data to noise between which guidance acts
            (Kynkäänniemi et al. 2024); elsewhere the conditional prediction stands.

    Raises:
        ValueError: if the scale is below 1, `null` holds more than one sample, `rescale` or `interval` leave
            [0, 1], or `rescale_by` is another.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float,
        null: Condition,
        *,
        rescale: float = 0.0,
        rescale_by: RescaleBy = "deviation",
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
        self.rescale_by: RescaleBy = check_choice("rescale_by", rescale_by, get_args(RescaleBy))
        self.interval: tuple[float, float] = interval

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The guided prediction; see `DiffusersDenoiser.__call__`."""
        if self.scale == 1:
            return self.denoiser(x_t, t, condition)
        return self.combine(*self.parts(x_t, t, condition), t)

    def parts(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """The unconditional and the conditional prediction, from one batch."""
        both = Condition.cat([condition.null(self.null), condition])
        t = t.expand(len(x_t))
        null, conditional = self.denoiser(x_t.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
        return null, conditional

    def combine(self, null: Tensor, conditional: Tensor, t: Tensor) -> Tensor:
        """The guided prediction of the two that `parts` returns, at `t`."""
        guided = null + self.scale * (conditional - null)
        if self.rescale > 0:
            guided = self._rescaled(guided, conditional)
        if self.interval == (0.0, 1.0):
            return guided
        u = self.schedule.fraction(t.expand(len(null)))
        inside = (u >= self.interval[0]) & (u <= self.interval[1])
        return torch.where(expand(inside, guided), guided, conditional)

    def _rescaled(self, guided: Tensor, conditional: Tensor) -> Tensor:
        dims = tuple(range(1, guided.ndim))
        size = torch.std if self.rescale_by == "deviation" else torch.linalg.vector_norm
        ratio = size(conditional, dim=dims, keepdim=True) / size(guided, dim=dims, keepdim=True)
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
