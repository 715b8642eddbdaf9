"""Guidance: `null + scale (conditional - null)`, or a scale that the network was taught to take.

Here as in diffusers scale 1 is no guidance. Elsewhere the number may be scale - 1: the w of Meng et al. 2023
(`(1 + w) conditional - w null`), and a factor on what is *added* to the conditional prediction (AnyFlow's
`real_guidance_scale`; CDM's factor on the guidance term of decoupled distribution matching).
"""

from __future__ import annotations

from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nitrodistill.checks import as_tensor, check_choice, check_finite, check_positive
from nitrodistill.models.adapters.base import RescaleBy
from nitrodistill.models.denoiser import DiffusersDenoiser, ensure_input
from nitrodistill.prediction import Clamp, Clamped
from nitrodistill.types import (
    Condition,
    Denoiser,
    NoiseSchedule,
    PredictionType,
    TakesInputs,
    as_condition,
    brief,
    check_denoiser,
    expand,
)


class _Around:
    """What a guided network has of the network in it."""

    denoiser: Denoiser
    scale: float | Tensor

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.denoiser!r}, scale={brief(self.scale)})"

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
        scale: guidance scale, at least 1; a number, or `(B,)` with one for each sample.
        null: the unconditional Condition, of batch size one: the empty prompt, or a negative one.
        rescale: in [0, 1], how far the guided prediction's standard deviation is drawn back to the
            conditional one's (Lin et al. 2023, section 3.4, diffusers' `guidance_rescale`); 0 is off.
        rescale_by: "deviation", or the norm (the root of the sum of squares): of a sample ("norm"), of each token
            of the network, as Qwen-Image's pipeline takes it ("token"), or of each row of each channel, as Lumina
            2's does ("row").
        interval: fractions `u` of the way from data to noise between which guidance acts
            (Kynkäänniemi et al. 2024); elsewhere the conditional prediction stands.

    Raises:
        ValueError: if the scale is below 1, `null` holds more than one sample, `rescale` or `interval` leave
            [0, 1], or `rescale_by` is another.

    Example:
        >>> guided = nd.Guided(teacher.denoiser, 3.0, teacher.null_condition())
        >>> guided(noise, 999, condition).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float | Tensor,
        null: Condition,
        *,
        rescale: float = 0.0,
        rescale_by: RescaleBy = "deviation",
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        if not isinstance(scale, Tensor) and check_finite("guidance scale", scale) < 1:
            raise ValueError(f"guidance scale is {scale}; it must be at least 1 (1: no guidance).")
        null = as_condition(null)
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
        self.denoiser: Denoiser = check_denoiser(denoiser)
        self.scale: float | Tensor = scale
        self.null: Condition = null
        self.rescale: float = rescale
        self.rescale_by: RescaleBy = check_choice("rescale_by", rescale_by, get_args(RescaleBy))
        self.interval: tuple[float, float] = interval
        known = isinstance(denoiser, DiffusersDenoiser)
        self._patch: int = denoiser.adapter.patch if known else 1  # latent pixels a token is wide

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The guided prediction; see `DiffusersDenoiser.__call__`."""
        scale = self.scale
        if not isinstance(scale, Tensor) and scale == 1:
            return self.denoiser(x_t, t, condition)
        return self.combine(*self.parts(x_t, t, condition), t)

    def parts(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """The unconditional and the conditional prediction, from one batch."""
        condition, t = as_condition(condition), as_tensor("t", t).expand(len(x_t))
        both = Condition.cat([condition.null(self.null), condition])
        null, conditional = self.denoiser(torch.cat([x_t, x_t]), t.repeat(2), both).chunk(2)
        return null, conditional

    def combine(self, null: Tensor, conditional: Tensor, t: Tensor) -> Tensor:
        """The guided prediction of the two that `parts` returns, at `t`."""
        scale = self.scale
        if isinstance(scale, Tensor):
            scale = expand(scale, null).to(null.dtype)
        guided = null + scale * (conditional - null)
        if self.rescale > 0:
            guided = self._rescaled(guided, conditional)
        if self.interval == (0.0, 1.0):
            return guided
        u = self.schedule.fraction(as_tensor("t", t).expand(len(null)))
        inside = (u >= self.interval[0]) & (u <= self.interval[1])
        return torch.where(expand(inside, guided), guided, conditional)

    def _rescaled(self, guided: Tensor, conditional: Tensor) -> Tensor:
        ratio = self._size(conditional) / self._size(guided)
        if self.rescale_by == "token":
            ratio = ratio.repeat_interleave(self._patch, -2).repeat_interleave(self._patch, -1)
        return guided * (self.rescale * ratio + (1 - self.rescale))

    def _size(self, value: Tensor) -> Tensor:
        """What is drawn back, with the dimensions that it is taken over as 1, or a patch as one place."""
        if self.rescale_by == "token":
            return F.avg_pool2d(value.square().sum(1), self._patch).sqrt().unsqueeze(1)
        dims = -1 if self.rescale_by == "row" else tuple(range(1, value.ndim))
        size = torch.std if self.rescale_by == "deviation" else torch.linalg.vector_norm
        return size(value, dim=dims, keepdim=True)


class EmbeddedGuidance(_Around):
    """A network that takes the scale of guidance as an input (Flux-dev; `models.inputs`), at one scale.

    Args:
        denoiser: the network.
        scale: what the Condition's `guidance` is; a number, or `(B,)` with one for each sample.

    Raises:
        ValueError: if the scale is negative.
    """

    def __init__(self, denoiser: Denoiser, scale: float | Tensor) -> None:
        if not isinstance(scale, Tensor):
            check_positive("guidance scale", scale, zero=True)
        self.denoiser: Denoiser = check_denoiser(denoiser)
        self.scale: float | Tensor = scale

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The prediction at that scale, from one evaluation."""
        scale = torch.as_tensor(self.scale, device=x_t.device, dtype=torch.float32)
        return self.denoiser(
            x_t, t, as_condition(condition).having(guidance=scale.expand(len(x_t)))
        )


class Guidance:
    """How a method's teacher is guided: at a fixed scale, or at one drawn a sample, an input of the student.

    The second distils guidance itself (Meng et al. 2023, where w = scale - 1). A teacher that takes the scale (a
    student of the stage before) is given the drawn one; another is guided by it, in two evaluations.

    Args:
        teacher: the network.
        student: the student's; with a `span` it gets, in place, the input `guidance`.
        empty: the unconditional condition, or None where there is none.
        scale: the fixed scale; with a `span` the one at which the student samples by default.
        span: lowest and highest scale, or None.

    Raises:
        ValueError: if there is no empty condition to guide with, or the student cannot take a scale.
    """

    def __init__(
        self,
        teacher: Denoiser,
        student: Denoiser,
        empty: Condition | None,
        scale: float,
        span: tuple[float, float] | None,
    ) -> None:
        self.span: tuple[float, float] | None = span
        self.scale: float = scale
        self._teacher, self._empty = teacher, empty
        self._takes_scale: bool = (
            isinstance(teacher, TakesInputs) and "guidance" in teacher.extra_inputs
        )
        if empty is None and not self._takes_scale and (span is not None or scale != 1):
            raise ValueError(
                f"the teacher is to be guided (guidance {scale if span is None else span}), but it has no empty "
                "condition; set guidance to 1, and no guidance_range."
            )
        if span is not None:
            ensure_input(student, "guidance", scale)

    def at(self, condition: Condition, u: Tensor) -> tuple[Denoiser, Condition]:
        """The guided teacher of these samples, and the condition with the scale for the student.

        Args:
            condition: of batch size B; the teacher takes it as it is.
            u: `(B,)` uniform draws in [0, 1), of the scales.
        """
        if self.span is None:
            return self._guided(self.scale), condition
        low, high = self.span
        scale = low + (high - low) * u
        return self._guided(scale), condition.having(guidance=scale)

    def _guided(self, scale: float | Tensor) -> Denoiser:
        if self._takes_scale:
            return EmbeddedGuidance(self._teacher, scale)
        if self._empty is None or (not isinstance(scale, Tensor) and scale == 1):
            return self._teacher
        return Guided(self._teacher, scale, self._empty)


def check_guidance(scale: float, span: tuple[float, float] | None) -> None:
    """Refuses scales of guidance that no teacher can have, and a default outside of the range.

    Raises:
        ValueError: otherwise.
    """
    if not scale >= 1:
        raise ValueError(f"guidance is {scale}; it must be at least 1 (1: no guidance).")
    if span is not None and not 1 <= span[0] <= scale <= span[1]:
        raise ValueError(
            f"guidance_range is {list(span)} and guidance {scale}; they must be 1 <= low <= guidance <= high, "
            "guidance being the scale at which the student samples unless it is given another."
        )
