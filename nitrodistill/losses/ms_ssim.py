"""Multi-scale structural similarity as a loss (Wang, Simoncelli & Bovik 2003).

    MS-SSIM = prod_{j < M} relu(mean cs_j)^w_j  *  relu(mean l_M cs_M)^w_M ,     loss = 1 - MS-SSIM

over M scales, each half the size of the one before, with l and cs as in `nitrodistill.losses.ssim`;
per channel, then the mean over channels (and frames), weighted by their masks. The slope of relu(v)^w
is infinite at 0, where other implementations give NaN: here a negative v counts as 0 with zero
gradient. Odd sides repeat their last row or column before the 2 by 2 mean (piq the first one;
pytorch-msssim pads zeros).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nitrodistill.checks import check_mask, check_numbers, check_pair, check_positive
from nitrodistill.kernels import ssim as kernel
from nitrodistill.kernels.arithmetic import math_dtype
from nitrodistill.kernels.ssim.reference import SSIMPadding
from nitrodistill.losses.base import Loss, Reduction, expand_frames, to_frames
from nitrodistill.losses.windows import (
    SignMode,
    SSIMOptions,
    check_size,
    per_channel,
    window_weights,
)

_MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ms_ssim_loss(
    pred: Tensor,
    target: Tensor,
    *,
    data_range: float,
    weights: Sequence[float] = _MS_WEIGHTS,
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: SSIMPadding = "valid",
    mode: SignMode = "plain",
    offset: float | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """1 - MS-SSIM of every sample: the mean over channels of a product over scales.

    Args:
        pred: `(B, C, H, W)` or `(B, C, T, H, W)`.
        target: the same shape.
        data_range: L > 0.
        weights: exponents, one per scale, the finest first. Five scales with an 11-tap window need
            161 pixels a side; for small images and latents give fewer, for example (0.2, 0.4, 0.4).
        window_size: taps of the Gaussian window, odd.
        sigma: its standard deviation in pixels.
        k1: C1 = (k1 L)^2.
        k2: C2 = (k2 L)^2.
        padding: "valid" or "reflect", at every scale.
        mode: "plain", "shift" or "structure" (cs at the last scale too).
        offset: what mode "shift" adds to both; None is L / 2.
        mask: broadcasts to `pred`.

    Returns:
        `(B,)`, in [0, 1].

    Raises:
        ValueError: for unequal or too small shapes, a wrong mask, or an option out of its range.
        TypeError: for tensors that are not floating point.

    Example:
        >>> x = torch.rand(2, 3, 32, 32)
        >>> nd.functional.ms_ssim_loss(x, x, data_range=1.0, weights=(0.5, 0.5))
        tensor([0., 0.])
    """
    L = check_positive("data_range", data_range)
    options = SSIMOptions(L, window_size, sigma, k1, k2, padding, mode, offset)
    return _ms_ssim(pred, target, options, _check_weights(weights), mask)


def _ms_ssim(
    pred: Tensor,
    target: Tensor,
    options: SSIMOptions,
    exponents: tuple[float, ...],
    mask: Tensor | None,
) -> Tensor:
    check_pair(pred, target)
    taps, padding = options.taps, options.padding
    (L,) = per_channel("data_range", options.data_range, 1)
    (shift,) = (L / 2,) if options.offset is None else per_channel("offset", options.offset, 1)
    x, y = to_frames(pred), to_frames(target, "target")
    check_size(x, options.window_size, padding, scales=len(exponents))
    batch, channels = x.shape[:2]
    dtype = math_dtype(x, y)
    x, y = (t.reshape(batch * channels, 1, *t.shape[2:]).to(dtype) for t in (x, y))
    share = x.new_full((batch, channels), 1 / channels)
    if mask is not None:
        check_mask(mask, pred)
        mask = expand_frames(mask, pred).to(dtype).expand(batch, channels, -1, -1)
        share = mask.mean((2, 3))
        share = share / (share.sum(1, keepdim=True) + (share.sum(1, keepdim=True) == 0))
        mask = mask.reshape(x.shape)
    product = x.new_ones(x.shape[0])
    for scale, exponent in enumerate(exponents):
        last = scale + 1 == len(exponents)
        dissimilarity = kernel.ssim_loss(
            x,
            y,
            taps=taps,
            c1=(options.k1 * L) ** 2,
            c2=(options.k2 * L) ** 2,
            offset=shift if options.mode == "shift" else 0.0,
            mode="full" if last and options.mode != "structure" else "structure",
            padding=padding,
            weight_map=None if mask is None else window_weights(mask, taps, padding, x, dtype),
        )
        product = product * _power(1 - dissimilarity, exponent)
        if not last:
            x, y = _halve(x), _halve(y)
            mask = None if mask is None else _halve(mask)
    return (share * (1 - product.view(batch, channels))).sum(1)


class MSSSIMLoss(Loss):
    """1 - MS-SSIM; see `ms_ssim_loss`.

    Args:
        data_range: L > 0: 1 for images in [0, 1].
        weights: exponents, one per scale, the finest first; fewer for small images.
        window_size: taps of the Gaussian window, odd.
        sigma: its standard deviation in pixels.
        k1: C1 = (k1 L)^2.
        k2: C2 = (k2 L)^2.
        padding: "valid" or "reflect", at every scale.
        mode: "plain" for values in [0, L]; "shift" for values in [-L/2, L/2]; "structure".
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: for an option out of its range.

    Example:
        >>> images = torch.rand(2, 3, 32, 32)
        >>> nd.MSSSIMLoss(1.0, weights=(0.5, 0.5))(images, images)
        tensor(0.)
    """

    def __init__(
        self,
        data_range: float,
        weights: Sequence[float] = _MS_WEIGHTS,
        window_size: int = 11,
        sigma: float = 1.5,
        k1: float = 0.01,
        k2: float = 0.03,
        padding: SSIMPadding = "valid",
        mode: SignMode = "plain",
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        L = check_positive("data_range", data_range)
        self.options: SSIMOptions = SSIMOptions(L, window_size, sigma, k1, k2, padding, mode)
        self.weights: tuple[float, ...] = _check_weights(weights)

    def per_sample(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return _ms_ssim(pred, target, self.options, self.weights, mask)

    def extra_repr(self) -> str:
        return f"{self.options}, weights={self.weights}, {super().extra_repr()}"


def _halve(x: Tensor) -> Tensor:
    bottom, right = x.shape[-2] % 2, x.shape[-1] % 2
    if bottom or right:
        x = F.pad(x, (0, right, 0, bottom), mode="replicate")
    return F.avg_pool2d(x, 2)


def _power(value: Tensor, exponent: float) -> Tensor:
    """value^exponent; 0 with zero gradient where value <= 0, because the slope at 0 is infinite."""
    zero = value <= 0  # false for NaN, which stays NaN
    return torch.where(zero, 0.0, torch.where(zero, 1.0, value) ** exponent)


def _check_weights(weights: Sequence[float]) -> tuple[float, ...]:
    factors = check_numbers("weights", weights)
    if len(factors) == 0:
        raise ValueError("weights is empty; it must hold one exponent per scale.")
    return factors
