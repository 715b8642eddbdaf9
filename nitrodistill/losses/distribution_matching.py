"""Distribution matching: losses whose gradient moves samples from the student's distribution to the data's.

    g_b = (fake_b - real_b) / max(mean_i |x0_bi - reference_bi|, floor)
    L_b = w_b mean_i g_bi^2 / 2          with  dL_b / dx0_bi = w_b g_bi / n

`real` and `fake` are what two denoisers say of the data behind one noised x0: the teacher, and a critic that has
learnt the student's own samples. Their difference is that of the two scores s = (alpha_t x0_hat - x_t) / sigma_t^2
in the data's unit: (fake - real) alpha_t / sigma_t^2 = s_fake - s_real. g is a constant: no gradient reaches
`real` or `fake`. The value is no measure of progress.

This is the form of the published code (Yin et al. 2024, DMD2, arXiv 2405.14867: reference = real, floor = 0),
which is 0.5 mse(x0, (x0 - g).detach()) but for the rounding of x0 - (x0 - g). The DMD paper (arXiv 2311.18828,
eq. 7-8) has another factor alpha_t: `weight=schedule(t).alpha`.

**Guidance s in two terms** (Liu et al. 2025, Decoupled DMD, arXiv 2511.22677): with c and null the teacher's
conditional and unconditional predictions,

    null + s (c - null) - fake  =  (c - fake)  +  (s - 1) (c - null)

the first term matches distributions, the second (`guidance_matching`) is what guidance adds; each may have a
timestep and a normaliser of its own. The factor is s - 1 with s = 1 for no guidance; code with a factor s on the
second term guides with s + 1.

**f-divergences** (Xu et al. 2025, f-distill, arXiv 2502.15681): the gradient of D_f(p || q) = E_q f(r), r = p / q,
is that of the reverse Kullback-Leibler divergence times r^2 f''(r).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from nitrodistill.checks import (
    check_alike,
    check_choice,
    check_finite,
    check_kind,
    check_positive,
    check_weight,
)
from nitrodistill.kernels.arithmetic import math_dtype
from nitrodistill.kernels.dmd import dmd
from nitrodistill.losses.adversarial import Logits, as_heads, mean_of_heads

Divergence = Literal["kl", "reverse_kl", "jensen_shannon", "hellinger", "jeffreys", "neyman"]
"""f(r) is r log r; -log r; r log r - (1 + r) log((1 + r) / 2); (1 - sqrt r)^2; (r - 1) log r; (1 - r)^2 / r."""


def distribution_matching(
    x0: Tensor,
    real: Tensor,
    fake: Tensor,
    *,
    reference: Tensor | None = None,
    floor: float = 0.0,
    normalise: bool = True,
    weight: Tensor | None = None,
) -> Tensor:
    """The distribution-matching loss of every sample; see the module for the equation.

    Args:
        x0: the student's samples, `(B, *)`; what receives the gradient.
        real: the teacher's prediction of x0 from a noised x0, `(B, *)`, with guidance if there is any.
        fake: the fake score network's prediction from the same noised x0, `(B, *)`.
        reference: what the normaliser compares x0 with, `(B, *)`; None is `real`. For a guided teacher some take
            its prediction without guidance.
        floor: least value of the normaliser, in the data's unit; published are 0 (DMD2) to 0.1 (CDM).
        normalise: False leaves the normaliser out: g is the plain difference, without `reference` and `floor`.
        weight: `(B,)`, a factor for every sample.

    Returns:
        `(B,)`, float64 if an input is, else float32. Where x0 equals `reference` everywhere and `floor` is 0, it
        is 0.

    Raises:
        ValueError: for unequal or empty shapes, several devices, a negative floor, a weight that is not `(B,)`, or
            a floor or reference where nothing is normalised.
        TypeError: for tensors that are not floating point.

    Example:
        >>> x0 = torch.zeros(2, 4, requires_grad=True)
        >>> nd.functional.distribution_matching(x0, torch.ones(2, 4), torch.zeros(2, 4)).sum().backward()
        >>> bool((x0.grad < 0).all())  # towards what the teacher sees
        True
    """
    floor = check_positive("floor", floor, zero=True)
    if not normalise and (reference is not None or floor > 0):
        given = f"floor is {floor}" if floor > 0 else "a reference is given"
        raise ValueError(
            f"{given}, which is the normaliser's, but normalise is False; leave one of the two out."
        )
    reference = real if reference is None else reference
    check_alike(x0=x0, real=real, fake=fake, reference=reference)
    if normalise and reference is real and floor == 0:
        return dmd(x0, real, fake, weight=weight)
    if weight is not None:
        check_weight(weight, len(x0))
    dtype = math_dtype(x0, real, fake, reference)
    x0 = x0.to(dtype)
    gradient = fake.detach().to(dtype) - real.detach().to(dtype)
    if normalise:
        gradient = gradient * _inverse_distance(x0.detach(), reference.detach().to(dtype), floor)
    # x0 - x0.detach() is zero and carries the gradient.
    values = gradient.square() / 2 + gradient * (x0 - x0.detach())
    per_sample = values.flatten(1).mean(1)
    return per_sample if weight is None else per_sample * weight.to(dtype)


def guidance_matching(
    x0: Tensor,
    conditional: Tensor,
    null: Tensor,
    scale: float,
    *,
    floor: float = 0.0,
    normalise: bool = True,
    weight: Tensor | None = None,
) -> Tensor:
    """What guidance adds to distribution matching, as a loss of its own; see the module.

        g_b = -(scale - 1) (conditional_b - null_b) / max(mean_i |x0_bi - conditional_bi|, floor)

    At one noised x0, with `reference=conditional` in the other term, the two add up to matching with guidance.

    Args:
        x0: the student's samples, `(B, *)`; what receives the gradient.
        conditional: the teacher's prediction of x0 with the prompt, `(B, *)`.
        null: without it, `(B, *)`.
        scale: of guidance, 1 for none.
        floor: see `distribution_matching`.
        normalise: see `distribution_matching`.
        weight: `(B,)`, a factor for every sample.

    Returns:
        `(B,)`, float64 if an input is, else float32.

    Raises:
        ValueError: as `distribution_matching`, or for a scale below 1.
        TypeError: for tensors that are not floating point.

    Example:
        >>> x0 = torch.zeros(2, 4, requires_grad=True)
        >>> nd.functional.guidance_matching(x0, torch.ones(2, 4), torch.zeros(2, 4), 3.0).shape
        torch.Size([2])
    """
    if check_finite("scale", scale) < 1:
        raise ValueError(f"scale is {scale}; guidance is at least 1 (1: none) and finite.")
    check_alike(x0=x0, conditional=conditional, null=null)
    guided = conditional + (scale - 1) * (conditional - null)
    return distribution_matching(
        x0,
        guided,
        conditional,
        reference=conditional if normalise else None,
        floor=floor,
        normalise=normalise,
        weight=weight,
    )


def f_divergence_weight(
    logits: Logits, divergence: Divergence, *, ratio_range: tuple[float, float] = (0.1, 20.0)
) -> Tensor:
    """r^2 f''(r) of every sample, the weight of its distribution-matching gradient; see the module.

        kl r   reverse_kl 1   jensen_shannon r / (1 + r)   hellinger sqrt(r) / 2   jeffreys 1 + r   neyman 2 / r

    r = exp(logit) is the teacher's density over the student's where a discriminator of the two, trained with the
    non-saturating loss, is at its optimum. It depends on its sample alone.

    Args:
        logits: of the student's noised samples, high for the teacher's: `(B, *)`, or one such tensor a head; r is
            of their mean.
        divergence: one of `Divergence`.
        ratio_range: r is held within; published is [0.1, 20].

    Returns:
        `(B,)`, detached; float64 if a logit is, else float32.

    Raises:
        ValueError: for another divergence, no logits, or a range that does not rise from 0.

    Example:
        >>> nd.functional.f_divergence_weight(torch.zeros(2, 9), "jensen_shannon").shape
        torch.Size([2])
    """
    check_choice("divergence", divergence, get_args(Divergence))
    check_kind("ratio_range", ratio_range, tuple[float, float])
    low, high = ratio_range
    if not 0 <= low < high:
        raise ValueError(f"ratio_range is {ratio_range}; give (low, high) with 0 <= low < high.")
    mean = mean_of_heads(torch.Tensor.detach, as_heads("logits", logits))
    r = mean.exp().clamp(low, high)
    if divergence == "kl":
        return r
    if divergence == "jensen_shannon":
        return r / (1 + r)
    if divergence == "hellinger":
        return r.sqrt() / 2
    if divergence == "jeffreys":
        return 1 + r
    if divergence == "neyman":
        return 2 / r
    return torch.ones_like(r) + 0 * r  # a NaN stays one


def _inverse_distance(x0: Tensor, reference: Tensor, floor: float) -> Tensor:
    """1 / max(mean |x0 - reference|, floor) `(B, 1, ...)`; 0 where both are 0."""
    distance = (x0 - reference).abs().flatten(1).mean(1).clamp(min=floor)
    empty = distance == 0
    inverse = torch.where(empty, torch.zeros_like(distance), 1 / (distance + empty))
    return inverse.reshape(-1, *[1] * (x0.ndim - 1))
