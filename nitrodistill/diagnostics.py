"""Numbers that say how a distillation goes: what a discriminator separates, and how a student's latents lie.

Of logits r of real and f of generated samples, and of latents x of a student and z of its reference, the teacher:

    accuracy_real = P(r > b)        accuracy_fake = P(f < b)        logit_gap = mean(r) - mean(f), a scale each
    std.c  = std(x_c) / std(z_c)    mean.c = (mean(x_c) - mean(z_c)) / std(z_c), a channel each
    variety   = rms |x_i - x_j| / rms |z_i - z_j|,  i != j
    diversity = rms |x_i - x_i'| / rms |z_i - z_j|, x_i' of the same prompt and another noise
    prompt_effect = rms |x_i - x_i'| / rms |z_i - z_j|, x_i' of the same noise and another prompt
    saturated = share of x outside of the range of z in its channel, by more than std(z_c) / 4

b is what the objective's own optimum decides by. All are differences, ratios or shares that are comparable between
teachers; none waits for the device. `training.alarms` reads them from a run's log.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nitrodistill.checks import check_alike, check_finite, check_kind, check_tensor

Logits = Tensor | Sequence[Tensor]
MARGIN = 0.25
"""Standard deviations around the reference's range: pixels lie at its ends, a faithful student's beside them."""


@torch.no_grad()
def logit_statistics(real: Logits, fake: Logits, boundary: float | None = 0.0) -> dict[str, Tensor]:
    """What a discriminator says of real and of generated samples, one value per sample.

    Args:
        real: logits `(B, *)`, or one such tensor a scale.
        fake: of the generated ones, of the same shapes.
        boundary: above which a logit says "real"; see `AdversarialLoss.boundary`. None compares each real logit
            with the generated one of its place, and both accuracies are the share of the pairs in the right order.

    Returns:
        `logit_real`, `logit_fake`: the mean logits; `accuracy_real`, `accuracy_fake`: the share in [0, 1] of the
        logits that are right, a tie being half right; `logit_gap.0`, `logit_gap.1`, ...: a scale each. All `(B,)`.

    Raises:
        TypeError: if logits are no floating-point tensors.
        ValueError: if there are no scales, or other ones for real than for fake.
    """
    reals, fakes = _scales("real", real), _scales("fake", fake)
    if not reals or [r.shape for r in reals] != [f.shape for f in fakes]:
        raise ValueError(
            f"logits of real samples have the shapes {[tuple(r.shape) for r in reals]} and those of generated "
            f"ones {[tuple(f.shape) for f in fakes]}; give both of the same scales and batch."
        )
    if boundary is not None:
        check_finite("boundary", boundary)
    if boundary is None:
        right_real = right_fake = [r - f for r, f in zip(reals, fakes, strict=True)]
    else:
        right_real, right_fake = [r - boundary for r in reals], [boundary - f for f in fakes]
    found = {
        "logit_real": _over_scales(reals),
        "logit_fake": _over_scales(fakes),
        "accuracy_real": _over_scales([_share(v) for v in right_real]),
        "accuracy_fake": _over_scales([_share(v) for v in right_fake]),
    }
    gaps = [r.mean(1) - f.mean(1) for r, f in zip(reals, fakes, strict=True)]
    return found | {f"logit_gap.{scale}": gap for scale, gap in enumerate(gaps)}


@torch.no_grad()
def latent_statistics(
    x0: Tensor,
    reference: Tensor,
    other_noise: Tensor | None = None,
    other_prompt: Tensor | None = None,
) -> dict[str, Tensor]:
    """How a student's latents compare with its reference's; see the module for the equations.

    Args:
        x0: the student's latents `(B, C, *)`.
        reference: `(N, C, *)` of the teacher, or of data; of the same prompts where there are any, so that a part
            of the chance is the same on both sides.
        other_noise: `(B, C, *)` of the student, for the same prompts from other noise.
        other_prompt: `(B, C, *)` of the student, for other prompts from the same noise.

    Returns:
        `std.0`, `mean.0`, ... and `saturated`; with two samples on both sides `variety`, and with two references
        `diversity` and `prompt_effect`, where their latents are given. Scalars. What is constant in the reference
        gives infinite or NaN ratios.

    Raises:
        TypeError: for anything but floating-point tensors.
        ValueError: for empty tensors, or if the shapes differ: of the student's latents, or behind the batch.
    """
    others = {"diversity": other_noise, "prompt_effect": other_prompt}
    given = {"other_noise": other_noise, "other_prompt": other_prompt}
    check_alike(x0=x0, **{name: other for name, other in given.items() if other is not None})
    check_tensor("reference", reference)
    if reference.shape[1:] != x0.shape[1:] or x0.ndim < 2:
        raise ValueError(
            f"the reference has the shape {tuple(reference.shape)} and x0 {tuple(x0.shape)}; give both with a "
            "batch and the same channels and size."
        )
    x, z = (_channels(v) for v in (x0, reference))  # (C, B * positions)
    unit = z.std(1, correction=0)
    spread, shift = x.std(1, correction=0) / unit, (x.mean(1) - z.mean(1)) / unit
    beyond = (MARGIN * unit)[:, None]
    low, high = z.amin(1, keepdim=True) - beyond, z.amax(1, keepdim=True) + beyond
    outside = 1 - ((x >= low) & (x <= high)).float().mean()
    found = {f"std.{c}": value for c, value in enumerate(spread)}
    found |= {f"mean.{c}": value for c, value in enumerate(shift)}
    found["saturated"] = torch.where(x.isfinite().all(), outside, torch.nan)
    if len(reference) > 1:
        apart = _distance_between(reference)
        if len(x0) > 1:
            found["variety"] = _distance_between(x0) / apart
        for name, other in others.items():
            if other is not None:
                found[name] = (x0.float() - other.float()).square().mean().sqrt() / apart
    return found


def _scales(name: str, logits: Logits) -> list[Tensor]:
    check_kind(name, logits, Tensor | Sequence[Tensor])
    scales = [logits] if isinstance(logits, Tensor) else list(logits)
    for scale in scales:
        check_tensor(name, scale)
    return [scale.float().flatten(1) for scale in scales]


def _share(margin: Tensor) -> Tensor:
    """1 where it is above 0, 0 where below, half on 0; NaN stays, which `sign` would call 0."""
    return torch.where(margin.isnan(), margin, (margin.sign() + 1) / 2)


def _over_scales(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.mean(1) for value in values]).mean(0)


def _channels(latents: Tensor) -> Tensor:
    return latents.float().transpose(0, 1).flatten(1)


def _distance_between(latents: Tensor) -> Tensor:
    """Root mean square over the pairs i != j and the positions: twice the unbiased variance of each position."""
    return (2 * latents.float().var(0).mean()).sqrt()
