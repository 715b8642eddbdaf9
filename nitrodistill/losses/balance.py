"""The adversarial term balanced against the reconstruction, by their gradients on the student's latents x0.

    lambda = most clamp(mean(gap) - error(gap), 0, 1) |d L_rec / d x0| / |d L_adv / d x0|

the adaptive weight of VQGAN (Esser et al. 2021, "Taming Transformers", equation 7), on x0 instead of the decoder's
last layer, times what the discriminator can answer for: by how much its mean logit of real samples is higher, less
the standard error of that mean; for a single sample it answers for nothing. At chance it says nothing, and a
reconstruction that has converged is not swamped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def balance(
    x0: Tensor,
    latents: Tensor,
    terms: Mapping[str, Tensor],
    gap: Tensor,
    most: float,
    gather: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Both terms with their values and gradients, as linear functions of x0; the second times lambda.

    Each is differentiated once, down to the latents, and what made it is freed. Nothing waits for the device.

    Args:
        x0: `(B, *)` of the student.
        latents: the same, cut off, requiring gradients: what the terms are functions of.
        terms: name -> scalar, the reconstruction and then the adversarial one, in this process.
        gap: `(b,)` real minus generated logits of this process's samples; there may be none.
        most: lambda's bound in units of the ratio.
        gather: joins `(1, n)` of every process to `(processes, n)`.
    """
    gradients = [torch.autograd.grad(term, latents)[0] for term in terms.values()]
    squares = [gradient.float().square().sum() for gradient in gradients]
    gap = gap.float()
    count = gap.new_full((), len(gap))
    sums = torch.stack([*squares, gap.sum(), gap.square().sum(), count])
    steady, adversarial, total, square, count = gather(sums[None]).sum(0)
    mean = total / count.clamp_min(1)
    error = ((square / count.clamp_min(1) - mean**2).clamp_min(0) / (count - 1).clamp_min(1)).sqrt()
    ratio = steady.sqrt() / adversarial.sqrt().clamp_min(1e-18)
    sure = torch.where(count > 1, (mean - error).clamp(0, 1), 0.0)
    found, factors = {}, (1.0, most * sure * ratio)
    for (name, term), gradient, factor in zip(terms.items(), gradients, factors, strict=True):
        slope = (x0 * gradient).sum()
        found[name] = factor * (term.detach() + slope - slope.detach())
    return found
