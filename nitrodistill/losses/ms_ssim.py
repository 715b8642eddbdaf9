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
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nitrodistill.kernels import ssim as kernel
from nitrodistill.kernels.arithmetic import math_dtype
from nitrodistill.kernels.ssim.reference import SSIMPadding
from nitrodistill.losses.base import (
    Loss,
    Reduction,
    check_choice,
    check_mask,
    check_pair,
    check_positive,
    expand_frames,
    to_frames,
)
from nitrodistill.losses.ssim import SignMode
from nitrodistill.losses.windows import check_size, gaussian_taps, window_weights

__all__ = ["MSSSIMLoss", "ms_ssim_loss"]

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
    """
    check_pair(pred, target)
    exponents = _check_weights(weights)
    taps = gaussian_taps(window_size, sigma)
    check_choice("padding", padding, get_args(SSIMPadding))
    check_choice("mode", mode, get_args(SignMode))
    L = check_positive("data_range", data_range)
    x, y = to_frames(pred), to_frames(target, "target")
    check_size(x, window_size, padding, scales=len(exponents))
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
    shift = (L / 2 if offset is None else float(offset)) if mode == "shift" else 0.0
    product = x.new_ones(x.shape[0])
    for scale, exponent in enumerate(exponents):
        last = scale + 1 == len(exponents)
        dissimilarity = kernel.ssim_loss(
            x,
            y,
            taps=taps,
            c1=(k1 * L) ** 2,
            c2=(k2 * L) ** 2,
            offset=shift,
            mode="full" if last and mode != "structure" else "structure",
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
    """

    data_range: float
    weights: tuple[float, ...]
    window_size: int
    sigma: float
    k1: float
    k2: float
    padding: SSIMPadding
    mode: SignMode

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
        gaussian_taps(window_size, sigma)
        self.data_range = check_positive("data_range", data_range)
        self.weights = _check_weights(weights)
        self.window_size = window_size
        self.sigma = sigma
        self.k1 = check_positive("k1", k1)
        self.k2 = check_positive("k2", k2)
        self.padding = check_choice("padding", padding, get_args(SSIMPadding))
        self.mode = check_choice("mode", mode, get_args(SignMode))

    def per_sample(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return ms_ssim_loss(
            pred,
            target,
            data_range=self.data_range,
            weights=self.weights,
            window_size=self.window_size,
            sigma=self.sigma,
            k1=self.k1,
            k2=self.k2,
            padding=self.padding,
            mode=self.mode,
            mask=mask,
        )

    def extra_repr(self) -> str:
        return (
            f"data_range={self.data_range}, weights={self.weights}, "
            f"window_size={self.window_size}, sigma={self.sigma}, padding={self.padding!r}, "
            f"mode={self.mode!r}, {super().extra_repr()}"
        )


def _halve(x: Tensor) -> Tensor:
    bottom, right = x.shape[-2] % 2, x.shape[-1] % 2
    if bottom or right:
        x = F.pad(x, (0, right, 0, bottom), mode="replicate")
    return F.avg_pool2d(x, 2)


def _power(value: Tensor, exponent: float) -> Tensor:
    """value^exponent where value > 0, else 0 with zero gradient: the slope at 0 is infinite."""
    positive = value > 0
    return torch.where(positive, torch.where(positive, value, 1.0) ** exponent, 0.0)


def _check_weights(weights: Sequence[float]) -> tuple[float, ...]:
    if len(weights) == 0:
        raise ValueError("weights is empty; it must hold one exponent per scale.")
    return tuple(check_positive("a weight", weight) for weight in weights)
