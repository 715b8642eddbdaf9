"""Structural similarity as a loss, on images and on latents.

    l    = (2 mu_x mu_y + C1) / (mu_x^2 + mu_y^2 + C1)        C1 = (k1 L)^2
    cs   = (2 s_xy + C2) / (s_xx + s_yy + C2)                 C2 = (k2 L)^2

under an 11-tap Gaussian window, L the data range (Wang et al. 2004). The loss is 1 - mean(l cs), in
[0, 2].

Signed data. SSIM was made for values in [0, L]. With signed data l and cs can both be negative, and
their product positive: x and -x then count as nearly identical (1 - SSIM = 0.07 for latents of mean 1).
So there are three modes:

    "plain"      l cs as it is, for values in [0, L];
    "shift"      l cs of x + o and y + o, o constant (L / 2 unless given): for values in [-o, L - o];
    "structure"  cs alone: no mean enters, nothing can cancel. It does not see a constant offset
                 between x and y, so pair it with an elementwise loss.

`data_range` acts only through C1 and C2, a noise floor: C2 should lie well under the usual local
variance. For latents of unit variance L = 8 gives C2 = 0.058; L = 1 reacts to noise; L = 255 makes
everything similar. It must be a constant of the VAE: a statistic of the batch would make the loss
depend on what it compares, and stall the device.

Sizes follow one rule. padding="valid" looks at whole windows and needs both sides >= window_size;
padding="reflect" mirrors the border, looks at every position, and needs both sides > window_size // 2.
Anything smaller is an error. A mask weights the map by its mean under the window. Videos are compared
frame by frame.
"""

from __future__ import annotations

from torch import Tensor

from nitrodistill.checks import check_mask, check_pair
from nitrodistill.kernels import ssim as kernel
from nitrodistill.kernels.arithmetic import math_dtype
from nitrodistill.kernels.ssim.reference import SSIMPadding
from nitrodistill.losses.base import Loss, Reduction, expand_frames, to_frames
from nitrodistill.losses.windows import (
    DataRange,
    SignMode,
    SSIMOptions,
    channel_constant,
    check_size,
    checked_range,
    per_channel,
    window_weights,
)

_SIGMAS_IN_RANGE = 8.0


def ssim_loss(
    pred: Tensor,
    target: Tensor,
    *,
    data_range: DataRange,
    window_size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: SSIMPadding = "valid",
    mode: SignMode = "plain",
    offset: DataRange | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """1 - SSIM of every sample.

    Args:
        pred: `(B, C, H, W)` or `(B, C, T, H, W)`.
        target: the same shape.
        data_range: L > 0, one number or one per channel.
        window_size: taps of the Gaussian window, odd.
        sigma: its standard deviation in pixels.
        k1: C1 = (k1 L)^2.
        k2: C2 = (k2 L)^2.
        padding: "valid" or "reflect".
        mode: "plain", "shift" or "structure".
        offset: what mode "shift" adds to both; None is L / 2.
        mask: broadcasts to `pred`; the map is weighted by its mean under the window.

    Returns:
        `(B,)`, in [0, 2].

    Raises:
        ValueError: for unequal or too small shapes, a wrong mask, or an option out of its range.
        TypeError: for tensors that are not floating point.

    Example:
        >>> x = torch.rand(2, 3, 16, 16)
        >>> nd.functional.ssim_loss(x, x, data_range=1.0)
        tensor([0., 0.])
    """
    options = SSIMOptions(data_range, window_size, sigma, k1, k2, padding, mode, offset)
    return _ssim(pred, target, options, mask)


def _ssim(pred: Tensor, target: Tensor, options: SSIMOptions, mask: Tensor | None) -> Tensor:
    check_pair(pred, target)
    x, y = to_frames(pred), to_frames(target, "target")
    check_size(x, options.window_size, options.padding)
    dtype, channels = math_dtype(x, y), pred.shape[1]
    frames = x.shape[1] // channels
    ranges = per_channel("data_range", options.data_range, channels)
    offsets = tuple(L / 2 for L in ranges)
    if options.offset is not None:
        offsets = per_channel("offset", options.offset, channels)
    weight_map = None
    if mask is not None:
        check_mask(mask, pred)
        mask = expand_frames(mask, pred)
        weight_map = window_weights(mask, options.taps, options.padding, x, dtype)

    def constant(values: tuple[float, ...]) -> float | Tensor:
        return channel_constant(values, frames, dtype, x.device)

    return kernel.ssim_loss(
        x,
        y,
        taps=options.taps,
        c1=constant(tuple((options.k1 * L) ** 2 for L in ranges)),
        c2=constant(tuple((options.k2 * L) ** 2 for L in ranges)),
        offset=constant(offsets) if options.mode == "shift" else 0.0,
        mode="structure" if options.mode == "structure" else "full",
        padding=options.padding,
        weight_map=weight_map,
    )


class SSIMLoss(Loss):
    """1 - SSIM of images; see `ssim_loss`.

    Args:
        data_range: L > 0, one number or one per channel: 1 for images in [0, 1].
        window_size: taps of the Gaussian window, odd.
        sigma: its standard deviation in pixels.
        k1: C1 = (k1 L)^2.
        k2: C2 = (k2 L)^2.
        padding: "valid" (sides >= window_size) or "reflect" (sides > window_size // 2).
        mode: "plain" for values in [0, L]; "shift" for values in [-L/2, L/2]; "structure".
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: for an option out of its range.

    Example:
        >>> images = torch.rand(2, 3, 32, 32)
        >>> nd.SSIMLoss(data_range=1.0)(images, images)
        tensor(0.)
    """

    def __init__(
        self,
        data_range: DataRange,
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
        self.options: SSIMOptions = SSIMOptions(
            data_range, window_size, sigma, k1, k2, padding, mode
        )

    def per_sample(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return _ssim(pred, target, self.options, mask)

    def extra_repr(self) -> str:
        return f"{self.options}, {super().extra_repr()}"


class LatentSSIMLoss(Loss):
    """1 - SSIM of latents: signed, unbounded data, where the plain form is unsafe; see the module.

    Args:
        data_range: L > 0, one number or one per channel, a constant of the VAE: 8 for latents
            scaled to unit variance (plus or minus four standard deviations).
        std: instead of `data_range`, the latents' standard deviation, one number or one per channel;
            L is 8 times that.
        mode: "structure" (the default: safe, blind to constant offsets, pair it with an elementwise
            loss), "shift" (values in [-offset, L - offset]) or "plain" (x and -x look alike).
        offset: what mode "shift" adds to both; None is L / 2.
        window_size: taps of the Gaussian window, odd.
        sigma: its standard deviation in latent pixels.
        k1: C1 = (k1 L)^2.
        k2: C2 = (k2 L)^2.
        padding: "reflect" (sides > window_size // 2) or "valid" (sides >= window_size).
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: unless exactly one of `data_range` and `std` is given, or for an option out of its
            range.

    Example:
        >>> latents = torch.randn(2, 4, 16, 16)
        >>> nd.LatentSSIMLoss(data_range=8.0, window_size=7)(latents, latents)
        tensor(0.)
    """

    def __init__(
        self,
        data_range: DataRange | None = None,
        *,
        std: DataRange | None = None,
        mode: SignMode = "structure",
        offset: DataRange | None = None,
        window_size: int = 11,
        sigma: float = 1.5,
        k1: float = 0.01,
        k2: float = 0.03,
        padding: SSIMPadding = "reflect",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        L = _latent_range(data_range, std)
        self.options: SSIMOptions = SSIMOptions(
            L, window_size, sigma, k1, k2, padding, mode, offset
        )

    def per_sample(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return _ssim(pred, target, self.options, mask)

    def extra_repr(self) -> str:
        return f"{self.options}, {super().extra_repr()}"


def _latent_range(data_range: DataRange | None, std: DataRange | None) -> DataRange:
    if data_range is not None and std is None:
        return checked_range("data_range", data_range)
    if std is not None and data_range is None:
        std = checked_range("std", std)
        if isinstance(std, tuple):
            return tuple(_SIGMAS_IN_RANGE * s for s in std)
        return _SIGMAS_IN_RANGE * std
    raise ValueError(
        f"data_range is {data_range} and std {std}; give exactly one of them, as constants of the "
        "VAE (data_range=8.0 for latents scaled to unit variance)."
    )
